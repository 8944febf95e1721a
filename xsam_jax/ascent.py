r"""Ascents: gradient to perturbation, uphill sign, as Optax gradient transformations.

An ascent is an `optax.chain` of a direction and a length, such as
`chain(normalize(), scale_by_radius(rho))`. `sharpness_aware` calls it with `updates` the gradient
:math:`g_i`, `params` the point :math:`\theta_i`, and the extra argument `ascent_step` the Python
integer :math:`i`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xsam_jax import checks, tree
from xsam_jax.base import Radius, at_count


def normalize() -> optax.GradientTransformation:
    r"""Divides by the norm over the whole tree: :math:`g / \|g\|`, and 0 for a zero gradient.

    The norm is accumulated in float32 (float64 under x64) and guarded: a gradient that vanishes
    gives a zero perturbation, one that overflows gives NaN.

    Returns:
      A stateless transformation. Dtypes are those of the incoming gradient.

    Example:
      >>> tx = normalize()
      >>> updates, _ = tx.update(jnp.array([3.0, 4.0]), tx.init(None))
      >>> updates
      Array([0.6, 0.8], dtype=float32)

    References:
      Foret et al., `Sharpness-Aware Minimization for Efficiently Improving Generalization
      <https://arxiv.org/abs/2010.01412>`_, 2021
    """
    return optax.stateless(lambda updates, params: _cast_like(tree.unit(updates), updates))


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
    scheduled = any(callable(item) for item in (radii or [radius]))

    def init_fn(params: optax.Params) -> optax.OptState:
        del params
        return (
            optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
            if scheduled
            else optax.EmptyState()
        )

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
        length = radius if radii is None else radii[ascent_step]
        if scheduled:
            length = at_count(length, state.count)
            state = optax.ScaleByScheduleState(optax.safe_increment(state.count))
        return _cast_like(tree.scale(jnp.asarray(length), updates), updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _cast_like(updates: optax.Updates, like: optax.Updates) -> optax.Updates:
    return jax.tree.map(lambda u, g: u.astype(jnp.result_type(g)), updates, like)
