"""How far an ascent goes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xsam_jax import checks, tree
from xsam_jax.base import Radius, advance, at_count, schedule_state


def scale_by_radius(radius: Radius) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies by the radius: :math:`\rho_i u` at ascent step :math:`i`.

    Args:
      radius: the length :math:`\rho \ge 0` of one ascent step; or a schedule, called with the
        number of training steps; or a sequence of these, one for each ascent step. A number may
        be traced.

    Returns:
      A transformation of unit directions. Its state is an `optax.ScaleByScheduleState` where a
      radius is a schedule, and empty otherwise.

    Raises:
      TypeError: a radius is neither a real number nor a schedule.
      ValueError: a radius is negative, NaN or infinite; or, in `update`, there is none for the
        ascent step.

    Example:
      >>> tx = scale_by_radius((0.1, 0.2))
      >>> updates, _ = tx.update(jnp.array([1.0, 0.0]), tx.init(None), ascent_step=1)
      >>> updates
      Array([0.2, 0. ], dtype=float32)

    References:
      Foret et al., `Sharpness-Aware Minimization for Efficiently Improving Generalization
      <https://arxiv.org/abs/2010.01412>`_, 2021
    """
    checks.radius("radius", radius)
    radii: Sequence[Any] | None = radius if isinstance(radius, Sequence) else None

    def init_fn(params: optax.Params) -> optax.OptState:
        del params
        return schedule_state(*(radii or [radius]))

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        ascent_step: int = 0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params, extra_args
        if radii is not None and ascent_step >= len(radii):
            raise ValueError(
                f"radius has {len(radii)} entries, one per ascent step, but ascent step "
                f"{ascent_step} was taken: give as many radii as steps"
            )
        length = at_count(radius if radii is None else radii[ascent_step], state)
        return tree.cast_like(tree.scale(length, updates), updates), advance(state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def lr_coupled_rho(
    lr_schedule: optax.Schedule,
    rho_min: float | jax.Array,
    rho_max: float | jax.Array,
    lr_min: float | jax.Array,
    lr_max: float | jax.Array,
) -> Callable[[Any], jax.Array]:
    r"""A schedule of radii that follows the learning rate: GSAM's.

    .. math:: \rho_t = \max\Bigl(0,\ \rho_{min} + (\rho_{max} - \rho_{min})
              \frac{\eta_t - \eta_{min}}{\eta_{max} - \eta_{min}}\Bigr)

    The official rule is not clamped, and goes negative where a warm-up starts below `lr_min`.

    Args:
      lr_schedule: the learning rate :math:`\eta_t` as a function of the step count, the same that
        the base optimizer has.
      rho_min: the radius :math:`\ge 0` at `lr_min`. May be traced, as may the others.
      rho_max: the radius :math:`\ge 0` at `lr_max`.
      lr_min: the least learning rate, for most schedules that of the end.
      lr_max: the greatest, more than `lr_min`.

    Returns:
      A schedule, for the argument `rho` of any method.

    Raises:
      TypeError: `lr_schedule` is not a function, or another argument not a real number.
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
