"""Sharpness beside the base optimizer (decoupled WSAM)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from xsam_jax import checks, tree
from xsam_jax.alias import sam
from xsam_jax.base import Radius


class DecoupledWsamState(NamedTuple):
    """The states of the parts.

    Attributes:
      sam: the state of the transform that finds the gradient at the end of the ascent.
      correction: the state of the learning rate.
      inner: the state of the base optimizer.
    """

    sam: optax.OptState
    correction: optax.OptState
    inner: optax.OptState

    @property
    def returns_updates(self) -> bool:
        """True, for `gated` to see: these are not gradients."""
        return True


def decoupled_wsam(
    inner: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    rho: Radius,
    gamma: float | jax.Array,
) -> optax.GradientTransformationExtraArgs:
    r"""Weighted SAM (WSAM) whose sharpness term stays out of momentum: the official default.

    The base optimizer takes its step with the clean gradient, and the sharpness term, weighted by
    :math:`a = \gamma / (1-\gamma)`, is subtracted beside it:

    .. math:: \theta \leftarrow \theta + \mathrm{inner}(g_0) - \eta\, a\,(g_1 - g_0).

    An optimizer, not a gradient transformation to be put in front of one: it needs the learning
    rate, and nothing comes after it. At :math:`\gamma = 1/2` with plain gradient descent inside it
    is SAM. `wsam` is the coupled form.

    Args:
      inner: the base optimizer, such as `optax.sgd(0.1, momentum=0.9)`. The sharpness term also
        moves what it freezes: to freeze, chain `optax.masked(optax.set_to_zero(), ...)` after all.
      learning_rate: :math:`\eta`, that of `inner`; a number, which may be traced, or a schedule.
      rho: the length of the ascent, as in `sam`; official default 0.05.
      gamma: :math:`\gamma`, in [0, 1); official default 0.9. May be traced.

    Returns:
      An optimizer with state `DecoupledWsamState`; further extra arguments reach `inner`, and the
      dtypes of the update are those of `inner`.

    Raises:
      TypeError: `inner` is not a gradient transformation, or another argument not a real number.
      ValueError: an argument is out of range. `update` raises what `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> tx = decoupled_wsam(optax.sgd(0.1, momentum=0.9), learning_rate=0.1, rho=0.1, gamma=0.5)
      >>> params = jnp.array([3.0, 4.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> updates
      Array([-0.612, -0.816], dtype=float32)

    References:
      Yue et al., `Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
      Term <https://arxiv.org/abs/2305.15817>`_, 2023
    """
    checks.transformation("inner", inner)
    checks.real("learning_rate", learning_rate, minimum=0.0, schedule=True)
    checks.real("gamma", gamma, minimum=0.0, below=1.0)
    climber = sam(rho)
    weight = gamma / (1.0 - gamma)
    correction = optax.scale_by_learning_rate(learning_rate)
    base = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> DecoupledWsamState:
        return DecoupledWsamState(climber.init(params), correction.init(params), base.init(params))

    def update_fn(
        updates: optax.Updates,
        state: DecoupledWsamState,
        params: optax.Params | None = None,
        *,
        count_gradients: Callable[[Any], None] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DecoupledWsamState]:
        gradient, sam_state = climber.update(
            updates, state.sam, params, count_gradients=count_gradients, **extra_args
        )
        sharpness = tree.scale(weight, tree.combine(1.0, gradient, -1.0, updates))
        step, correction_state = correction.update(sharpness, state.correction)
        base_step, inner_state = base.update(updates, state.inner, params, **extra_args)
        total = tree.cast_like(tree.total([base_step, step]), base_step)
        return total, DecoupledWsamState(sam_state, correction_state, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
