"""SAM with another use of the gradients that the ascent has met."""

from __future__ import annotations

import jax
import optax

from xsam_jax import checks
from xsam_jax.alias.climb import climb
from xsam_jax.base import Radius
from xsam_jax.core import sharpness_aware
from xsam_jax.descent import (
    add_curvature,
    gradient_norm_aware,
    mix_first,
    subtract_orthogonal,
)


def wsam(rho: Radius, gamma: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    r"""Weighted SAM (WSAM), coupled: sharpness counts as a regularization term of any weight.

    With :math:`a = \gamma/(1-\gamma)`,

    .. math:: \theta_1 = \theta_0 + \rho\, g_0 / \|g_0\|, \qquad \text{update } (1-a)\,g_0 + a\,g_1.

    One step costs one further gradient. The official code's default is `decoupled_wsam`, which
    keeps the sharpness term out of the momentum.

    Args:
      rho: the length of the ascent, as in `sam`; official default 0.05.
      gamma: :math:`\gamma`, in [0, 1); 0 is the base optimizer, 1/2 is `sam`, more weighs sharpness
        more; official default 0.9. May be traced.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule. Gradients keep their dtype.

    Raises:
      TypeError: `rho` or `gamma` is not a real number.
      ValueError: one of them is out of range. `update` raises what `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(wsam(rho=0.1, gamma=0.9), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.244', '-1.499']

    References:
      Yue et al., `Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
      Term <https://arxiv.org/abs/2305.15817>`_, 2023
    """
    checks.real("gamma", gamma, minimum=0.0, below=1.0)
    return sharpness_aware(climb(rho), mix_first(gamma / (1.0 - gamma)))


def gradient_norm_penalty(
    rho: Radius, alpha: float | jax.Array, *, convention: str = "paper"
) -> optax.GradientTransformationExtraArgs:
    r"""Penalizes the gradient norm (GNP), by a finite difference of gradients.

    .. math:: \theta_1 = \theta_0 + \rho\, g_0 / \|g_0\|, \qquad
              \text{update } (1-\alpha)\,g_0 + \alpha\,g_1,

    an approximation to the gradient of :math:`L + \lambda \|\nabla L\|` where
    :math:`\alpha = \lambda/\rho`. One step costs one further gradient.

    Args:
      rho: the length of the ascent, as in `sam`.
      alpha: :math:`\alpha`, any real number; 0 is the base optimizer, 1 is `sam`; published 0.6 to
        0.8. May be traced.
      convention: "paper", or "official" for :math:`g_0/\|g_0\|` in place of :math:`g_0` in the
        update, as the official code does by default. Static.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule. Gradients keep their dtype.

    Raises:
      TypeError: `rho` or `alpha` is not a real number.
      ValueError: `rho` is negative, `alpha` not finite, or `convention` unknown. `update` raises
        what `sharpness_aware` says.

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
    return sharpness_aware(climb(rho), mix_first(alpha, normalize_first=convention == "official"))


def gsam(rho: Radius, alpha: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    r"""Surrogate-gap SAM (GSAM): lowers the perturbed loss, and its gap to the loss.

    .. math:: \theta_1 = \theta_0 + \rho\, g_0 / \|g_0\|, \qquad
              \text{update } g_1 - \alpha\,\bigl(g_0 - \langle g_0, \hat g_1\rangle\,\hat g_1\bigr).

    One step costs one further gradient.

    Args:
      rho: the length of the ascent, as in `sam`. The paper lets it follow the learning rate:
        `lr_coupled_rho`.
      alpha: :math:`\alpha`, any real number, usually 0.1 to 1; 0 is `sam`. May be traced.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule. Gradients keep their dtype.

    Raises:
      TypeError: `rho` or `alpha` is not a real number.
      ValueError: `rho` is negative, or `alpha` not finite. `update` raises what `sharpness_aware`
        says.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(gsam(rho=0.1, alpha=0.4), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.200', '-0.879']

    References:
      Zhuang et al., `Surrogate Gap Minimization Improves Sharpness-Aware Training
      <https://arxiv.org/abs/2203.08065>`_, 2022
    """
    return sharpness_aware(climb(rho), subtract_orthogonal(alpha))


def cr_sam(
    rho: Radius, gamma: float | jax.Array = 0.1, beta: float | jax.Array = 0.01
) -> optax.GradientTransformationExtraArgs:
    r"""Curvature-regularized SAM (CR-SAM): also looks to the other side.

    With :math:`\epsilon = \rho\, g_0/\|g_0\|` and :math:`g_\pm = \nabla L(\theta_0 \pm \epsilon)`,

    .. math:: \text{update } g_+ + \gamma\,(g_+ + g_- - 2 g_0) + \beta\,(g_+ - g_-).

    This is the update of the official code. One step costs two further gradients.

    Args:
      rho: the length of the ascent, as in `sam`.
      gamma: the weight of the second difference, at least 0. May be traced.
      beta: the weight of the first difference, at least 0. May be traced. With both at 0 it is
        `sam`.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule. Gradients keep their dtype.

    Raises:
      TypeError: a numeric argument is not a real number.
      ValueError: an argument is out of range. `update` raises what `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(cr_sam(rho=0.1), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.205', '-0.879']

    References:
      Wu et al., `CR-SAM: Curvature Regularized Sharpness-Aware Minimization
      <https://arxiv.org/abs/2312.13555>`_, 2024
    """
    return sharpness_aware(climb(rho), add_curvature(gamma, beta))


def gam(
    rho: optax.ScalarOrSchedule,
    gradient_rho: Radius,
    beta_0: float | jax.Array,
    beta_1: float | jax.Array,
    gamma: float | jax.Array,
    *,
    convention: str = "official",
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient norm aware minimization (GAM): descends where the gradient is longest.

    With :math:`g_1` the gradient at distance :math:`r'` along :math:`g_0`, :math:`\theta_2` at
    distance :math:`r` along :math:`g_1 - g_0`, :math:`g_2` the gradient there and :math:`g_3` that
    at distance :math:`r'` further along :math:`g_2`,

    .. math:: h_- = g_0 + (1-\beta_0)\,g_2, \qquad h_+ = \beta_1 g_1 + (1-\beta_1)\,g_3,

    and the update is :math:`h_+` minus :math:`\gamma` times what :math:`h_-` has orthogonal to
    :math:`h_+`. One step costs three further gradients. Published for CIFAR-100: `gam(0.2, 0.02,
    0.5, 0.6, 0.03)`.

    Args:
      rho: :math:`r \ge 0`, how far the largest gradient is sought (the ascent's length is
        `gradient_rho`); a number, which may be traced, or a schedule.
      gradient_rho: :math:`r' \ge 0`, the length of the ascents, as in `sam`.
      beta_0: :math:`\beta_0`, in [0, 1]. May be traced, as may the following two.
      beta_1: :math:`\beta_1`, in [0, 1].
      gamma: :math:`\gamma`, at least 0.
      convention: "official", as above, the default here, unlike elsewhere; or "paper", with
        :math:`h_- = \beta_0 g_0 + (1-\beta_0)\,g_2`. Static.

    Returns:
      A gradient transformation, stateless unless a radius is a schedule. Gradients keep their
      dtype.

    Raises:
      TypeError: a numeric argument is not a real number.
      ValueError: an argument is out of range, or `convention` is unknown. `update` raises what
        `sharpness_aware` says.

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
        climb(gradient_rho),
        gradient_norm_aware(rho, beta_0, beta_1, gamma, convention=convention),
    )
