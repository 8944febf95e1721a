"""Gradient norm penalty (GNP)."""

from __future__ import annotations

import jax
import optax

from xsam_jax import _checks as checks
from xsam_jax._schedules import Radius
from xsam_jax.core import sharpness_aware
from xsam_jax.descent.mix_first import mix_first
from xsam_jax.methods._ascent_of_length import ascent_of_length


def gradient_norm_penalty(
    rho: Radius, alpha: float | jax.Array, *, convention: str = "paper"
) -> optax.GradientTransformationExtraArgs:
    r"""Penalizes the gradient norm (GNP), by a finite difference of gradients.

    .. math:: \theta_1 = \theta_0 + \rho\, g_0 / \|g_0\|, \qquad
              \text{update } (1-\alpha)\,g_0 + \alpha\,g_1,

    an approximation of the gradient of :math:`L + \lambda \|\nabla L\|` with
    :math:`\alpha = \lambda/\rho`.

    Use it in place of `sam` to choose how strongly sharpness counts, from none to more than in SAM.
    One step costs one further gradient.

    Args:
      rho: the length of the ascent, as in `sam`.
      alpha: :math:`\alpha`, any real number, published 0.6 to 0.8. A larger one penalizes more.
        0 is the base optimizer, 1 is `sam`.
      convention: "paper" (default), or "official" for :math:`g_0/\|g_0\|` in place of :math:`g_0`
        in the update, the default of the official code. Static.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule.

    Raises:
      TypeError: `rho` or `alpha` is not a real number.
      ValueError: `rho` is negative, `alpha` is not finite, or `convention` is unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(gradient_norm_penalty(rho=0.1, alpha=0.8), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.204', '-0.862']

    References:
      Zhao et al., `Penalizing Gradient Norm for Efficiently Improving Generalization in Deep
      Learning <https://arxiv.org/abs/2202.03599>`_, 2022
    """
    checks.real("alpha", alpha)
    checks.convention(convention)
    descent = mix_first(alpha, normalize_first=convention == "official")
    return sharpness_aware(ascent_of_length(rho), descent)
