"""Sharpness-aware minimization for JAX: the SAM family as Optax gradient transformations."""

from xsam_jax import ascent, descent, tree
from xsam_jax.alias import sam, slerp_sam, xsam
from xsam_jax.base import AscentPath, GradFn, Radius, ValueFn
from xsam_jax.core import SharpnessAwareState, sharpness_aware

__version__ = "0.1.0"

__all__ = [
    # The algorithm
    "sharpness_aware",
    "SharpnessAwareState",
    # Methods
    "sam",
    "slerp_sam",
    "xsam",
    # Parts
    "ascent",
    "descent",
    "tree",
    # Vocabulary
    "AscentPath",
    "GradFn",
    "Radius",
    "ValueFn",
]
