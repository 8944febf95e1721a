r"""Methods that are more than an ascent and a descent.

`look_sam` is called as the aliases are; `esam` needs `losses_fn`, the loss of each sample, in place
of `value_fn`; `decoupled_wsam` is an optimizer, with the base optimizer inside.
"""

from xsam_jax.wrappers.decoupled import DecoupledWsamState, decoupled_wsam
from xsam_jax.wrappers.efficient import esam
from xsam_jax.wrappers.looking import LookSamState, look_sam

__all__ = ["DecoupledWsamState", "LookSamState", "decoupled_wsam", "esam", "look_sam"]
