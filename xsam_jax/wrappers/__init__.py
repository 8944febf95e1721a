r"""Methods that do not fit the two slots: each has a core of its own.

They are called as the aliases are, with `value_fn=lambda params: loss(params, batch)`.
"""

from xsam_jax.wrappers.decoupled import DecoupledWsamState, decoupled_wsam
from xsam_jax.wrappers.efficient import esam
from xsam_jax.wrappers.looking import LookSamState, look_sam

__all__ = ["DecoupledWsamState", "LookSamState", "decoupled_wsam", "esam", "look_sam"]
