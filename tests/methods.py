"""One row per alias: a new method is tested by the whole protocol suite once it stands here."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optax

import xsam_jax


@dataclass(frozen=True)
class Method:
    """An alias with arguments that make it act.

    `numbers` are those that `optax.inject_hyperparams` may inject, `statics` the others.
    """

    alias: Callable[..., optax.GradientTransformationExtraArgs]
    numbers: dict[str, Any]
    statics: dict[str, Any] = field(default_factory=dict)
    static_args: tuple[str, ...] = ("steps",)
    gradients: int = 1
    probes: bool = False

    def make(self, **kwargs):
        return self.alias(**{**self.numbers, **self.statics, **kwargs})


_XSAM = {"rho": 0.3, "rho_max": 0.6, "probe_every": 2, "alpha_max": 3.0}
_XSAM_STATIC = ("steps", "num_alphas", "probe_batch_size")

METHODS = {
    "sam": Method(xsam_jax.sam, {"rho": 0.3}),
    "sam, two steps": Method(xsam_jax.sam, {"rho": 0.3}, {"steps": 2}, gradients=2),
    "slerp_sam": Method(xsam_jax.slerp_sam, {"rho": 0.3, "alpha": 1.5}),
    "xsam": Method(xsam_jax.xsam, _XSAM, {}, _XSAM_STATIC, probes=True),
    "xsam, two steps": Method(
        xsam_jax.xsam, _XSAM, {"steps": 2}, _XSAM_STATIC, gradients=2, probes=True
    ),
    "xsam, section, slope_max": Method(
        xsam_jax.xsam,
        _XSAM,
        {"search": "section", "scale": "slope_max"},
        _XSAM_STATIC,
        probes=True,
    ),
}
