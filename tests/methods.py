"""The table of methods. A method in it is tested by the whole protocol suite."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

import xsam_jax
from xsam_jax.ascent import normalize, scale_by_radius
from xsam_jax.descent import DIAGNOSTICS, record
from xsam_jax.gating import bernoulli, every, gated, gradient_norm


@dataclass(frozen=True, eq=False)  # hashable
class Method:
    """A method with arguments that let it differ from the base optimizer.

    `numbers` are those that `optax.inject_hyperparams` may inject, `statics` the others.
    """

    alias: Callable[..., optax.GradientTransformationExtraArgs]
    numbers: dict[str, Any]
    statics: dict[str, Any] = field(default_factory=dict)
    static_args: tuple[str, ...] = ()
    gradients: int = 1  # beside the caller's, in a sharpness-aware step
    products: bool = False  # products of the Hessian in some steps
    probes: bool = False
    sample_losses: bool = False  # it needs losses_fn, not value_fn
    optimizer: bool = False  # it has the base optimizer inside
    looks_ahead: bool = False  # its only gradient is that at look_ahead
    counts_sharp_steps: bool = False  # schedules inside stand still where the gate is shut

    def make(self, **kwargs):
        return self.alias(**{**self.numbers, **self.statics, **kwargs})

    def arguments(self, loss_fn):
        """The arguments of update beside gradients, state and parameters."""
        if not self.sample_losses:
            return {"value_fn": loss_fn}
        # The mean is the loss. The loss of the third sample rises most.
        return {"losses_fn": lambda params: loss_fn(params) * jnp.array([0.5, 1.0, 1.5])}


_XSAM = {"rho": 0.3, "rho_max": 0.6, "probe_every": 2, "alpha_max": 3.0}
_XSAM_STATIC = ("steps", "num_alphas", "probe_batch_size")
_KEY = jax.random.key(3)
_SGD = optax.sgd(0.02, momentum=0.9)
WITHOUT_RISE = {name: fn for name, fn in DIAGNOSTICS.items() if name != "loss_rise"}


def every_other_sam(rho):
    return gated(xsam_jax.sam(rho), every(2))


def random_xsam(rho, rho_max):
    return gated(xsam_jax.xsam(rho, rho_max, probe_every=2), bernoulli(0.6, _KEY))


def adaptive_sam(rho):
    return gated(xsam_jax.sam(rho), gradient_norm(0.0))


def recorded_sam(rho):
    ascent = optax.chain(normalize(), scale_by_radius(rho))
    # Not the rise of the loss, which is NaN where the caller does not tell its start.
    return xsam_jax.sharpness_aware(ascent, record(WITHOUT_RISE))


def sam_in_float32(rho):
    return xsam_jax.in_float32(xsam_jax.sam(rho))


METHODS = {
    "sam": Method(xsam_jax.sam, {"rho": 0.3}, static_args=("steps",)),
    "slerp_sam": Method(xsam_jax.slerp_sam, {"rho": 0.3, "alpha": 1.5}, static_args=("steps",)),
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
    "asam, two steps": Method(
        xsam_jax.asam,
        {"rho": 0.3, "eta": 0.1},
        {"steps": 2},
        static_args=("steps",),
        gradients=2,
    ),
    "fisher_sam": Method(xsam_jax.fisher_sam, {"rho": 0.1, "eta": 1.0}),
    "friendly_sam": Method(xsam_jax.friendly_sam, {"rho": 0.3, "decay": 0.6, "sigma": 1.0}),
    "friendly_sam, official": Method(
        xsam_jax.friendly_sam,
        {"rho": 0.3, "decay": 0.6, "sigma": 0.7},
        {"convention": "official"},
    ),
    "friendly_asam": Method(
        xsam_jax.friendly_asam, {"rho": 0.3, "decay": 0.6, "sigma": 0.7, "eta": 0.1}
    ),
    "vasso": Method(xsam_jax.vasso, {"rho": 0.3, "theta": 0.4}),
    "eigen_sam": Method(
        xsam_jax.eigen_sam,
        {"rho": 0.3, "alpha": 0.4},
        {"every": 2},
        static_args=("every", "iterations"),
        products=True,
    ),
    "wsam": Method(xsam_jax.wsam, {"rho": 0.3, "gamma": 0.6}),
    "gradient_norm_penalty": Method(xsam_jax.gradient_norm_penalty, {"rho": 0.3, "alpha": 0.8}),
    "gsam": Method(xsam_jax.gsam, {"rho": 0.3, "alpha": 0.4}),
    "msam": Method(xsam_jax.msam, {"rho": 0.2}, {"steps": 2}, static_args=("steps",), gradients=2),
    "lsam+": Method(
        xsam_jax.lsam,
        {"rho": 0.2},
        {"steps": 2, "include_first": True},
        static_args=("steps",),
        gradients=2,
    ),
    "cr_sam": Method(xsam_jax.cr_sam, {"rho": 0.3, "gamma": 0.3, "beta": 0.1}, gradients=2),
    "gam": Method(
        xsam_jax.gam,
        {"rho": 0.3, "gradient_rho": 0.2, "beta_0": 0.5, "beta_1": 0.6, "gamma": 0.1},
        gradients=3,
    ),
    "look_sam": Method(xsam_jax.look_sam, {"rho": 0.3, "alpha": 0.7, "every": 2}),
    "esam": Method(
        xsam_jax.esam,
        {"rho": 0.3, "beta": 0.7, "gamma": 0.7},
        {"key": _KEY},
        static_args=("key",),
        sample_losses=True,
    ),
    "decoupled_wsam": Method(
        xsam_jax.decoupled_wsam,
        {"rho": 0.3, "gamma": 0.6, "learning_rate": 0.02},
        {"inner": _SGD},
        optimizer=True,
    ),
    "lookbehind": Method(
        xsam_jax.lookbehind,
        {"rho": 0.3, "alpha": 0.6},
        {"optimizer": _SGD, "steps": 2},
        static_args=("steps",),
        gradients=2,
        optimizer=True,
    ),
    "sam every other step": Method(every_other_sam, {"rho": 0.3}, counts_sharp_steps=True),
    "xsam at random": Method(
        random_xsam, {"rho": 0.3, "rho_max": 0.6}, probes=True, counts_sharp_steps=True
    ),
    "sam where the gradient is long": Method(adaptive_sam, {"rho": 0.3}, counts_sharp_steps=True),
    "sam, recorded": Method(recorded_sam, {"rho": 0.3}),
    "sam in float32": Method(sam_in_float32, {"rho": 0.3}),
}
# One method for each structure of states, slots and conditionals. They test properties that do not
# depend on the formula, such as transformations of JAX and Optax around a method, and containers.
# A test in test_optax_protocol.py asserts that every kind of state is among them.
REPRESENTATIVES = {
    name: METHODS[name]
    for name in (
        "sam",  # no state; as all whose descent only adds gradients: slerp, wsam, gsam, msam, ...
        "asam, two steps",  # an ascent that reads the parameters
        "friendly_sam",  # an average in the ascent; as vasso and friendly_asam
        "eigen_sam",  # products of the Hessian in the ascent, in a conditional
        "xsam, two steps",  # probes at once, in a conditional
        "xsam, section, slope_max",  # probes one after the other, and further losses
        "cr_sam",  # a gradient that waits for another
        "gam",  # gradients at places of its own
        "look_sam",  # a tree of parameters in the state, one conditional around the gradient
        "esam",  # losses of samples, a draw for every leaf
        "decoupled_wsam",  # an optimizer inside
        "lookbehind",  # an optimizer in the descent
        "xsam at random",  # a conditional in a conditional
        "sam where the gradient is long",  # a gate with a state
        "sam, recorded",  # scalars of the descent in the state
    )
}
# Optimizers that take the caller's gradient at `look_ahead`. Most need no loss.
ONE_GRADIENT = {
    "sampa": Method(
        xsam_jax.sampa,
        {"rho": 0.3, "learning_rate": 0.02, "weight": 0.4},
        {"optimizer": _SGD},
        optimizer=True,
        looks_ahead=True,
    ),
    "momentum_sam": Method(
        xsam_jax.momentum_sam,
        {"rho": 0.3},
        {"optimizer": _SGD},
        gradients=0,
        optimizer=True,
        looks_ahead=True,
    ),
    "async_sam": Method(
        xsam_jax.async_sam,
        {"rho": 0.3},
        {"optimizer": _SGD},
        gradients=0,
        optimizer=True,
        looks_ahead=True,
    ),
}
HELPERS = {"lr_coupled_rho", "functional_grad_fn"}
NAMES = {n for n in xsam_jax.methods.__all__ if n.islower()} - HELPERS


def gradient_point(method, opt_state, params):
    """Where the caller takes its gradient."""
    return xsam_jax.look_ahead(opt_state, params) if method.looks_ahead else params
