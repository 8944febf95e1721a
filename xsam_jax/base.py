"""The vocabulary: what an ascent leaves behind, and the types that recur in signatures."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

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


class AscentPath(NamedTuple):
    r"""The route of one ascent, :math:`\theta_0, g_0, \dots, \theta_k, g_k`, by ends and sums.

    A descent receives it as the extra argument `path`. Under `jax.jit` a field that the descent
    does not read is not computed. Sums and norms are float32, or float64 under x64.

    Attributes:
      displacement: :math:`\theta_k - \theta_0` as the sum of the perturbations, a tree like the
        parameters, float32 or float64.
      first_gradient: :math:`g_0`, as the caller gave it.
      last_gradient: :math:`g_k`.
      gradient_sum: :math:`\sum_{i=0}^k g_i`.
      unit_gradient_sum: :math:`\sum_{i=0}^k g_i / \|g_i\|`.
      gradient_norms: :math:`\|g_0\|, \dots, \|g_k\|`, of shape (k + 1,).
      last_value: :math:`L(\theta_k)` where the last gradient was taken with `jax.value_and_grad`,
        None where a `grad_fn` hides it.
    """

    displacement: Any
    first_gradient: Any
    last_gradient: Any
    gradient_sum: Any
    unit_gradient_sum: Any
    gradient_norms: jax.Array
    last_value: jax.Array | None


def at_count(value: Any, count: jax.Array | None) -> Any:
    """Returns `value`, or its value at `count` where it is a schedule."""
    return value(count) if callable(value) else value


def value_at(value_fn: ValueFn, params: optax.Params, displacement: Any) -> jax.Array:
    """Returns the loss at `params + displacement`, float32 (float64 under x64)."""
    point = optax.apply_updates(params, displacement)
    return jnp.asarray(value_fn(point), tree.accumulation_dtype())
