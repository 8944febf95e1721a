"""Directions of steepest ascent, each in its own norm."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xsam_jax import checks, tree


def normalize() -> optax.GradientTransformation:
    r"""Divides by the norm over the whole tree: :math:`g / \|g\|`, and 0 for a zero gradient.

    The norm is accumulated in float32 (float64 under x64) and guarded: a gradient that vanishes
    gives a zero perturbation, one that overflows gives NaN.

    Returns:
      A stateless transformation. Dtypes are those of the incoming gradient.

    Example:
      >>> tx = normalize()
      >>> updates, _ = tx.update(jnp.array([3.0, 4.0]), tx.init(None))
      >>> updates
      Array([0.6, 0.8], dtype=float32)

    References:
      Foret et al., `Sharpness-Aware Minimization for Efficiently Improving Generalization
      <https://arxiv.org/abs/2010.01412>`_, 2021
    """
    return optax.stateless(lambda updates, params: tree.cast_like(tree.unit(updates), updates))


def scale_by_magnitude(
    eta: float | jax.Array = 0.01, *, mask: Any | Callable[[optax.Params], Any] | None = None
) -> optax.GradientTransformation:
    r"""The steepest direction where large parameters are cheap to move: ASAM's.

    With the diagonal :math:`T = |\theta| + \eta` on the leaves that `mask` selects and 1 on the
    others,

    .. math:: T^2 g \,/\, \|T g\|.

    Its length is not 1: in units of :math:`T` it is. It takes the place of `normalize`.

    Args:
      eta: :math:`\eta \ge 0`. Where it is 0, a parameter that is zero is not perturbed. May be
        traced.
      mask: a pytree of booleans with the structure of `params`, or a prefix of it, or a function
        of `params` that returns one; None selects all leaves. Static. The official code scales
        what is named "weight", so no biases:
        `lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)` is near to that.

    Returns:
      A stateless transformation that needs `params`. Dtypes are those of the incoming gradient.

    Raises:
      TypeError: `eta` is not a real number; in `update`, `mask` holds something else than booleans.
      ValueError: `eta` is negative, NaN or infinite; in `update`, `params` is missing, or `mask`
        does not fit it.

    Example:
      >>> tx = scale_by_magnitude(eta=0.0)
      >>> params = jnp.array([3.0, -4.0])
      >>> updates, _ = tx.update(jnp.array([1.0, 1.0]), tx.init(params), params)
      >>> print([f"{u:.3f}" for u in updates])
      ['1.800', '3.200']

    References:
      Kwon et al., `ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of
      Deep Neural Networks <https://arxiv.org/abs/2102.11600>`_, 2021
    """
    checks.real("eta", eta, minimum=0.0)

    def direction(updates: optax.Updates, params: optax.Params) -> optax.Updates:
        checks.present(params, "params is missing: scale_by_magnitude scales by its magnitude")

        def magnitude(leaf: jax.Array, selected: bool) -> jax.Array:
            leaf = jnp.asarray(leaf, tree.accumulation_dtype())
            return jnp.abs(leaf) + eta if selected else jnp.ones_like(leaf)

        selected = checks.selection(True if mask is None else mask, params)
        magnitudes = jax.tree.map(magnitude, params, selected)
        scaled = jax.tree.map(jnp.multiply, magnitudes, updates)
        steepest = jax.tree.map(jnp.multiply, magnitudes, tree.unit(scaled))
        return tree.cast_like(steepest, updates)

    return optax.stateless(direction)


def scale_by_fisher(eta: float | jax.Array = 1.0) -> optax.GradientTransformation:
    r"""The steepest direction where a diagonal Fisher information measures length: Fisher SAM's.

    With :math:`f = 1 / (1 + \eta g^2)`, elementwise, and the square of the gradient of the batch
    mean for the Fisher information,

    .. math:: f g \,/\, \sqrt{\textstyle\sum f g^2}.

    It takes the place of `normalize`, and is equal to it at :math:`\eta = 0`. No official code is
    known; this is the formula of third-party ports.

    Args:
      eta: :math:`\eta \ge 0`. It has the units of an inverse squared gradient, so that this method
        alone depends on the scale of the loss. May be traced.

    Returns:
      A stateless transformation. Dtypes are those of the incoming gradient.

    Raises:
      TypeError: `eta` is not a real number.
      ValueError: `eta` is negative, NaN or infinite.

    Example:
      >>> tx = scale_by_fisher(eta=1.0)
      >>> updates, _ = tx.update(jnp.array([1.0, 0.0]), tx.init(None))
      >>> print([f"{u:.3f}" for u in updates])
      ['0.707', '0.000']

    References:
      Kim et al., `Fisher SAM: Information Geometry and Sharpness Aware Minimisation
      <https://arxiv.org/abs/2206.04920>`_, 2022
    """
    checks.real("eta", eta, minimum=0.0)

    def direction(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params

        def root(g: jax.Array) -> jax.Array:
            return 1.0 / jnp.hypot(1.0, jnp.sqrt(eta) * g)  # not squared: that would overflow

        gradient = tree.scale(1.0, updates)
        weighted = jax.tree.map(lambda g: root(g) * g, gradient)
        steepest = jax.tree.map(lambda g, u: root(g) * u, gradient, tree.unit(weighted))
        return tree.cast_like(steepest, updates)

    return optax.stateless(direction)
