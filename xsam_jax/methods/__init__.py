r"""The methods by name, one file per paper.

Each is a gradient transformation in front of a base optimizer,
`optax.chain(sam(0.05), optax.sgd(0.1))`, and its update is called with
`value_fn=lambda params: loss(params, batch)`. See `sharpness_aware` for the contract. There are
exceptions: `esam` needs `losses_fn`, the loss of each sample, in place of `value_fn`.
`decoupled_wsam`, `lookbehind`, `momentum_sam`, `async_sam` and `sampa` are optimizers with the base
optimizer inside. The last three take the gradient at `look_ahead`, and only `sampa` needs
`value_fn`.
"""

from xsam_jax.methods.asam import asam
from xsam_jax.methods.async_sam import AsyncSamState, async_sam
from xsam_jax.methods.cr_sam import cr_sam
from xsam_jax.methods.eigen_sam import TopEigenvectorState, eigen_sam
from xsam_jax.methods.esam import esam
from xsam_jax.methods.fisher_sam import fisher_sam
from xsam_jax.methods.friendly_sam import friendly_asam, friendly_sam
from xsam_jax.methods.functional_sam import functional_grad_fn
from xsam_jax.methods.gam import gam
from xsam_jax.methods.gradient_norm_penalty import gradient_norm_penalty
from xsam_jax.methods.gsam import gsam, lr_coupled_rho
from xsam_jax.methods.look_sam import LookSamState, look_sam
from xsam_jax.methods.lookbehind import LookbehindState, lookbehind
from xsam_jax.methods.lsam import lsam
from xsam_jax.methods.momentum_sam import MomentumSamState, momentum_sam
from xsam_jax.methods.msam import msam
from xsam_jax.methods.sam import sam
from xsam_jax.methods.sampa import SampaState, sampa
from xsam_jax.methods.vasso import vasso
from xsam_jax.methods.wsam import DecoupledWsamState, decoupled_wsam, wsam
from xsam_jax.methods.xsam import slerp_sam, xsam

__all__ = [
    "DecoupledWsamState",
    "LookSamState",
    "TopEigenvectorState",
    "LookbehindState",
    "MomentumSamState",
    "AsyncSamState",
    "SampaState",
    "asam",
    "async_sam",
    "cr_sam",
    "decoupled_wsam",
    "eigen_sam",
    "esam",
    "fisher_sam",
    "friendly_asam",
    "friendly_sam",
    "functional_grad_fn",
    "gam",
    "gradient_norm_penalty",
    "gsam",
    "look_sam",
    "lookbehind",
    "lr_coupled_rho",
    "lsam",
    "momentum_sam",
    "msam",
    "sam",
    "sampa",
    "slerp_sam",
    "vasso",
    "wsam",
    "xsam",
]
