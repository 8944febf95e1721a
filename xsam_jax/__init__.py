"""Sharpness-aware minimization for JAX: the SAM family as Optax gradient transformations.

    tx = optax.chain(xsam(rho=0.15, rho_max=0.30), optax.sgd(0.05, momentum=0.9))
    updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)

These rules hold for all methods:

* A method returns a gradient. The optimizer comes after it in the chain. `decoupled_wsam`,
  `lookbehind`, `momentum_sam`, `async_sam` and `sampa` are optimizers with the base optimizer
  inside: put nothing after them.
* `value_fn(params)` is the loss as a pure function of the parameters. `sharpness_aware` describes
  the other arguments of `update`, and the errors that it raises.
* Gradients keep their dtype. Norms and angles are float32, or float64 under x64.
* Numbers may be traced, so `optax.inject_hyperparams` and `jax.vmap` over them work. An argument
  that must be a Python value is marked "Static".
* `rho` and other radii may be schedules over training steps.
* The state is a pytree of arrays.
"""

from xsam_jax import ascent, descent, gating, groups, methods
from xsam_jax._look_ahead import look_ahead
from xsam_jax._schedules import Radius
from xsam_jax._value_fn import GradFn, ValueFn
from xsam_jax.core import AscentPath, SharpnessAwareState, sharpness_aware
from xsam_jax.gating.gated import gated
from xsam_jax.groups import per_group, split_into_groups
from xsam_jax.in_float32 import in_float32
from xsam_jax.methods.asam import asam
from xsam_jax.methods.async_sam import async_sam
from xsam_jax.methods.cr_sam import cr_sam
from xsam_jax.methods.eigen_sam import eigen_sam
from xsam_jax.methods.esam import esam
from xsam_jax.methods.fisher_sam import fisher_sam
from xsam_jax.methods.friendly_sam import friendly_asam, friendly_sam
from xsam_jax.methods.functional_sam import functional_grad_fn
from xsam_jax.methods.gam import gam
from xsam_jax.methods.gradient_norm_penalty import gradient_norm_penalty
from xsam_jax.methods.gsam import gsam, lr_coupled_rho
from xsam_jax.methods.look_sam import look_sam
from xsam_jax.methods.lookbehind import lookbehind
from xsam_jax.methods.lsam import lsam
from xsam_jax.methods.momentum_sam import momentum_sam
from xsam_jax.methods.msam import msam
from xsam_jax.methods.sam import sam
from xsam_jax.methods.sampa import sampa
from xsam_jax.methods.vasso import vasso
from xsam_jax.methods.wsam import decoupled_wsam, wsam
from xsam_jax.methods.xsam import slerp_sam, xsam

__version__ = "0.1.0"

__all__ = [
    # The algorithm
    "sharpness_aware",
    "SharpnessAwareState",
    # Methods with another ascent
    "sam",
    "asam",
    "fisher_sam",
    "friendly_sam",
    "friendly_asam",
    "vasso",
    "eigen_sam",
    # Methods with another descent
    "xsam",
    "slerp_sam",
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
    "lookbehind",
    # Methods that know their perturbation before the step, and where to take the gradient
    "momentum_sam",
    "async_sam",
    "sampa",
    "look_ahead",
    # One perturbation per group of examples
    "per_group",
    "split_into_groups",
    # Points in float32 for parameters of lower precision
    "in_float32",
    # Which steps are sharpness-aware, and how the radius changes
    "gated",
    "lr_coupled_rho",
    # A gradient that makes any method functional
    "functional_grad_fn",
    # Parts
    "ascent",
    "descent",
    "gating",
    "groups",
    "methods",
    # Types
    "AscentPath",
    "GradFn",
    "Radius",
    "ValueFn",
]
