r"""Ascents: Optax gradient transformations from a gradient to a perturbation, uphill.

An ascent is an `optax.chain` of a direction and a length, such as
`chain(normalize(), scale_by_radius(rho))`. `sharpness_aware` calls it with `updates` the gradient
:math:`g_i`, `params` the point :math:`\theta_i`, and the extra argument `ascent_step` the Python
integer :math:`i`. Every ascent returns the dtypes of the incoming gradient.
"""

from xsam_jax.ascent.gradient_average import GradientAverageState, ema_of_gradients, subtract_ema
from xsam_jax.ascent.normalize import normalize
from xsam_jax.ascent.random_subset import random_subset
from xsam_jax.ascent.scale_by_fisher import scale_by_fisher
from xsam_jax.ascent.scale_by_magnitude import scale_by_magnitude
from xsam_jax.ascent.scale_by_radius import scale_by_radius

__all__ = [
    "GradientAverageState",
    "ema_of_gradients",
    "normalize",
    "random_subset",
    "scale_by_fisher",
    "scale_by_magnitude",
    "scale_by_radius",
    "subtract_ema",
]
