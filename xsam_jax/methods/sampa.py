"""SAMPa: SAM with two gradients that do not wait for each other."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax import _value_fn
from xsam_jax._look_ahead import radius_at
from xsam_jax._schedules import advance, at_count, schedule_state
from xsam_jax.core import init_slot


class SampaState(NamedTuple):
    """The state of SAMPa.

    Attributes:
      radius: the length of the next perturbation, float32 (float64 under x64) scalar.
      gradient: the gradient :math:`q` of the last step, with the dtypes of the parameters.
      schedule: a step counter if a number is a schedule, and empty otherwise.
      base: the state of the base optimizer.
    """

    radius: jax.Array
    gradient: optax.Updates
    schedule: optax.OptState
    base: optax.OptState

    def perturbation(self, params: optax.Params) -> optax.Updates:
        """Returns the perturbation of the next gradient, for `look_ahead`."""
        del params
        return tree.with_norm(self.radius, self.gradient)


def sampa(
    optimizer: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    rho: optax.ScalarOrSchedule,
    weight: float | jax.Array = 0.2,
    *,
    convention: str = "paper",
) -> optax.GradientTransformationExtraArgs:
    r"""SAMPa: SAM whose two gradients can be computed in parallel.

    The ascent is along :math:`q_t`, a gradient of the last step (:math:`q_0 = 0`). With
    :math:`\eta` the learning rate and :math:`\lambda` the weight,

    .. math:: g_t = \nabla L(\theta_t + \rho\, q_t / \|q_t\|), \qquad
              q_{t+1} = \nabla L(\theta_t - \eta\, q_t), \\
              \theta_{t+1} = \theta_t + \mathrm{optimizer}((1-\lambda) g_t + \lambda q_{t+1}).

    The caller takes :math:`g_t` at `look_ahead`. The update takes :math:`q_{t+1}`, from
    `value_fn`. Neither needs the other, so a second group of devices can halve the time of a step.
    On one device a step costs as much as one of `sam`, and XLA may hold the activations of both.

    Use it in place of `sam` where a second device is at hand for each, or to reproduce the paper.
    It needs one copy of the parameters, and is an optimizer with the base optimizer inside.

    Args:
      optimizer: the base optimizer.
      learning_rate: :math:`\eta`, that of `optimizer`, or a schedule of it.
      rho: :math:`\rho \ge 0`, the length of the ascent as in `sam`, or a schedule of it.
      weight: :math:`\lambda` in [0, 1] (default 0.2, published). 0 keeps the gradient of the
        ascent, 1 that at the auxiliary parameters.
      convention: "paper" (default), or "official" for the auxiliary parameters
        :math:`\theta_t + \mathrm{optimizer}(q_t)`, which include momentum and weight decay. In the
        official code :math:`g_t` is the gradient of the last batch: pass that, if you want it.
        Static.

    Returns:
      An optimizer with state `SampaState`. Its update needs `value_fn` or `grad_fn`, as that
      of `sharpness_aware`. Extra arguments reach `optimizer`.

    Raises:
      TypeError: `optimizer` is not a gradient transformation, or another argument is not a real
        number.
      ValueError: an argument is out of range. In `update`, `params`, or both `value_fn` and
        `grad_fn`, are missing.

    Example:
      >>> from xsam_jax import look_ahead
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = sampa(optax.sgd(0.05), learning_rate=0.05, rho=0.1)
      >>> params = jnp.array([1.0, 1.0])
      >>> opt_state = tx.init(params)
      >>> for _ in range(2):
      ...     grads = jax.grad(loss_fn)(look_ahead(opt_state, params))
      ...     updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      ...     params = optax.apply_updates(params, updates)
      >>> print([f"{p:.3f}" for p in params])
      ['0.810', '0.361']

    References:
      Xie et al., `SAMPa: Sharpness-aware Minimization Parallelized
      <https://arxiv.org/abs/2410.10683>`_, 2024
    """
    checks.transformation("optimizer", optimizer)
    checks.real("learning_rate", learning_rate, minimum=0.0, schedule=True)
    checks.real("rho", rho, minimum=0.0, schedule=True)
    checks.real("weight", weight, minimum=0.0, maximum=1.0)
    checks.convention(convention)
    base = optax.with_extra_args_support(optimizer)

    def init_fn(params: optax.Params) -> SampaState:
        checks.parameters(params)
        schedule = schedule_state(rho, learning_rate)
        zeros = jax.tree.map(jnp.zeros_like, params)
        inner = init_slot("optimizer", base, params)
        return SampaState(radius_at(rho, schedule), zeros, schedule, inner)

    def update_fn(
        updates: optax.Updates,
        state: SampaState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SampaState]:
        checks.parameters_of_update(params)
        checks.state(state, SampaState)
        if convention == "official":
            step, _ = base.update(state.gradient, state.base, params, **extra_args)
        else:
            rate = at_count(learning_rate, state.schedule)
            step = tree.scale(-jnp.asarray(rate), state.gradient)
        auxiliary = optax.apply_updates(params, step)
        gradient = _value_fn.gradient_of(auxiliary, updates, **extra_args)
        mixed = tree.combine(1.0 - weight, updates, weight, gradient)
        mixed = tree.cast_like(mixed, updates)
        steps, inner = base.update(mixed, state.base, params, **extra_args)
        gradient = tree.finite_or(tree.cast_like(gradient, state.gradient), state.gradient)
        schedule = advance(state.schedule)
        return steps, SampaState(radius_at(rho, schedule), gradient, schedule, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
