"""AsyncSAM, with a delay of one step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax import _value_fn
from xsam_jax.core import init_slot
from xsam_jax.methods._ascent_of_length import ascent_of_length


class AsyncSamState(NamedTuple):
    """The state of AsyncSAM.

    Attributes:
      ahead: the perturbation of the next gradient, with the shapes and dtypes of the parameters.
      ascent: the state of the ascent, with a step counter if `rho` is a schedule.
      base: the state of the base optimizer.
    """

    ahead: optax.Updates
    ascent: optax.OptState
    base: optax.OptState

    def perturbation(self, params: optax.Params) -> optax.Updates:
        """Returns the perturbation of the next gradient, for `look_ahead`."""
        del params
        return self.ahead


def async_sam(
    optimizer: optax.GradientTransformation,
    rho: optax.ScalarOrSchedule,
    *,
    reuse: bool = True,
    direction: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AsyncSAM: ascends along the gradient of the last step, at the cost of the base optimizer.

    With :math:`p_t` the gradient of the last step and :math:`p_0 = 0`,

    .. math:: g_t = \nabla L_t(\theta_t + \rho\, p_t / \|p_t\|), \qquad
              \theta_{t+1} = \theta_t + \mathrm{optimizer}(g_t), \qquad p_{t+1} = g_t.

    This is `sam` with an ascent that is one step old. The paper computes it on a second device, in
    parallel, as the gradient at the parameters, :math:`p_{t+1} = \nabla L_t(\theta_t)`
    (`reuse=False`).

    Use it in place of `sam` when a second gradient is too expensive, and batches are large enough
    for gradients of two steps to agree. It needs one copy of the parameters. It is an optimizer
    with the base optimizer inside, and the caller takes the gradient at `look_ahead`.

    Args:
      optimizer: the base optimizer.
      rho: :math:`\rho \ge 0`, the length of the ascent as in `sam`, or a schedule of it. 0 is the
        base optimizer.
      reuse: whether :math:`p` is the gradient that the caller passes (default True), or one at the
        parameters, which costs a further gradient. The two do not depend on each other. Static.
      direction: the ascent without its radius, as in `xsam`, such as `scale_by_magnitude(0.01)`
        for the ascent of ASAM. It normalizes. The default None is `normalize()`. Static.

    Returns:
      An optimizer with state `AsyncSamState`. Extra arguments reach `optimizer`. With
      `reuse=False` its update needs `value_fn` or `grad_fn`, as that of `sharpness_aware`.

    Raises:
      TypeError: `optimizer` is not a gradient transformation, or `rho` not a real number.
      ValueError: `rho` is negative. In `update` with `reuse=False`, `params`, or both `value_fn`
        and `grad_fn`, are missing.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from xsam_jax import look_ahead
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = async_sam(optax.sgd(0.05, momentum=0.9), rho=0.1)
      >>> params = jnp.array([1.0, 1.0])
      >>> opt_state = tx.init(params)
      >>> for _ in range(2):
      ...     grads = jax.grad(loss_fn)(look_ahead(opt_state, params))
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print([f"{p:.3f}" for p in params])
      ['0.718', '-0.039']

    References:
      Jo et al., `Asynchronous Sharpness-Aware Minimization For Fast and Accurate Deep Learning
      <https://arxiv.org/abs/2503.11147>`_, 2025
    """
    checks.transformation("optimizer", optimizer)
    checks.real("rho", rho, minimum=0.0, schedule=True)
    # An update makes the perturbation of the step after it.
    next_rho = (lambda count: rho(count + 1)) if callable(rho) else rho
    ascent = optax.with_extra_args_support(ascent_of_length(next_rho, direction=direction))
    base = optax.with_extra_args_support(optimizer)

    def init_fn(params: optax.Params) -> AsyncSamState:
        checks.parameters(params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        ascent_state = init_slot("direction", ascent, params)
        return AsyncSamState(zeros, ascent_state, init_slot("optimizer", base, params))

    def update_fn(
        updates: optax.Updates,
        state: AsyncSamState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AsyncSamState]:
        checks.state(state, AsyncSamState)
        gradient = updates
        if not reuse:
            checks.parameters_of_update(params)
            gradient = _value_fn.gradient_of(params, updates, **extra_args)
        ahead, ascent_state = ascent.update(gradient, state.ascent, params, **extra_args)
        ahead = tree.finite_or(tree.cast_like(ahead, state.ahead), state.ahead)
        steps, inner = base.update(updates, state.base, params, **extra_args)
        return steps, AsyncSamState(ahead, ascent_state, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
