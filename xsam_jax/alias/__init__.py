r"""The methods by name: each is a docstring and one `return`.

All of them are gradient transformations to be put in front of a base optimizer,
`optax.chain(sam(0.05), optax.sgd(0.1))`, not behind it: what they return is a gradient. The update
is called with `value_fn=lambda params: loss(params, batch)`. See `sharpness_aware` for the whole
contract.
"""

from xsam_jax.alias.ascents import asam, fisher_sam, friendly_asam, friendly_sam, vasso
from xsam_jax.alias.descents import cr_sam, gam, gradient_norm_penalty, gsam, wsam
from xsam_jax.alias.explicit import sam, slerp_sam, xsam
from xsam_jax.alias.multistep import lsam, msam

__all__ = [
    "asam",
    "cr_sam",
    "fisher_sam",
    "friendly_asam",
    "friendly_sam",
    "gam",
    "gradient_norm_penalty",
    "gsam",
    "lsam",
    "msam",
    "sam",
    "slerp_sam",
    "vasso",
    "wsam",
    "xsam",
]
