"""Functional SAM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from xsam_jax._value_fn import GradFn


def functional_grad_fn(
    network_fn: Callable[[Any], Any],
    loss_of_outputs: Callable[[Any], jax.Array],
    params: optax.Params,
) -> GradFn:
    r"""Returns a `grad_fn` that makes a method functional: the loss is linear in the outputs.

    With the outputs :math:`f(\theta)` of the network, their loss :math:`\ell`, the derivative
    :math:`c = \nabla\ell(f(\theta_0))` held fixed, and the Jacobian J of f, the gradient is

    .. math:: \theta \mapsto J(\theta)^\top c.

    At :math:`\theta_0` it is the gradient of the loss. SAM with it lowers the curvature of the
    network, not that of the loss in the outputs, which in language models is most of the sharpness
    that SAM reduces, according to the paper. Any method and any ascent may take it. One that reads
    losses, such as `xsam`, also needs `value_fn`.

    Use it in place of the gradient of the loss for language models. A step costs what it costs
    otherwise.

    Args:
      network_fn: maps parameters to outputs, such as logits, a pytree of arrays. It closes over the
        inputs, dropout keys and statistics.
      loss_of_outputs: maps these outputs to the loss, a real scalar.
      params: :math:`\theta_0`, the parameters of the step.

    Returns:
      A function from parameters to a gradient. Pass it as `grad_fn`, and its value at `params` as
      the gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> from xsam_jax import sam
      >>> x, y = jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([1.0, 0.0])
      >>> params = jnp.array([0.5, 0.5])
      >>> grad_fn = functional_grad_fn(
      ...     lambda params: jnp.tanh(x @ params), lambda out: jnp.mean((out - y) ** 2), params
      ... )
      >>> tx = optax.chain(sam(rho=0.1), optax.sgd(0.1))
      >>> grads, opt_state = grad_fn(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn)

    References:
      Singh et al., `Avoiding spurious sharpness minimization broadens applicability of SAM
      <https://arxiv.org/abs/2502.02407>`_, 2025
    """
    outputs, pullback_at_params = jax.vjp(network_fn, params)
    derivative = jax.grad(loss_of_outputs)(outputs)

    def grad_fn(point: optax.Params) -> optax.Updates:
        # XLA would not merge two passes at `params` if the network is a scan over layers.
        is_at_params = point is params
        pullback = pullback_at_params if is_at_params else jax.vjp(network_fn, point)[1]
        return pullback(derivative)[0]

    return grad_fn
