"""The vocabulary: what an ascent leaves behind, and the types that recur in signatures."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from xsam_jax import tree

ValueFn: TypeAlias = Callable[[Any], jax.Array]
"""The loss as a pure function of the parameters; batch, keys and statistics are closed over."""

GradFn: TypeAlias = Callable[[Any], Any]
"""The gradient as a function of the parameters, with their tree structure."""

Radius: TypeAlias = optax.ScalarOrSchedule | Sequence[optax.ScalarOrSchedule]
"""A length, a schedule of lengths over training steps, or one of these per ascent step."""


@dataclasses.dataclass(frozen=True)
class AscentPath:
    r"""The route of one ascent, :math:`\theta_0, g_0, \dots, \theta_k, g_k`.

    A descent receives it as the extra argument `path`. Sums and norms are made where they are read,
    so that what nobody reads is not even traced. They are float32, or float64 under x64.

    Attributes:
      perturbations: :math:`\theta_{i+1} - \theta_i` for :math:`i = 0, \dots, k-1`.
      gradients: :math:`g_0`, as the caller gave it, to :math:`g_k`.
      first_value: :math:`L(\theta_0)` where the caller gave it, None otherwise.
      last_value: :math:`L(\theta_k)` where the last gradient was taken with `jax.value_and_grad`,
        None where a `grad_fn` hides it.
    """

    perturbations: Sequence[Any]
    gradients: Sequence[Any]
    first_value: jax.Array | None = None
    last_value: jax.Array | None = None

    @property
    def displacement(self) -> Any:
        r"""The sum of the perturbations, :math:`\theta_k - \theta_0`."""
        # Who reads it reads it often; without the barrier XLA keeps several copies on CPU.
        return jax.lax.optimization_barrier(tree.total(self.perturbations))

    @property
    def first_gradient(self) -> Any:
        """The gradient :math:`g_0`."""
        return self.gradients[0]

    @property
    def last_gradient(self) -> Any:
        """The gradient :math:`g_k`."""
        return self.gradients[-1]

    @property
    def gradient_norms(self) -> jax.Array:
        r"""The norms :math:`\|g_0\|, \dots, \|g_k\|`, of shape (k + 1,)."""
        return jnp.stack([tree.norm(gradient) for gradient in self.gradients])


def schedule_state(*values: Any) -> optax.OptState:
    """Returns a step counter where one of `values` is a schedule, and an empty state otherwise."""
    if any(callable(value) for value in values):
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
    return optax.EmptyState()


def advance(state: Any) -> optax.OptState:
    """Returns the state that `schedule_state` made, one step later."""
    if isinstance(state, optax.ScaleByScheduleState):
        return optax.ScaleByScheduleState(optax.safe_increment(state.count))
    return state


def at_count(value: Any, state: Any) -> Any:
    """Returns `value`, or its value at the count in `state` where it is a schedule."""
    return value(state.count) if callable(value) else value


def value_at(value_fn: ValueFn, params: optax.Params, displacement: Any) -> jax.Array:
    """Returns the loss at `params + displacement`, float32 (float64 under x64)."""
    point = optax.apply_updates(params, displacement)
    return jnp.asarray(value_fn(point), tree.accumulation_dtype())


def varying_axes(*trees: Any) -> frozenset[Any]:
    """Returns the axes of `jax.shard_map` over which a leaf of `trees`, or its type, varies."""
    axes: frozenset[Any] = frozenset()
    for leaf in jax.tree.leaves(trees):
        aval = leaf if isinstance(leaf, jax.core.AbstractValue) else jax.typeof(leaf)
        manual = getattr(aval, "manual_axis_type", None)  # `vma` in older JAX
        axes |= getattr(aval, "vma", frozenset()) if manual is None else manual.varying
    return axes


def varying_like(values: Any, *like: Any) -> Any:
    """Returns `values` marked as varying over the axes of `jax.shard_map` over which `like` varies.

    Both branches of a conditional, and each pass of a loop, must return the same types.
    """
    axes = varying_axes(like)
    if not axes:
        return values

    def mark(leaf: jax.Array) -> jax.Array:
        missing = tuple(axes - varying_axes(leaf))
        if not missing:
            return leaf
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(leaf, missing, to="varying")
        return jax.lax.pvary(leaf, missing)  # type: ignore[attr-defined]  # in older JAX

    return jax.tree.map(mark, values)
