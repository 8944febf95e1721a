"""Curvature-regularized SAM (CR-SAM)."""

from __future__ import annotations

import jax
import optax

from xsam_jax._schedules import Radius
from xsam_jax.core import sharpness_aware
from xsam_jax.descent.add_curvature import add_curvature
from xsam_jax.methods._ascent_of_length import ascent_of_length


def cr_sam(
    rho: Radius, gamma: float | jax.Array = 0.1, beta: float | jax.Array = 0.01
) -> optax.GradientTransformationExtraArgs:
    r"""Curvature-regularized SAM (CR-SAM): adds a finite difference of the curvature.

    With :math:`\epsilon = \rho\, g_0/\|g_0\|` and :math:`g_\pm = \nabla L(\theta_0 \pm \epsilon)`,

    .. math:: \text{update } g_+ + \gamma\,(g_+ + g_- - 2 g_0) + \beta\,(g_+ - g_-).

    This is the update of the official code. Use it in place of `sam` when the loss is strongly
    curved along the ascent, so that one gradient describes it badly. One step costs two further
    gradients.

    Args:
      rho: the length of the ascent, as in `sam`.
      gamma: the weight of the second difference, at least 0 (default 0.1). A larger one penalizes
        the curvature more.
      beta: the weight of the first difference, at least 0 (default 0.01). A larger one penalizes
        the gradient norm more. With both at 0 it is `sam`.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule.

    Raises:
      TypeError: a numeric argument is not a real number.
      ValueError: an argument is out of range.

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
    return sharpness_aware(ascent_of_length(rho), add_curvature(gamma, beta))
