"""One perturbation per group of examples (m-sharpness)."""

from xsam_jax.groups.per_group import per_group
from xsam_jax.groups.split_into_groups import split_into_groups

__all__ = ["per_group", "split_into_groups"]
