"""A weighted mean of the first and the last gradient (WSAM, GNP)."""

import jax
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax.core import AscentPath
from xsam_jax.descent.stateless import stateless


def mix_first(
    weight: float | jax.Array, *, normalize_first: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Mixes the first gradient with the last one, :math:`(1-w)\,g_0 + w\,g_k`.

    Args:
      weight: :math:`w`, any real number. 0 is the base optimizer, 1 is SAM, and more than 1
        extrapolates.
      normalize_first: whether to use :math:`g_0 / \|g_0\|` in place of :math:`g_0` (default
        False). Static.

    Returns:
      A stateless descent.

    Raises:
      TypeError: `weight` is not a real number.
      ValueError: `weight` is not finite. In `update`, `path` is missing.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> from xsam_jax.core import sharpness_aware
      >>> ascent = optax.chain(normalize(), scale_by_radius(0.1))
      >>> tx = sharpness_aware(ascent, mix_first(0.8))

    References:
      Zhao et al., `Penalizing Gradient Norm for Efficiently Improving Generalization in Deep
      Learning <https://arxiv.org/abs/2202.03599>`_, 2022; Yue et al., `Sharpness-Aware
      Minimization Revisited: Weighted Sharpness as a Regularization Term
      <https://arxiv.org/abs/2305.15817>`_, 2023
    """
    checks.real("weight", weight)

    def mixture(updates: optax.Updates, path: AscentPath) -> optax.Updates:
        first = tree.unit(path.first_gradient) if normalize_first else path.first_gradient
        return tree.combine(1.0 - weight, first, weight, updates)

    return stateless("mix_first", mixture)
