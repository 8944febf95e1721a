"""The length of the update."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax import _value_fn
from xsam_jax._schedules import advance, at_count, schedule_state
from xsam_jax._value_fn import ValueFn
from xsam_jax.core import AscentPath

_LENGTHS = {
    "last": lambda path: tree.norm(path.last_gradient),
    "first": lambda path: tree.norm(path.first_gradient),
    "mean": lambda path: path.gradient_norms.mean(),
    "max": lambda path: path.gradient_norms.max(),
}
SCALES = (*_LENGTHS, "slope", "slope_max")


def match_norm(
    scale: str = "last", rho_max: optax.ScalarOrSchedule | None = None, *, unit: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Rescales a direction to a given length, :math:`s\, u / \|u\|`.

    ============= ==============================================================
    `scale`       :math:`s`
    ============= ==============================================================
    "last"        :math:`\|g_k\|`, as in SAM (default)
    "first"       :math:`\|g_0\|`
    "mean"        :math:`\sum_{i=0}^k \|g_i\| / (k+1)`
    "max"         :math:`\max_{i=0}^k \|g_i\|`
    "slope"       :math:`(L(\theta_k) - L(\theta_0)) / \|\theta_k - \theta_0\|`
    "slope_max"   :math:`(L(\theta_0 + \rho_m u/\|u\|) - L(\theta_0)) / \rho_m`
    ============= ==============================================================

    The slopes are signed, as published: if the loss fell along the ascent, the step is reversed.
    They need :math:`L(\theta_0)`, the extra argument `value`, or one forward pass. "slope_max"
    takes one more forward pass, and so does "slope" if a `grad_fn` took the gradients. Without a
    displacement "slope" is its limit, :math:`\|g_k\|`.

    Args:
      scale: the name of the length. Static.
      rho_max: :math:`\rho_m > 0`, or a schedule of it, for "slope_max" only.
      unit: whether `updates` has norm 1 already, such as the result of `slerp` (default False). It
        saves a pass over the parameters. Static.

    Returns:
      A descent. Its state is an `optax.ScaleByScheduleState` if `rho_max` is a schedule, and empty
      otherwise. A zero direction stays zero.

    Raises:
      TypeError: `rho_max` is neither a real number nor a schedule.
      ValueError: `scale` is unknown, `rho_max` missing or out of range. In `update`, `path` is
        missing, or `value_fn` where a slope needs it.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> from xsam_jax.core import sharpness_aware
      >>> ascent = optax.chain(normalize(), scale_by_radius(0.1))
      >>> tx = sharpness_aware(ascent, match_norm("first"))  # SAM's direction, SGD's length

    References:
      Chen and Zhou, `Revisiting Sharpness-Aware Minimization: A More Faithful and Effective
      Implementation <https://arxiv.org/abs/2603.10048>`_, ICLR 2026, appendix F
    """
    checks.choice("scale", scale, SCALES)
    if scale == "slope_max":
        checks.present(
            rho_max, "scale='slope_max' is a slope over rho_max: give match_norm rho_max"
        )
    if rho_max is not None:
        checks.real("rho_max", rho_max, above=0.0, schedule=True)

    def init_fn(params: optax.Params) -> optax.OptState:
        del params
        return schedule_state(rho_max)

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        path: AscentPath | None = None,
        value_fn: ValueFn | None = None,
        value: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        path = checks.ascent_path("match_norm", path, params)
        with_norm = tree.scale if unit else tree.with_norm
        if scale in _LENGTHS:
            length = _LENGTHS[scale](path)
        else:
            limit = tree.norm(path.last_gradient)
            displacement, end = path.displacement, path.last_value
            if scale == "slope_max":
                displacement, end = with_norm(at_count(rho_max, state), updates), None
            length = _slope(displacement, end, limit, params, value_fn, value)
        return with_norm(length, updates), advance(state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _slope(
    displacement: Any,
    end: jax.Array | None,
    limit: jax.Array,
    params: optax.Params,
    value_fn: ValueFn | None,
    start: jax.Array | None,
) -> jax.Array:
    """Returns the slope of the loss over a displacement, and `limit` if that is zero."""
    value_fn = _value_fn.require_value_fn("a slope is a difference of losses", value_fn)
    start = value_fn(params) if start is None else start
    end = _value_fn.value_at(value_fn, params, displacement) if end is None else end
    distance = tree.norm(displacement)
    rise = jnp.asarray(end, limit.dtype) - jnp.asarray(start, limit.dtype)
    return jnp.where(distance > 0, rise / jnp.where(distance > 0, distance, 1.0), limit)
