r"""The one algorithm: climb, look, and return the gradient that a flat minimum asks for."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from xsam_jax import checks, tree
from xsam_jax.base import AscentPath, GradFn, ValueFn


class SharpnessAwareState(NamedTuple):
    """The states of the two slots.

    Attributes:
      ascent: the state of the ascent, as its first call in a step left it.
      descent: the state of the descent.
    """

    ascent: optax.OptState
    descent: optax.OptState


def sharpness_aware(
    ascent: optax.GradientTransformation,
    descent: optax.GradientTransformation | None = None,
    *,
    steps: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns gradients into sharpness-aware gradients: one ascent, one descent, any of each.

    With :math:`g_0` the incoming gradient at the parameters :math:`\theta_0`, for
    :math:`i = 0, \dots, k-1`

    .. math:: \theta_{i+1} = \theta_i + \mathrm{ascent}(g_i), \qquad
              g_{i+1} = \nabla L(\theta_{i+1}),

    and the result is :math:`\mathrm{descent}(g_k, \mathrm{path})`.

    This is a gradient transformation, not an optimizer: it is the first link of an `optax.chain`,
    and what follows sees the sharpness-aware gradient. Alone, or last in the chain, it leads
    uphill, as any gradient does. Weight decay that follows is not part of the ascent. Whatever the
    incoming gradient is, the ascent starts with it: pass the gradient of another batch to climb on
    that one.

    **Update.** `update(updates, state, params, *, value_fn, grad_fn=None, value=None, **extra)`:

    * `value_fn(params)` is the loss, a real scalar, as a pure function of the parameters: it
      closes over the batch, the dropout key, and whatever else the loss depends on. The ascent
      takes `steps` gradients, beside the incoming one; a descent may take more.
    * `grad_fn(params)` replaces `jax.grad(value_fn)` where there is a better way (microbatches,
      loss scaling, collectives). It alone suffices unless the descent looks at losses. Line
      searches later in the chain refuse it: they know `value_fn`, `value` and `grad`.
    * On several devices both are means over all of them. In `jax.shard_map`, `value_fn` is the
      `jax.lax.pmean` of the loss; in `jax.pmap`, pass the `pmean` of the gradient as `grad_fn`,
      too, since nothing there can detect that it is missing.
    * `value` is the loss at `params`, for those descents that would otherwise evaluate it.
    * `count_gradients(number)`, where given, is called while the step is traced, once for each
      gradient that is evaluated; `xsam_jax.gating` uses it.
    * Further extra arguments are passed on to the ascent and the descent.

    **Slots.** Both are Optax gradient transformations, so chains, masks inside the ascent, and
    schedules work. The ascent returns the perturbation itself, uphill. Within a training step it
    is one map: every :math:`g_i` is transformed from the same incoming state, and the state kept
    is the one after :math:`g_0`. It is given `params` :math:`= \theta_i`, `value`
    :math:`= L(\theta_i)` where known, and the Python integer `ascent_step` :math:`= i`. The
    descent is given :math:`g_k`, `params` :math:`= \theta_0`, and `path`, an `AscentPath`. Both get
    `value_fn` and a `grad_fn`, which exists in any case.

    **Numbers.** Norms and angles are float32, or float64 under x64. The result has the dtypes of
    the incoming gradient, the perturbed parameters those of `params`; in bfloat16 parameters most
    of a perturbation is rounded away, so keep parameters in float32 and compute in bfloat16. A
    zero gradient gives a zero perturbation; NaN in any gradient comes out as NaN, for
    `optax.apply_if_finite` *after* this link to see.

    Args:
      ascent: gradient to perturbation, such as `chain(normalize(), scale_by_radius(rho))`.
      descent: path to gradient; None is `optax.identity()`, which returns :math:`g_k`.
      steps: :math:`k \ge 1`, the number of ascent steps. Static; the steps are unrolled.

    Returns:
      A gradient transformation with state `SharpnessAwareState`.

    Raises:
      TypeError: `ascent` or `descent` is not a gradient transformation, or, in `init`, a whole
        method; `steps` is not an integer; in `update`, `value_fn` is not a function that returns a
        real scalar, `grad_fn` not one that returns a gradient, the gradient does not have the
        structure of `params`, or a parameter is not a real floating-point array.
      ValueError: `steps` is less than 1; in `update`, `params`, or both of `value_fn` and
        `grad_fn`, are missing, the gradient does not have the shapes of `params`, `value_fn`
        ignores its argument or, in `jax.shard_map`, is the loss of one device or of shards of the
        parameters, or `grad_fn` the gradient of one device where the incoming one is a mean, or
        `params` was cut by `optax.masked` or `optax.partition`.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> climb = optax.chain(normalize(), scale_by_radius(0.1))
      >>> tx = optax.chain(sharpness_aware(climb), optax.sgd(0.1))
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> params = jnp.array([3.0, 4.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> updates  # the gradient at (3.06, 4.08), times -0.1
      Array([-0.612, -0.816], dtype=float32)

    References:
      Foret et al., `Sharpness-Aware Minimization for Efficiently Improving Generalization
      <https://arxiv.org/abs/2010.01412>`_, 2021
    """
    descent = optax.identity() if descent is None else descent
    checks.transformation("ascent", ascent)
    checks.transformation("descent", descent)
    checks.static_integer("steps", steps, 1)
    ascent = optax.with_extra_args_support(ascent)
    descent = optax.with_extra_args_support(descent)

    def init_fn(params: optax.Params) -> SharpnessAwareState:
        checks.parameters(params)
        return SharpnessAwareState(
            _slot_state("ascent", ascent, params), _slot_state("descent", descent, params)
        )

    def update_fn(
        updates: optax.Updates,
        state: SharpnessAwareState,
        params: optax.Params | None = None,
        *,
        value_fn: ValueFn | None = None,
        grad_fn: GradFn | None = None,
        value: jax.Array | None = None,
        count_gradients: Callable[[Any], None] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SharpnessAwareState]:
        checks.present(
            params, "params is missing: tx.update(grads, opt_state, params, value_fn=...)"
        )
        checks.parameters(params)
        fix = "pass grads = jax.grad(loss)(params)"
        checks.gradients_like("grads must be", updates, params, fix)
        value_and_gradient_at = _value_and_gradient_function(
            value_fn, grad_fn, params, updates, value, count_gradients
        )
        functions = {"value_fn": value_fn, "grad_fn": lambda point: value_and_gradient_at(point)[1]}
        point, gradient, point_value = params, updates, value
        perturbations, gradients, ascent_states = [], [updates], []
        for step in range(steps):
            perturbation, ascent_state = ascent.update(
                gradient,
                state.ascent,
                point,
                ascent_step=step,
                value=point_value,
                **functions,
                **extra_args,
            )
            point = optax.apply_updates(point, perturbation)
            point_value, gradient = value_and_gradient_at(point)
            perturbations.append(perturbation)
            gradients.append(gradient)
            ascent_states.append(ascent_state)

        result, descent_state = descent.update(
            gradient,
            state.descent,
            params,
            path=AscentPath(perturbations, gradients, value, point_value),
            value=value,
            **functions,
            **extra_args,
        )
        # A loss such as the hinge has a finite gradient at parameters that are NaN.
        sound = jnp.isfinite(sum(tree.norm(gradient) for gradient in gradients[:-1]))

        def finish(result: jax.Array, gradient: jax.Array) -> jax.Array:
            return jnp.where(sound, jnp.asarray(result, jnp.result_type(gradient)), jnp.nan)

        result = jax.tree.map(finish, result, updates)
        return result, SharpnessAwareState(ascent_states[0], descent_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _slot_state(
    name: str, slot: optax.GradientTransformation, params: optax.Params
) -> optax.OptState:
    state = slot.init(params)
    if checks.has_node(state, lambda node: isinstance(node, SharpnessAwareState)):
        raise TypeError(
            f"{name} must be one slot of a method, got a whole method: for asam(rho) as the ascent "
            "write optax.chain(scale_by_magnitude(), scale_by_radius(rho)), both of "
            "xsam_jax.ascent"
        )
    return state


def _value_and_gradient_function(
    value_fn: ValueFn | None,
    grad_fn: GradFn | None,
    params: optax.Params,
    updates: optax.Updates,
    value: jax.Array | None,
    count_gradients: Callable[[Any], None] | None,
) -> Callable[[Any], tuple[jax.Array | None, Any]]:
    """Returns the map from a point to loss and gradient; behind a `grad_fn` the loss is None."""
    checks.loss_functions(value_fn, grad_fn, params, updates, value)

    def value_and_gradient_at(point: optax.Params) -> tuple[jax.Array | None, optax.Updates]:
        if count_gradients is not None:
            count_gradients(1)
        if grad_fn is None:
            return jax.value_and_grad(cast(ValueFn, value_fn))(point)
        return None, checks.gradient_at(point, grad_fn, updates)

    return value_and_gradient_at
