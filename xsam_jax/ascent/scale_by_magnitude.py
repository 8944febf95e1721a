"""The steepest direction in units of the parameters (ASAM)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree


def scale_by_magnitude(
    eta: float | jax.Array = 0.01, *, mask: Any | Callable[[optax.Params], Any] | None = None
) -> optax.GradientTransformation:
    r"""Returns the steepest direction when lengths are relative to the parameters (ASAM).

    With the diagonal :math:`T = |\theta| + \eta` on the leaves that `mask` selects and 1 on the
    others,

    .. math:: T^2 g \,/\, \|T g\|.

    Use it in place of `normalize`. Its length is 1 in units of :math:`T`, not in parameter space.

    Args:
      eta: :math:`\eta \ge 0` (default 0.01). At 0 a parameter that is zero is not perturbed.
      mask: a pytree of booleans with the structure of `params`, or a prefix of it, or a function
        of `params` that returns one. The default None selects all leaves. Static. The official
        code scales parameters named "weight", so no biases. A similar mask is
        `lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)`.

    Returns:
      A stateless transformation that needs `params`.

    Raises:
      TypeError: `eta` is not a real number. In `update`, `mask` has a leaf that is no boolean.
      ValueError: `eta` is negative, NaN or infinite. In `update`, `params` is missing, or `mask`
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

        selected = checks.broadcast_mask(True if mask is None else mask, params)
        magnitudes = jax.tree.map(magnitude, params, selected)
        scaled = jax.tree.map(jnp.multiply, magnitudes, updates)
        steepest = jax.tree.map(jnp.multiply, magnitudes, tree.unit(scaled))
        return tree.cast_like(steepest, updates)

    return optax.stateless(direction)
