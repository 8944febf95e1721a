"""Linear combinations of the gradients seen on the way."""

import jax
import optax

from xsam_jax import checks, tree
from xsam_jax.base import AscentPath
from xsam_jax.descent.stateless import stateless


def mix_first(
    weight: float | jax.Array, *, normalize_first: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Mixes the first gradient with the last one: :math:`(1-w)\,g_0 + w\,g_k`.

    Args:
      weight: :math:`w`, any real number; 1 is SAM, 0 the base optimizer, more than 1 extrapolates.
        May be traced.
      normalize_first: whether :math:`g_0 / \|g_0\|` takes the place of :math:`g_0`. Static.

    Returns:
      A stateless descent. It returns a float32 (float64 under x64) tree.

    Raises:
      TypeError: `weight` is not a real number.
      ValueError: `weight` is not finite; or, in `update`, `path` is missing.

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


def subtract_orthogonal(alpha: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    r"""Goes up the part of the first gradient on which the last one has no say (GSAM).

    .. math:: g_k - \alpha\,\bigl(g_0 - \langle g_0, \hat g_k\rangle\,\hat g_k\bigr),
              \qquad \hat g_k = g_k / \|g_k\|

    Along the part of :math:`g_0` that is orthogonal to :math:`g_k` the perturbed loss does not
    change, and the surrogate gap between it and the loss shrinks.

    Args:
      alpha: :math:`\alpha`, any real number, usually 0.1 to 1; 0 is SAM. May be traced.

    Returns:
      A stateless descent. It returns a float32 (float64 under x64) tree.

    Raises:
      TypeError: `alpha` is not a real number.
      ValueError: `alpha` is not finite; or, in `update`, `path` is missing.

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


def sum_of_path(
    *, normalize: bool = False, include_first: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Sums the gradients seen on the way: :math:`\sum_{i=1}^k g_i`.

    Args:
      normalize: whether each enters as :math:`g_i / \|g_i\|` (LSAM). Static.
      include_first: whether the sum starts with :math:`g_0` (MSAM+, LSAM+). Static.

    Returns:
      A stateless descent. It returns a float32 (float64 under x64) tree; follow it with
      `match_norm` for a length that does not grow with the number of steps.

    Raises:
      ValueError: in `update`, `path` is missing.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> from xsam_jax.core import sharpness_aware
      >>> from xsam_jax.descent import match_norm
      >>> ascent = optax.chain(normalize(), scale_by_radius(0.1))
      >>> tx = sharpness_aware(ascent, optax.chain(sum_of_path(), match_norm()), steps=3)

    References:
      `Revisiting Sharpness-Aware Minimization: A More Faithful and Effective Implementation`,
      ICLR 2026, section 5.2
    """

    def total(updates: optax.Updates, path: AscentPath) -> optax.Updates:
        gradients = path.gradients if include_first else path.gradients[1:]
        return tree.total([tree.unit(g) if normalize else g for g in gradients])

    return stateless("sum_of_path", total)
