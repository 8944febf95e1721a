"""Multi-step SAM (MSAM)."""

from __future__ import annotations

import optax

from xsam_jax._schedules import Radius
from xsam_jax.core import sharpness_aware
from xsam_jax.methods._ascent_of_length import ascent_of_length
from xsam_jax.methods._scaled_sum import scaled_sum


def msam(
    rho: Radius, steps: int, *, include_first: bool = False, scale: str | None = "last"
) -> optax.GradientTransformationExtraArgs:
    r"""Multi-step SAM (MSAM): the sum of the gradients of the ascent.

    After the ascent of `sam` of :math:`k` steps, the update is :math:`\sum_{i=1}^k g_i`, rescaled
    to the norm :math:`\|g_k\|`. With `include_first` it is the paper's MSAM+.

    Use it in place of `sam` with `steps` above 1: all gradients of the ascent count, not the last
    one alone. One step costs `steps` further gradients.

    Args:
      rho: the length of one ascent step, as in `sam`. The paper divides the radius of SAM by
        `steps`.
      steps: :math:`k \ge 1`, the number of ascent steps. Each costs a gradient. 1 is `sam`. Static.
      include_first: whether the sum includes :math:`g_0` (default False). Static.
      scale: the norm of the update, as in `match_norm` except "slope_max" (default "last"). None
        keeps the norm of the sum. Static.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule.

    Raises:
      TypeError: `rho` is not a real number, or `steps` is not an integer.
      ValueError: an argument is out of range, `scale` is unknown, or there are not `steps` radii.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(msam(rho=0.05, steps=2), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.208', '-0.877']

    References:
      Kim et al., `Exploring the Effect of Multi-step Ascent in Sharpness-Aware Minimization
      <https://arxiv.org/abs/2302.10181>`_, 2023; rescaled as in Chen and Zhou, `Revisiting
      Sharpness-Aware Minimization: A More Faithful and Effective Implementation
      <https://arxiv.org/abs/2603.10048>`_, ICLR 2026, section 5.3
    """
    descent = scaled_sum(scale, normalize=False, include_first=include_first)
    return sharpness_aware(ascent_of_length(rho, steps), descent, steps=steps)
