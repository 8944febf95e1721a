"""Surrogate-gap SAM (GSAM), and its schedule of the radius."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax._schedules import Radius
from xsam_jax.core import sharpness_aware
from xsam_jax.descent.subtract_orthogonal import subtract_orthogonal
from xsam_jax.methods._ascent_of_length import ascent_of_length


def gsam(rho: Radius, alpha: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    r"""Surrogate-gap SAM (GSAM): lowers the perturbed loss and its gap to the loss.

    .. math:: \theta_1 = \theta_0 + \rho\, g_0 / \|g_0\|, \qquad
              \text{update } g_1 - \alpha\,
              \bigl(g_0 - \langle g_0, \hat{g_1}\rangle\,\hat{g_1}\bigr).

    Use it in place of `sam` when a low perturbed loss is not enough: the gap between perturbed loss
    and loss measures sharpness more directly. It was published for vision transformers. One step
    costs one further gradient.

    Args:
      rho: the length of the ascent, as in `sam`. In the paper it follows the learning rate, see
        `lr_coupled_rho`.
      alpha: :math:`\alpha`, any real number, usually 0.1 to 1. A larger one reduces the gap more. 0
        is `sam`.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule.

    Raises:
      TypeError: `rho` or `alpha` is not a real number.
      ValueError: `rho` is negative, or `alpha` is not finite.

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
    return sharpness_aware(ascent_of_length(rho), subtract_orthogonal(alpha))


def lr_coupled_rho(
    lr_schedule: optax.Schedule,
    rho_min: float | jax.Array,
    rho_max: float | jax.Array,
    lr_min: float | jax.Array,
    lr_max: float | jax.Array,
) -> Callable[[Any], jax.Array]:
    r"""Returns a schedule of the radius that follows the learning rate (GSAM).

    .. math:: \rho_t = \max\Bigl(0,\ \rho_{min} + (\rho_{max} - \rho_{min})
              \frac{\eta_t - \eta_{min}}{\eta_{max} - \eta_{min}}\Bigr)

    The official rule has no maximum with 0. It is negative when a warm-up starts below `lr_min`.

    Args:
      lr_schedule: the learning rate :math:`\eta_t` as a function of the step count, the one of the
        base optimizer.
      rho_min: the radius :math:`\ge 0` at `lr_min`.
      rho_max: the radius :math:`\ge 0` at `lr_max`.
      lr_min: the smallest learning rate, for most schedules the last.
      lr_max: the largest learning rate, more than `lr_min`.

    Returns:
      A schedule, for the argument `rho` of any method.

    Raises:
      TypeError: `lr_schedule` is not a function, or another argument is not a real number.
      ValueError: a radius is negative, or `lr_max` is not greater than `lr_min`.

    Example:
      >>> learning_rate = optax.linear_schedule(0.1, 0.0, 100)
      >>> rho = lr_coupled_rho(learning_rate, rho_min=0.02, rho_max=0.1, lr_min=0.0, lr_max=0.1)
      >>> print(f"{rho(0):.3f} {rho(50):.3f} {rho(100):.3f}")
      0.100 0.060 0.020

    References:
      Zhuang et al., `Surrogate Gap Minimization Improves Sharpness-Aware Training
      <https://arxiv.org/abs/2203.08065>`_, 2022
    """
    if not callable(lr_schedule):
        raise TypeError(
            "lr_schedule must be a function of the step count, such as "
            f"optax.cosine_decay_schedule(0.1, 1000), got {lr_schedule!r}"
        )
    checks.real("rho_min", rho_min, minimum=0.0)
    checks.real("rho_max", rho_max, minimum=0.0)
    checks.real("lr_min", lr_min)
    least = -math.inf if isinstance(lr_min, jax.Array) else float(lr_min)
    checks.real("lr_max", lr_max, above=least)

    def schedule(count: Any) -> jax.Array:
        fraction = (lr_schedule(count) - lr_min) / (lr_max - lr_min)
        return jnp.maximum(rho_min + (rho_max - rho_min) * fraction, 0.0)

    return schedule
