"""The sum of the gradients of an ascent (MSAM, LSAM)."""

import optax

from xsam_jax import _tree as tree
from xsam_jax.core import AscentPath
from xsam_jax.descent.stateless import stateless


def sum_of_path(
    *, normalize: bool = False, include_first: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Sums the gradients of the ascent, :math:`\sum_{i=1}^k g_i`.

    Args:
      normalize: whether to sum the unit vectors :math:`g_i / \|g_i\|` (LSAM, default False).
        Static.
      include_first: whether the sum starts with :math:`g_0` (MSAM+ and LSAM+). Static.

    Returns:
      A stateless descent. Follow it with `match_norm`, or the length grows with the steps.

    Raises:
      ValueError: in `update`, `path` is missing.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> from xsam_jax.core import sharpness_aware
      >>> from xsam_jax.descent import match_norm
      >>> ascent = optax.chain(normalize(), scale_by_radius(0.1))
      >>> tx = sharpness_aware(ascent, optax.chain(sum_of_path(), match_norm()), steps=3)

    References:
      Chen and Zhou, `Revisiting Sharpness-Aware Minimization: A More Faithful and Effective
      Implementation <https://arxiv.org/abs/2603.10048>`_, ICLR 2026, section 5.3
    """

    def total(updates: optax.Updates, path: AscentPath) -> optax.Updates:
        gradients = path.gradients if include_first else path.gradients[1:]
        return tree.total([tree.unit(g) if normalize else g for g in gradients])

    return stateless("sum_of_path", total)
