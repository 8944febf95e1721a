"""Numbers that may follow a schedule over training steps."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import optax

Radius: TypeAlias = optax.ScalarOrSchedule | Sequence[optax.ScalarOrSchedule]
"""A length, a schedule of lengths over training steps, or one of these per ascent step."""


def schedule_state(*values: Any) -> optax.OptState:
    """Returns a step counter if one of `values` is a schedule, and an empty state otherwise."""
    if any(callable(value) for value in values):
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
    return optax.EmptyState()


def advance(state: Any) -> optax.OptState:
    """Returns a state made by `schedule_state`, advanced by one step."""
    if isinstance(state, optax.ScaleByScheduleState):
        return optax.ScaleByScheduleState(optax.safe_increment(state.count))
    return state


def at_count(value: Any, state: Any) -> Any:
    """Returns `value`, evaluated at the count in `state` if it is a schedule."""
    return value(state.count) if callable(value) else value
