r"""Descents: what was seen on the ascent to the gradient that the base optimizer gets.

A descent is an Optax gradient transformation that `sharpness_aware` calls with `updates` the last
gradient :math:`g_k`, `params` the start :math:`\theta_0`, and the extra arguments `path` (an
`AscentPath`), `value_fn`, `grad_fn` and `value`. Directions travel in float32 (float64 under x64)
through a chain of descents; `sharpness_aware` casts the result to the dtype of the gradients.
"""

from xsam_jax.descent.curvature import add_curvature
from xsam_jax.descent.diagnostics import DIAGNOSTICS, RecordState, record
from xsam_jax.descent.flatness import gradient_norm_aware
from xsam_jax.descent.mixture import mix_first, subtract_orthogonal, sum_of_path
from xsam_jax.descent.norm import SCALES, match_norm
from xsam_jax.descent.slerp import SlerpToMaximumState, slerp, slerp_to_maximum
from xsam_jax.descent.stateless import stateless

__all__ = [
    "DIAGNOSTICS",
    "SCALES",
    "RecordState",
    "SlerpToMaximumState",
    "add_curvature",
    "gradient_norm_aware",
    "match_norm",
    "mix_first",
    "record",
    "slerp",
    "slerp_to_maximum",
    "stateless",
    "subtract_orthogonal",
    "sum_of_path",
]
