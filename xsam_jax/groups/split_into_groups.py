"""Dividing the examples of a batch into groups."""

from typing import Any

import jax
import jax.numpy as jnp

from xsam_jax import _checks as checks


def split_into_groups(batch: Any, groups: int) -> Any:
    """Divides the examples of a batch into groups of equal size, in their order.

    Args:
      batch: a pytree of arrays with a common leading axis, the examples.
      groups: the number of groups. It must divide the number of examples. If the batch is sharded
        over an explicit mesh axis, it must be a multiple of the size of the axis.

    Returns:
      The arrays with two leading axes, groups and examples.

    Raises:
      TypeError: `groups` is not an integer.
      ValueError: `groups` is less than 1, or does not divide the examples of the batch.

    Example:
      >>> groups = split_into_groups((jnp.zeros((6, 3)), jnp.arange(6)), 2)
      >>> groups[0].shape, groups[1]
      ((2, 3, 3), Array([[0, 1, 2],
             [3, 4, 5]], dtype=int32))
    """
    checks.static_integer("groups", groups, 1)

    def split(path: Any, leaf: Any) -> jax.Array:
        shape = jnp.shape(leaf)
        if not shape or shape[0] % groups:
            raise ValueError(
                f"groups must divide the examples of the batch, got groups={groups} and an array "
                f"of shape {list(shape)} at batch{jax.tree_util.keystr(path)}"
            )
        return jnp.reshape(leaf, (groups, shape[0] // groups, *shape[1:]))

    return jax.tree_util.tree_map_with_path(split, batch)
