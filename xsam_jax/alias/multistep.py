"""SAM with all the gradients that several ascent steps have met."""

from __future__ import annotations

import optax

from xsam_jax import checks
from xsam_jax.alias.climb import climb
from xsam_jax.base import Radius
from xsam_jax.core import sharpness_aware
from xsam_jax.descent import match_norm, sum_of_path


def msam(
    rho: Radius, steps: int, *, include_first: bool = False, scale: str | None = "last"
) -> optax.GradientTransformationExtraArgs:
    r"""Multi-step SAM (MSAM): the sum of the gradients that the ascent has met.

    After the ascent of `sam` of :math:`k` steps, the update is :math:`\sum_{i=1}^k g_i`, at the
    length :math:`\|g_k\|`. With `include_first` the sum starts with :math:`g_0`, which is the
    paper's MSAM+. One step costs `steps` further gradients.

    Args:
      rho: the length of one ascent step, as in `sam`; the paper divides that of SAM by `steps`.
      steps: :math:`k \ge 1`, the number of ascent steps; 1 is `sam`. Static.
      include_first: whether :math:`g_0` is part of the sum. Static.
      scale: the length of the update, as in `match_norm` ("slope_max" aside); None leaves the sum
        as it is. Static.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule. Gradients keep their dtype.

    Raises:
      TypeError: `rho` is not a real number, or `steps` not an integer.
      ValueError: an argument is out of range, `scale` is unknown, or there are not `steps` radii.
        `update` raises what `sharpness_aware` says.

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
      <https://arxiv.org/abs/2302.10181>`_, 2023; rescaled as in `Revisiting Sharpness-Aware
      Minimization: A More Faithful and Effective Implementation`, ICLR 2026, section 5.2
    """
    return _path_sum(rho, steps, normalize=False, include_first=include_first, scale=scale)


def lsam(
    rho: Radius, steps: int, *, include_first: bool = False, scale: str | None = "last"
) -> optax.GradientTransformationExtraArgs:
    r"""Lookbehind SAM (LSAM): the sum of the directions of the gradients the ascent has met.

    After the ascent of `sam` of :math:`k` steps, the update is :math:`\sum_{i=1}^k g_i/\|g_i\|`,
    at the length :math:`\|g_k\|`. With `include_first` the sum starts with :math:`g_0/\|g_0\|`,
    which is the paper's LSAM+. One step costs `steps` further gradients.

    This is the definition that the XSAM paper compares with; the original Lookbehind runs the inner
    optimizer within the loop.

    Args:
      rho: the length of one ascent step, as in `sam`; the paper divides that of SAM by `steps`.
      steps: :math:`k \ge 1`, the number of ascent steps; 1 is `sam`. Static.
      include_first: whether :math:`g_0/\|g_0\|` is part of the sum. Static.
      scale: the length of the update, as in `match_norm` ("slope_max" aside); None leaves the sum
        as it is. Static.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule. Gradients keep their dtype.

    Raises:
      TypeError: `rho` is not a real number, or `steps` not an integer.
      ValueError: an argument is out of range, `scale` is unknown, or there are not `steps` radii.
        `update` raises what `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(lsam(rho=0.05, steps=2), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.208', '-0.877']

    References:
      Mordido et al., `Lookbehind-SAM: k steps back, 1 step forward
      <https://arxiv.org/abs/2307.16704>`_, 2024; as in `Revisiting Sharpness-Aware Minimization: A
      More Faithful and Effective Implementation`, ICLR 2026, section 5.2
    """
    return _path_sum(rho, steps, normalize=True, include_first=include_first, scale=scale)


def _path_sum(
    rho: Radius, steps: int, *, normalize: bool, include_first: bool, scale: str | None
) -> optax.GradientTransformationExtraArgs:
    checks.choice("scale", scale, ("last", "first", "mean", "max", "slope", None))
    total = sum_of_path(normalize=normalize, include_first=include_first)
    descent = total if scale is None else optax.chain(total, match_norm(scale))
    return sharpness_aware(climb(rho, steps), descent, steps=steps)
