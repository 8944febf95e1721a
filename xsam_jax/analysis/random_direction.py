"""Random directions, scaled by the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree

NORMALIZATIONS = ("filter", "element", "layer", "global")


def random_direction(params: Any, *, normalization: str = "filter", key: jax.Array) -> Any:
    r"""Returns a Gaussian direction, normalized by the parameters.

    With :math:`d` of standard normal entries, it returns

    * "filter" (default): :math:`\|\theta_f\|\, d_f / \|d_f\|` for each filter f, so the direction
      scales with the filter. A filter is a slice along the last axis, as in Flax, where kernels
      have the shape (..., in, out). Leaves with fewer than two axes (biases, normalization layers)
      have a zero direction.
    * "layer": :math:`\|\theta_l\|\, d_l / \|d_l\|` for each leaf l, zero for leaves with fewer than
      two axes.
    * "element": :math:`|\theta_e|\, d_e` for each entry e.
    * "global": :math:`d / \|d\|`, uniform on the unit sphere of all parameters.

    Two independent directions are nearly orthogonal, with a cosine of about :math:`n^{-1/2}`.

    Args:
      params: :math:`\theta`, a pytree of real floating-point arrays.
      normalization: one of the above.
      key: a random key.

    Returns:
      A tree with the structure and shapes of `params`, float32 (float64 under x64).

    Raises:
      TypeError: `key` is not a key.
      ValueError: `normalization` is unknown.

    Example:
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]]), "bias": jnp.ones(2)}
      >>> direction = random_direction(params, key=jax.random.key(0))
      >>> print(jnp.linalg.norm(direction["kernel"], axis=0).round(3), direction["bias"])
      [5. 1.] [0. 0.]

    References:
      Li et al., `Visualizing the Loss Landscape of Neural Nets <https://arxiv.org/abs/1712.09913>`_,
      2018, section 4
    """
    checks.choice("normalization", normalization, NORMALIZATIONS)
    checks.random_key("key", key)
    drawn = random_tree(key, params, jax.random.normal)
    if normalization == "global":
        return tree.unit(drawn)

    def normalized(d: jax.Array, leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf, d.dtype)
        if normalization == "element":
            return jnp.abs(leaf) * d
        if leaf.ndim < 2:
            return jnp.zeros_like(d)
        axes = tuple(range(leaf.ndim - (normalization == "filter")))
        lengths = [jnp.sqrt(jnp.sum(x * x, axes, keepdims=True)) for x in (leaf, d)]
        return lengths[0] / lengths[1] * d

    return jax.tree.map(normalized, drawn, params)


def random_tree(key: jax.Array, like: Any, draw: Callable[..., jax.Array]) -> Any:
    """Returns random numbers in the structure and shapes of `like`, each leaf from its own key.

    Args:
      key: a random key.
      like: a pytree of arrays.
      draw: such as `jax.random.normal`.

    Returns:
      A tree of float32 (float64 under x64).

    Example:
      >>> print(random_tree(jax.random.key(0), {"a": jnp.zeros(3)}, jax.random.rademacher))
      {'a': Array([-1.,  1.,  1.], dtype=float32)}
    """
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    dtype = tree.accumulation_dtype()
    drawn = [draw(k, jnp.shape(leaf), dtype) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)
