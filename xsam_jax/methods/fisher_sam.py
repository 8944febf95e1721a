"""Fisher SAM."""

from __future__ import annotations

import jax
import optax

from xsam_jax._schedules import Radius
from xsam_jax.ascent.scale_by_fisher import scale_by_fisher
from xsam_jax.core import sharpness_aware
from xsam_jax.methods._ascent_of_length import ascent_of_length


def fisher_sam(rho: Radius, eta: float | jax.Array = 1.0) -> optax.GradientTransformationExtraArgs:
    r"""Fisher SAM: perturbs parameters with a large gradient less.

    With :math:`f = 1/(1 + \eta g_0^2)`, elementwise,

    .. math:: \theta_1 = \theta_0 + \rho\, f g_0 \,/\, \sqrt{\textstyle\sum f g_0^2}, \qquad
              \text{update } g_1.

    Use it in place of `sam` to measure the neighborhood by the change of the predictions, not of
    the parameters. No official code is known. This is the formula of third-party ports, with the
    square of the batch-mean gradient as the Fisher information. One step costs one further
    gradient.

    Args:
      rho: the radius in the metric :math:`1/f`, otherwise as in `sam`.
      eta: :math:`\eta \ge 0` (default 1), in units of an inverse squared gradient. A larger one
        shortens the perturbation of large gradients more. 0 is `sam`.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule.

    Raises:
      TypeError: `rho` or `eta` is not a real number.
      ValueError: one of them is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(fisher_sam(rho=0.1), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.206', '-0.807']

    References:
      Kim et al., `Fisher SAM: Information Geometry and Sharpness Aware Minimisation
      <https://arxiv.org/abs/2206.04920>`_, 2022
    """
    return sharpness_aware(ascent_of_length(rho, direction=scale_by_fisher(eta)))
