"""LookSAM."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax._devices import varying_like
from xsam_jax._schedules import at_count
from xsam_jax.gating.gated import switch
from xsam_jax.gating.gates import every as every_nth
from xsam_jax.methods.sam import sam


class LookSamState(NamedTuple):
    r"""The state of LookSAM.

    Attributes:
      count: the number of training steps, int32 scalar.
      sharp_steps: the number of sharpness-aware steps among them, int32 scalar.
      orthogonal: the unit direction :math:`\hat{g_v}` of the last sharpness-aware step, float32
        (float64 under x64), with the structure of the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as in Optax
    sharp_steps: jax.Array
    orthogonal: Any


def look_sam(
    rho: optax.ScalarOrSchedule, alpha: float | jax.Array, every: int | jax.Array
) -> optax.GradientTransformationExtraArgs:
    r"""LookSAM: takes a SAM step every few steps, and reuses its direction in between.

    If `count % every == 0`, it is a step of `sam`, and it stores the component of the SAM gradient
    orthogonal to the first gradient. Other steps add that direction to the first gradient:

    .. math:: g_v = g_1 - \langle g_1, \hat{g_0}\rangle\,\hat{g_0}, \qquad
              \text{update } g_0 + \alpha \|g_0\|\,\hat{g_v}.

    Norms and projections are over all parameters. Use it in place of `sam` when the second gradient
    is too expensive: it costs one further gradient every `every` steps, and none in between. It
    needs a copy of the parameters for the direction. The conditional is a `jax.lax.cond`. See
    `xsam_jax.gating` for the argument `sharp` of `update`, which decides outside the program.

    Args:
      rho: :math:`\rho \ge 0`, the length of the ascent, or a schedule of it, published 0.1.
      alpha: :math:`\alpha`, any real number, published 0.7. A larger one adds more of the stored
        direction.
      every: the number of steps from one SAM step to the next, at least 1, published 5 to 10. More
        steps make training cheaper, and the stored direction older. 1 is `sam`. The first step is a
        SAM step.

    Returns:
      A gradient transformation with state `LookSamState`.

    Raises:
      TypeError: `rho` or `alpha` is not a real number, or `every` is not an integer.
      ValueError: a radius is negative, or `every` is less than 1.

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
        # Two arrays: one array cannot be donated twice.
        count, sharp_steps = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        dtype = tree.accumulation_dtype()
        orthogonal = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=dtype), params)
        return LookSamState(count, sharp_steps, orthogonal)

    def update_fn(
        updates: optax.Updates,
        state: LookSamState,
        params: optax.Params | None = None,
        *,
        sharp: bool | jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LookSamState]:
        # Made here: a schedule of radii counts all steps, not the SAM steps alone.
        method = sam(at_count(rho, state))

        def sam_step(orthogonal: Any) -> tuple[Any, Any]:
            gradient, _ = method.update(updates, method.init(params), params, **extra_args)
            direction = _orthogonal_direction(gradient, updates, orthogonal)
            # The other branch adds the stored direction, so its types vary like that.
            return varying_like((gradient, direction), orthogonal)

        def reuse_step(orthogonal: Any) -> tuple[Any, Any]:
            gradient = tree.combine(1.0, updates, alpha * tree.norm(updates), orthogonal)
            return tree.cast_like(gradient, updates), orthogonal

        sharp = gate(state.count) if sharp is None else sharp
        last_orthogonal = varying_like(state.orthogonal, updates)
        result, orthogonal = switch(sharp, sam_step, reuse_step, last_orthogonal)
        count = optax.safe_increment(state.count)
        sharp_steps = state.sharp_steps + jnp.asarray(sharp, jnp.int32)
        return result, LookSamState(count, sharp_steps, orthogonal)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _orthogonal_direction(gradient: Any, first: Any, fallback: Any) -> Any:
    """Returns the unit direction of `gradient` orthogonal to `first`, or zero if it is rounding."""
    rest, length = tree.reject(gradient, first), tree.norm(gradient)
    # If both are parallel to 16 roundings, the direction would be noise of full length.
    noise = 16 * jnp.finfo(length.dtype).eps * length
    factor = jnp.where(tree.norm(rest) > noise, tree.reciprocal_norm(rest), 0.0)
    finite = jnp.isfinite(length) & jnp.isfinite(tree.norm(first))
    return jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), tree.scale(factor, rest), fallback
    )
