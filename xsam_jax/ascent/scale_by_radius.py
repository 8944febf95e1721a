"""The length of an ascent step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax._schedules import Radius, advance, at_count, schedule_state


def scale_by_radius(radius: Radius) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies by the radius, :math:`\rho_i u` at ascent step :math:`i`.

    Args:
      radius: :math:`\rho \ge 0`, the length of one ascent step, or a schedule of it over training
        steps, or a sequence of either, one per ascent step.

    Returns:
      A transformation of unit directions. Its state is an `optax.ScaleByScheduleState` if a radius
      is a schedule, and empty otherwise.

    Raises:
      TypeError: a radius is neither a real number nor a schedule.
      ValueError: a radius is negative, NaN or infinite. In `update`, there is none for the
        ascent step.

    Example:
      >>> import jax.numpy as jnp
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
