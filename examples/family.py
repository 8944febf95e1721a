"""The methods by name: how the demo makes each of them, and among which radii it looks.

Arguments beside the radius are published ones, or the library's defaults; nothing but the radius is
tuned.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import xsam_jax as sx


class Training(NamedTuple):
    """What a method may need to know of the training, beside its radius.

    Attributes:
      rho_max: the radius of XSAM's probes.
      steps: the number of ascent steps, for those that take several.
      search: how XSAM searches: its further arguments.
      base: the base optimizer, weight decay included.
      learning_rate: that of the base optimizer.
      key: a random key.
    """

    rho_max: Any
    steps: int
    search: dict[str, Any]
    base: optax.GradientTransformation
    learning_rate: optax.ScalarOrSchedule
    key: jax.Array


class Method(NamedTuple):
    """A row of the table.

    Attributes:
      make: returns what stands in front of the base optimizer, of the radius and the training.
      scale: its usual radii, divided by those of SAM; None where it has no radius.
      steps: whether it can take several ascent steps.
      has_base: whether `make` returns the whole optimizer, with the base optimizer inside.
    """

    make: Callable[[Any, Training], optax.GradientTransformation]
    scale: float | None = 1.0
    steps: bool = False
    has_base: bool = False


def path_sum(alias: Callable[..., optax.GradientTransformation], include_first: bool) -> Method:
    """Returns the row of a method that sums over at least two ascent steps, each of length rho."""

    def make(rho: Any, training: Training) -> optax.GradientTransformation:
        return alias(rho, max(2, training.steps), include_first=include_first)

    return Method(make, steps=True)


FAMILY = {
    "sgd": Method(lambda rho, t: optax.identity(), scale=None),
    "sam": Method(lambda rho, t: sx.sam(rho, steps=t.steps), steps=True),
    "xsam": Method(lambda rho, t: sx.xsam(rho, t.rho_max, steps=t.steps, **t.search), steps=True),
    # About what XSAM finds here, on average.
    "slerp_sam": Method(lambda rho, t: sx.slerp_sam(rho, 1.5, steps=t.steps), steps=True),
    # In units of the parameters' size, thus larger: published 0.5, where SAM has 0.05.
    "asam": Method(lambda rho, t: sx.asam(rho, steps=t.steps), scale=10.0, steps=True),
    "fisher_sam": Method(lambda rho, t: sx.fisher_sam(rho)),
    "friendly_sam": Method(lambda rho, t: sx.friendly_sam(rho)),
    "friendly_asam": Method(lambda rho, t: sx.friendly_asam(rho), scale=10.0),
    "vasso": Method(lambda rho, t: sx.vasso(rho, theta=0.4)),
    # Sharpness weighs nine times as much as in SAM; decoupled, momentum does not multiply it by 10.
    "wsam": Method(lambda rho, t: sx.wsam(rho, gamma=0.9), scale=0.2),
    "decoupled_wsam": Method(
        lambda rho, t: sx.decoupled_wsam(t.base, t.learning_rate, rho, gamma=0.9),
        scale=2.0,
        has_base=True,
    ),
    "gradient_norm_penalty": Method(lambda rho, t: sx.gradient_norm_penalty(rho, alpha=0.8)),
    "gsam": Method(lambda rho, t: sx.gsam(rho, alpha=0.4)),
    "msam": path_sum(sx.msam, include_first=False),
    "msam+": path_sum(sx.msam, include_first=True),
    "lsam": path_sum(sx.lsam, include_first=False),
    "lsam+": path_sum(sx.lsam, include_first=True),
    "cr_sam": Method(lambda rho, t: sx.cr_sam(rho)),
    # The published ratio of the two radii.
    "gam": Method(
        lambda rho, t: sx.gam(rho, rho / 10, beta_0=0.5, beta_1=0.6, gamma=0.03), scale=3.0
    ),
    "look_sam": Method(lambda rho, t: sx.look_sam(rho, alpha=0.7, every=5), scale=0.5),
    "esam": Method(lambda rho, t: sx.esam(rho, beta=0.6, gamma=0.5, key=t.key)),
}
