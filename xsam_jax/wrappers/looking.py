"""A sharpness-aware step whose direction is used again (LookSAM)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xsam_jax import checks, tree
from xsam_jax.alias import sam
from xsam_jax.base import at_count, varying_like
from xsam_jax.gating import GradientCounter, switch
from xsam_jax.gating import every as every_nth


class LookSamState(NamedTuple):
    r"""What LookSAM remembers between steps.

    Attributes:
      count: the number of training steps taken, int32 scalar.
      gradient_evaluations: the number of gradients taken so far, those of the caller included.
      orthogonal: the unit direction :math:`\hat g_v` of the last sharpness-aware step, float32
        (float64 under x64), with the structure of the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as in Optax
    gradient_evaluations: jax.Array
    orthogonal: Any


def look_sam(
    rho: optax.ScalarOrSchedule, alpha: float | jax.Array, every: int | jax.Array
) -> optax.GradientTransformationExtraArgs:
    r"""LookSAM: a SAM step now and then, whose new direction is used again in between.

    Where `count % every == 0` it is a step of `sam`, which stores what its gradient has beside
    the clean one; otherwise that direction is added to the clean gradient:

    .. math:: g_v = g_1 - \langle g_1, \hat g_0\rangle\,\hat g_0, \qquad
              \text{update } g_0 + \alpha \|g_0\|\,\hat g_v.

    Norms and projections are global. A step costs one further gradient every `every` steps, and
    none in between. The conditional is a `jax.lax.cond`; see `xsam_jax.gating` for `sharp=`, which
    decides outside.

    Args:
      rho: the length of the ascent, at least 0; a number, which may be traced, or a schedule;
        published 0.1.
      alpha: :math:`\alpha`, any real number; published 0.7. May be traced.
      every: the number of steps from one SAM step to the next, at least 1, the first step included;
        published 5 to 10. 1 is `sam`. May be traced.

    Returns:
      A gradient transformation with state `LookSamState`. Gradients keep their dtype.

    Raises:
      TypeError: `rho` or `alpha` is not a real number, or `every` is not an integer.
      ValueError: a radius is negative, or `every` is less than 1. `update` raises what
        `sharpness_aware` says.

    Example:
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(look_sam(rho=0.1, alpha=0.7, every=5), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.205', '-0.878']

    References:
      Liu et al., `Towards Efficient and Scalable Sharpness-Aware Minimization
      <https://arxiv.org/abs/2203.02714>`_, 2022
    """
    checks.real("alpha", alpha)
    checks.integer("every", every, 1)
    checks.real("rho", rho, minimum=0.0, schedule=True)
    gate = every_nth(every)

    def init_fn(params: optax.Params) -> LookSamState:
        checks.parameters(params)
        # Two arrays, as one cannot be donated twice.
        count, evaluations = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        dtype = tree.accumulation_dtype()
        orthogonal = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=dtype), params)
        return LookSamState(count, evaluations, orthogonal)

    def update_fn(
        updates: optax.Updates,
        state: LookSamState,
        params: optax.Params | None = None,
        *,
        sharp: bool | jax.Array | None = None,
        count_gradients: Callable[[Any], None] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LookSamState]:
        # Made here, since a schedule of radii counts all steps, not those of sam alone.
        climber = sam(at_count(rho, state))

        def climb(orthogonal: Any) -> tuple[Any, jax.Array, Any]:
            counter = GradientCounter()
            gradient, _ = climber.update(
                updates, climber.init(params), params, count_gradients=counter, **extra_args
            )
            further = jnp.asarray(counter.total, jnp.int32)
            direction = _orthogonal_direction(gradient, updates, orthogonal)
            # The types of the other branch, which adds the stored direction.
            gradient, direction = varying_like((gradient, direction), orthogonal)
            return gradient, further, direction

        def reuse(orthogonal: Any) -> tuple[Any, jax.Array, Any]:
            gradient = tree.combine(1.0, updates, alpha * tree.norm(updates), orthogonal)
            return tree.cast_like(gradient, updates), jnp.zeros((), jnp.int32), orthogonal

        sharp = jnp.asarray(gate(state.count)) if sharp is None else sharp
        last_orthogonal = varying_like(state.orthogonal, updates)
        result, further, orthogonal = switch(sharp, climb, reuse, last_orthogonal)
        if count_gradients is not None:
            count_gradients(further)
        evaluations = state.gradient_evaluations + 1 + further
        count = optax.safe_increment(state.count)
        return result, LookSamState(count, evaluations, orthogonal)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _orthogonal_direction(gradient: Any, clean: Any, fallback: Any) -> Any:
    """Returns the unit direction of what `gradient` has beside `clean`, zero for a remnant."""
    rest, length = tree.reject(gradient, clean), tree.norm(gradient)
    # Where both are parallel to rounding, a direction would be noise, at full length.
    noise = 16 * jnp.finfo(length.dtype).eps * length
    factor = jnp.where(tree.norm(rest) > noise, tree.reciprocal_norm(rest), 0.0)
    sound = jnp.isfinite(length) & jnp.isfinite(tree.norm(clean))
    return jax.tree.map(
        lambda new, old: jnp.where(sound, new, old), tree.scale(factor, rest), fallback
    )
