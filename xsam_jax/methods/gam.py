"""Gradient norm aware minimization (GAM)."""

from __future__ import annotations

import jax
import optax

from xsam_jax import _checks as checks
from xsam_jax._schedules import Radius
from xsam_jax.core import sharpness_aware
from xsam_jax.descent.gradient_norm_aware import gradient_norm_aware
from xsam_jax.methods._ascent_of_length import ascent_of_length


def gam(
    rho: optax.ScalarOrSchedule,
    gradient_rho: Radius,
    beta_0: float | jax.Array,
    beta_1: float | jax.Array,
    gamma: float | jax.Array,
    *,
    convention: str = "official",
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient norm aware minimization (GAM): minimizes the largest gradient norm nearby.

    With :math:`g_1` the gradient at distance :math:`r'` along :math:`g_0`, :math:`\theta_2` at
    distance :math:`r` along :math:`g_1 - g_0`, :math:`g_2` the gradient there and :math:`g_3` that
    at distance :math:`r'` further along :math:`g_2`,

    .. math:: h_- = g_0 + (1-\beta_0)\,g_2, \qquad h_+ = \beta_1 g_1 + (1-\beta_1)\,g_3,

    and the update is :math:`h_+` minus :math:`\gamma` times the component of :math:`h_-` orthogonal
    to :math:`h_+`.

    Use it in place of `sam` if a flat loss around the minimum is not enough, and its slope should
    be small everywhere. It costs the most of all methods, three further gradients a step, and has
    five hyperparameters. Published for CIFAR-100: `gam(0.2, 0.02, 0.5, 0.6, 0.03)`.

    Args:
      rho: :math:`r \ge 0`, the radius of the search for the largest gradient norm, or a schedule
        of it. The length of the ascent is `gradient_rho`.
      gradient_rho: :math:`r' \ge 0`, the length of the ascents, as in `sam`.
      beta_0: :math:`\beta_0`, in [0, 1]. A larger one uses less of :math:`g_2`.
      beta_1: :math:`\beta_1`, in [0, 1]. A larger one uses less of :math:`g_3`.
      gamma: :math:`\gamma`, at least 0. A larger one subtracts more of the orthogonal component.
      convention: "official" (the default here, unlike in other methods), as above, or "paper", with
        :math:`h_- = \beta_0 g_0 + (1-\beta_0)\,g_2`. Static.

    Returns:
      A gradient transformation, stateless unless a radius is a schedule.

    Raises:
      TypeError: a numeric argument is not a real number.
      ValueError: an argument is out of range, or `convention` is unknown.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(gam(0.2, 0.02, 0.5, 0.6, 0.03), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.202', '-0.879']

    References:
      Zhang et al., `Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
      Generalization <https://arxiv.org/abs/2303.03108>`_, 2023
    """
    checks.radius("gradient_rho", gradient_rho, 1)
    return sharpness_aware(
        ascent_of_length(gradient_rho),
        gradient_norm_aware(rho, beta_0, beta_1, gamma, convention=convention),
    )
