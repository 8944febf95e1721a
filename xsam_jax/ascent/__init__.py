r"""Ascents: gradient to perturbation, uphill sign, as Optax gradient transformations.

An ascent is an `optax.chain` of a direction and a length, such as
`chain(normalize(), scale_by_radius(rho))`. `sharpness_aware` calls it with `updates` the gradient
:math:`g_i`, `params` the point :math:`\theta_i`, and the extra argument `ascent_step` the Python
integer :math:`i`.
"""

from xsam_jax.ascent.average import GradientAverageState, ema_of_gradients, subtract_ema
from xsam_jax.ascent.geometry import normalize, scale_by_fisher, scale_by_magnitude
from xsam_jax.ascent.radius import lr_coupled_rho, scale_by_radius
from xsam_jax.ascent.subset import random_subset

__all__ = [
    "GradientAverageState",
    "ema_of_gradients",
    "lr_coupled_rho",
    "normalize",
    "random_subset",
    "scale_by_fisher",
    "scale_by_magnitude",
    "scale_by_radius",
    "subtract_ema",
]
