"""Sharpness-aware minimization for JAX: the SAM family as Optax gradient transformations."""

from xsam_jax import ascent, descent, gating, tree
from xsam_jax.alias import (
    asam,
    cr_sam,
    fisher_sam,
    friendly_asam,
    friendly_sam,
    gam,
    gradient_norm_penalty,
    gsam,
    lsam,
    msam,
    sam,
    slerp_sam,
    vasso,
    wsam,
    xsam,
)
from xsam_jax.ascent import lr_coupled_rho
from xsam_jax.base import AscentPath, GradFn, Radius, ValueFn
from xsam_jax.core import SharpnessAwareState, sharpness_aware
from xsam_jax.gating import gated
from xsam_jax.wrappers import decoupled_wsam, esam, look_sam

__version__ = "0.1.0"

__all__ = [
    # The algorithm
    "sharpness_aware",
    "SharpnessAwareState",
    # Methods: where to look
    "sam",
    "asam",
    "fisher_sam",
    "friendly_sam",
    "friendly_asam",
    "vasso",
    # Methods: what to do with what was seen
    "slerp_sam",
    "xsam",
    "wsam",
    "gradient_norm_penalty",
    "gsam",
    "msam",
    "lsam",
    "cr_sam",
    "gam",
    # Methods that are more than an ascent and a descent
    "look_sam",
    "esam",
    "decoupled_wsam",
    # When
    "gated",
    "lr_coupled_rho",
    # Parts
    "ascent",
    "descent",
    "gating",
    "tree",
    # Vocabulary
    "AscentPath",
    "GradFn",
    "Radius",
    "ValueFn",
]
