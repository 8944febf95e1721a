"""Sharpness-aware minimization (SAM)."""

import optax

from xsam_jax._schedules import Radius
from xsam_jax.core import sharpness_aware
from xsam_jax.methods._ascent_of_length import ascent_of_length


def sam(rho: Radius, *, steps: int = 1) -> optax.GradientTransformationExtraArgs:
    r"""Sharpness-aware minimization (SAM): the gradient at the end of an ascent.

    .. math:: \theta_{i+1} = \theta_i + \rho_i\, g_i / \|g_i\|, \qquad
              \text{update } g_k = \nabla L(\theta_k).

    Start with it. It has one hyperparameter, and a step costs `steps` further gradients. A larger
    `rho` usually gives flatter minima and a higher training loss (docs/analysis.md). If it is too
    large, training makes no progress.

    Args:
      rho: :math:`\rho \ge 0`, the length of one ascent step, or a schedule of it over training
        steps (its values are not checked), or a sequence of either, one per ascent step. Typical:
        0.05 to 0.2 for image classifiers. 0 is the base optimizer. With several steps, divide a
        total length by `steps`.
      steps: :math:`k \ge 1`, the number of ascent steps (default 1). Each costs a gradient. Static.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule.

    Raises:
      TypeError: `rho` is not a real number or schedule, or `steps` is not an integer.
      ValueError: a radius is negative, NaN or infinite, there are not `steps` of them, or `steps`
        is less than 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> tx = optax.chain(sam(rho=0.1), optax.sgd(0.1))
      >>> params = jnp.array([3.0, 4.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> updates
      Array([-0.612, -0.816], dtype=float32)

    References:
      Foret et al., `Sharpness-Aware Minimization for Efficiently Improving Generalization
      <https://arxiv.org/abs/2010.01412>`_, 2021
    """
    return sharpness_aware(ascent_of_length(rho, steps), steps=steps)
