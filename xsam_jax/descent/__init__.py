r"""Descents: what was seen on the ascent to the gradient that the base optimizer gets.

A descent is an Optax gradient transformation that `sharpness_aware` calls with `updates` the last
gradient :math:`g_k`, `params` the start :math:`\theta_0`, and the extra arguments `path` (an
`AscentPath`), `value_fn`, `grad_fn` and `value`. Directions travel in float32 (float64 under x64)
through a chain of descents; `sharpness_aware` casts the result to the dtype of the gradients.
"""

from xsam_jax.descent.norm import SCALES, match_norm
from xsam_jax.descent.slerp import SlerpToMaximumState, slerp, slerp_to_maximum

__all__ = ["SCALES", "SlerpToMaximumState", "match_norm", "slerp", "slerp_to_maximum"]
