"""The steepest direction under a diagonal Fisher information (Fisher SAM)."""

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree


def scale_by_fisher(eta: float | jax.Array = 1.0) -> optax.GradientTransformation:
    r"""Returns the steepest direction when a diagonal Fisher information measures length.

    The square of the batch-mean gradient stands for the Fisher information. With
    :math:`f = 1 / (1 + \eta g^2)`, elementwise,

    .. math:: f g \,/\, \sqrt{\textstyle\sum f g^2}.

    Use it in place of `normalize`. The two are equal at :math:`\eta = 0`. No official code is
    known. This is the formula of third-party ports.

    Args:
      eta: :math:`\eta \ge 0` (default 1), in units of an inverse squared gradient. This method
        alone depends on the scale of the loss.

    Returns:
      A stateless transformation.

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
