"""Variance-suppressed SAM (VaSSO)."""

from __future__ import annotations

import jax
import optax

from xsam_jax._schedules import Radius
from xsam_jax.ascent.gradient_average import ema_of_gradients
from xsam_jax.ascent.normalize import normalize
from xsam_jax.core import sharpness_aware
from xsam_jax.methods._ascent_of_length import ascent_of_length


def vasso(rho: Radius, theta: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    r"""Variance-suppressed SAM (VaSSO): ascends along a moving average of the gradients.

    With the parameters :math:`x_t` of training step t, the weight :math:`\beta` (the argument
    `theta`), :math:`d_0 = g_0` and, in each later training step,

    .. math:: d_t = (1-\beta) d_{t-1} + \beta g_t, \qquad
              \text{update } \nabla L(x_t + \rho\, d_t / \|d_t\|).

    Use it in place of `sam` when the batch gradient is so noisy that the ascent fits the batch. It
    needs a copy of the parameters for the average. One step costs one further gradient.

    Args:
      rho: the length of the ascent, as in `sam`.
      theta: :math:`\beta`, the weight of the new gradient, in [0, 1]. The paper calls it theta. A
        larger one averages over fewer steps. 1 is `sam`. `decay` of `friendly_sam` is one minus
        this weight. The official scripts use 0.9. No value is standard, so there is no default.

    Returns:
      A gradient transformation. Its state holds the average, one copy of the parameters.

    Raises:
      TypeError: `rho` or `theta` is not a real number.
      ValueError: one of them is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(vasso(rho=0.1, theta=0.4), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.205', '-0.878']

    References:
      Li and Giannakis, `Enhancing Sharpness-Aware Optimization Through Variance Suppression
      <https://arxiv.org/abs/2309.15639>`_, 2023
    """
    direction = optax.chain(ema_of_gradients(theta), normalize())
    return sharpness_aware(ascent_of_length(rho, direction=direction))
