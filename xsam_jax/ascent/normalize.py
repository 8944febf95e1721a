"""The gradient direction (SAM)."""

import optax

from xsam_jax import _tree as tree


def normalize() -> optax.GradientTransformation:
    r"""Divides by the norm over the whole tree, :math:`g / \|g\|` (SAM).

    The norm is accumulated in float32 (float64 under x64). A zero gradient gives a zero
    perturbation, and a norm that overflows gives NaN.

    Returns:
      A stateless transformation.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = normalize()
      >>> updates, _ = tx.update(jnp.array([3.0, 4.0]), tx.init(None))
      >>> updates
      Array([0.6, 0.8], dtype=float32)

    References:
      Foret et al., `Sharpness-Aware Minimization for Efficiently Improving Generalization
      <https://arxiv.org/abs/2010.01412>`_, 2021
    """
    return optax.stateless(lambda updates, params: tree.cast_like(tree.unit(updates), updates))
