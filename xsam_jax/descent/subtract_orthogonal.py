"""The surrogate-gap correction of GSAM."""

import jax
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax.core import AscentPath
from xsam_jax.descent.stateless import stateless


def subtract_orthogonal(alpha: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    r"""Subtracts the component of the first gradient orthogonal to the last one (GSAM).

    .. math:: g_k - \alpha\,\bigl(g_0 - \langle g_0, \hat{g_k}\rangle\,\hat{g_k}\bigr),
              \qquad \hat{g_k} = g_k / \|g_k\|

    A step along that component does not change the perturbed loss to first order. It raises the
    loss, so the surrogate gap between the two shrinks.

    Args:
      alpha: :math:`\alpha`, any real number, usually 0.1 to 1. A larger one shrinks the gap more.
        0 is SAM.

    Returns:
      A stateless descent.

    Raises:
      TypeError: `alpha` is not a real number.
      ValueError: `alpha` is not finite. In `update`, `path` is missing.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> from xsam_jax.core import sharpness_aware
      >>> ascent = optax.chain(normalize(), scale_by_radius(0.1))
      >>> tx = sharpness_aware(ascent, subtract_orthogonal(0.4), steps=3)

    References:
      Zhuang et al., `Surrogate Gap Minimization Improves Sharpness-Aware Training
      <https://arxiv.org/abs/2203.08065>`_, 2022
    """
    checks.real("alpha", alpha)

    def difference(updates: optax.Updates, path: AscentPath) -> optax.Updates:
        orthogonal = tree.reject(path.first_gradient, updates)
        return tree.combine(1.0, updates, -alpha, orthogonal)

    return stateless("subtract_orthogonal", difference)
