"""Curvature, sharpness and landscapes of any JAX loss.

Every function takes `(value_fn, params)`, or with `batches=` a `value_fn(params, batch)` whose mean
over the batches is the loss. No model library is needed. `xsam_jax.analysis.plots` draws the
results with matplotlib.
"""

from xsam_jax.analysis.ascent_plane import AscentPlane, alpha_profile, ascent_plane, gradient_gap
from xsam_jax.analysis.hessian_trace import hessian_trace
from xsam_jax.analysis.loss_surface import loss_line, loss_surface
from xsam_jax.analysis.make_hvp import make_hvp
from xsam_jax.analysis.random_direction import random_direction
from xsam_jax.analysis.restrict import restrict
from xsam_jax.analysis.sharpness import (
    average_sharpness,
    max_alpha_sharpness,
    worst_case_sharpness,
)
from xsam_jax.analysis.spectral_density import spectral_density
from xsam_jax.analysis.top_eigenvalues import top_eigenpairs, top_eigenvalues

__all__ = [
    # Curvature
    "top_eigenvalues",
    "top_eigenpairs",
    "hessian_trace",
    "spectral_density",
    "make_hvp",
    # Sharpness
    "average_sharpness",
    "worst_case_sharpness",
    "max_alpha_sharpness",
    # Landscapes
    "loss_surface",
    "loss_line",
    "alpha_profile",
    "gradient_gap",
    "ascent_plane",
    "AscentPlane",
    "random_direction",
    # Of a part of the parameters
    "restrict",
]
