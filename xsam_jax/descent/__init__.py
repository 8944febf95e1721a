r"""Descents: Optax gradient transformations from the path of an ascent to a gradient.

The result is a gradient, uphill. The base optimizer descends along it. `sharpness_aware` calls a
descent with `updates` the last gradient :math:`g_k`, `params` the start :math:`\theta_0`, and the
extra arguments `path` (an `AscentPath`), `value_fn`, `grad_fn` and `value`. Descents return
float32 trees (float64 under x64), and `sharpness_aware` casts the result to the dtypes of the
gradients.
"""

from xsam_jax.descent.add_curvature import add_curvature
from xsam_jax.descent.gradient_norm_aware import gradient_norm_aware
from xsam_jax.descent.match_norm import SCALES, match_norm
from xsam_jax.descent.mix_first import mix_first
from xsam_jax.descent.polyak_step import polyak_step
from xsam_jax.descent.record import DIAGNOSTICS, RecordState, record
from xsam_jax.descent.slerp import slerp
from xsam_jax.descent.slerp_to_maximum import SlerpToMaximumState, slerp_to_maximum
from xsam_jax.descent.stateless import stateless
from xsam_jax.descent.subtract_orthogonal import subtract_orthogonal
from xsam_jax.descent.sum_of_path import sum_of_path

__all__ = [
    "DIAGNOSTICS",
    "SCALES",
    "RecordState",
    "SlerpToMaximumState",
    "add_curvature",
    "gradient_norm_aware",
    "match_norm",
    "mix_first",
    "polyak_step",
    "record",
    "slerp",
    "slerp_to_maximum",
    "stateless",
    "subtract_orthogonal",
    "sum_of_path",
]
