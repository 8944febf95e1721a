r"""The sharpness-aware update loop that all methods share."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax import _value_fn
from xsam_jax._value_fn import GradFn, ValueFn


@dataclasses.dataclass(frozen=True)
class AscentPath:
    r"""The points and gradients of one ascent, :math:`\theta_0, g_0, \ldots, \theta_k, g_k`.

    A descent receives it as the extra argument `path`. Sums and norms are computed when they are
    read, so a property that nobody reads is not traced. They are float32, or float64 under x64.

    Attributes:
      perturbations: :math:`\theta_{i+1} - \theta_i` for :math:`i = 0, \ldots, k-1`.
      gradients: :math:`g_0`, as the caller gave it, to :math:`g_k`.
      values: the losses :math:`L(\theta_0), \ldots, L(\theta_k)`. The first is None unless the
        caller gave `value`. The others are None if a `grad_fn` took the gradients.
    """

    perturbations: Sequence[Any]
    gradients: Sequence[Any]
    values: Sequence[Any]

    @property
    def displacement(self) -> Any:
        r"""The sum of the perturbations, :math:`\theta_k - \theta_0`."""
        # Several operations read it. Without the barrier XLA keeps several copies on CPU.
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
    def first_value(self) -> jax.Array | None:
        r"""The loss :math:`L(\theta_0)`, or None."""
        return self.values[0]

    @property
    def last_value(self) -> jax.Array | None:
        r"""The loss :math:`L(\theta_k)`, or None."""
        return self.values[-1]

    @property
    def gradient_norms(self) -> jax.Array:
        r"""The norms :math:`\|g_0\|, \ldots, \|g_k\|`, of shape (k + 1,)."""
        return jnp.stack([tree.norm(gradient) for gradient in self.gradients])


class SharpnessAwareState(NamedTuple):
    """The states of the two slots.

    Attributes:
      ascent: the state of the ascent after :math:`g_0` of the last step.
      descent: the state of the descent.
    """

    ascent: optax.OptState
    descent: optax.OptState


ValueAndGradient = Callable[[optax.Params], tuple[Any, optax.Updates]]


def ascend(
    ascent: optax.GradientTransformationExtraArgs,
    state: optax.OptState,
    value_and_gradient_at: ValueAndGradient,
    params: optax.Params,
    gradient: optax.Updates,
    *,
    steps: int = 1,
    value: Any = None,
    **extra_args: Any,
) -> tuple[AscentPath, optax.OptState]:
    r"""Performs the ascent, :math:`\theta_{i+1} = \theta_i + \mathrm{ascent}(g_i)`.

    The loop is unrolled: on CPU the gradient of a convolution runs about 30 times slower inside
    `jax.lax.scan` (jax-ml/jax#12868).

    Args:
      ascent: maps a gradient to a perturbation.
      state: the state of `ascent`. Every step starts from it.
      value_and_gradient_at: maps parameters to the loss, or None, and the gradient.
      params: :math:`\theta_0`.
      gradient: :math:`g_0`.
      steps: :math:`k \ge 1`.
      value: :math:`L(\theta_0)`, or None.
      **extra_args: further arguments of `ascent.update`.

    Returns:
      The path, and the state of the ascent after :math:`g_0`.

    Example:
      >>> loss_and_grad = jax.value_and_grad(lambda params: jnp.sum(params**2))
      >>> ascent = optax.with_extra_args_support(optax.scale(0.1))
      >>> path, _ = ascend(ascent, (), loss_and_grad, jnp.array([1.0]), jnp.array([2.0]))
      >>> print(f"{path.displacement[0]:.2f} {path.last_gradient[0]:.2f}")
      0.20 2.40
    """
    point, perturbations, gradients, values, states = params, [], [gradient], [value], []
    for step in range(steps):
        perturbation, new_state = ascent.update(
            gradients[-1], state, point, ascent_step=step, value=values[-1], **extra_args
        )
        point = optax.apply_updates(point, perturbation)
        value, gradient = value_and_gradient_at(point)
        perturbations.append(perturbation)
        gradients.append(gradient)
        values.append(value)
        states.append(new_state)
    return AscentPath(perturbations, gradients, values), states[0]


def sharpness_aware(
    ascent: optax.GradientTransformation,
    descent: optax.GradientTransformation | None = None,
    *,
    steps: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns gradients into sharpness-aware gradients, from any ascent and any descent.

    With :math:`g_0` the incoming gradient at the parameters :math:`\theta_0`, for
    :math:`i = 0, \ldots, k-1`

    .. math:: \theta_{i+1} = \theta_i + \mathrm{ascent}(g_i), \qquad
              g_{i+1} = \nabla L(\theta_{i+1}),

    and the result is :math:`\mathrm{descent}(g_k, \mathrm{path})`.

    It is a gradient transformation, not an optimizer. It is the first link of an `optax.chain`, and
    the optimizer after it receives the sharpness-aware gradient. Without an optimizer after it the
    loss increases, because the gradient is added to the parameters. Weight decay after it is not
    part of the ascent. The ascent starts with the incoming gradient: pass the gradient of another
    batch to ascend on that batch.

    **Update.** `update(updates, state, params, *, value_fn, grad_fn=None, value=None, **extra)`:

    * `value_fn(params)` is the loss, a real scalar, as a pure function of the parameters. It closes
      over the batch, the dropout key, and everything else the loss depends on. The ascent evaluates
      `steps` gradients in addition to the incoming one, and a descent may evaluate more.
    * `grad_fn(params)` replaces `jax.grad(value_fn)`, for microbatches, loss scaling or
      collectives. With it, omit `value_fn` unless the descent reads losses, as that of `xsam` does.
      Line searches later in the chain refuse it, because they accept `value_fn`, `value` and `grad`
      only.
    * On several devices, `value_fn` and `grad_fn` return means over all devices. In
      `jax.shard_map`, `value_fn` returns the `jax.lax.pmean` of the loss. In `jax.pmap`, also pass
      the `pmean` of the gradient as `grad_fn`. There a missing `grad_fn` raises no error.
    * `obj_fn` is another name of `value_fn`, the one that Levanter and `optax.contrib.sophia` use.
    * `value` is the loss at `params`. It saves a forward pass in a descent that needs it.
    * Other extra arguments are passed on to the ascent and the descent.

    **Slots.** Both are Optax gradient transformations, so chains, masks inside the ascent, and
    schedules work. The ascent returns the perturbation itself, uphill. Within a training step it
    transforms every :math:`g_i` from the same incoming state, and the state kept is the one after
    :math:`g_0`. It receives `params` :math:`= \theta_i`, `value` :math:`= L(\theta_i)` if known,
    and the Python integer `ascent_step` :math:`= i`. The descent receives :math:`g_k`, `params`
    :math:`= \theta_0`, and `path`, an `AscentPath`. Both receive `value_fn` and a `grad_fn`, which
    always exists. Inside `per_group` both receive `mean_over_groups`, for what their state keeps.

    **Numbers.** Norms and angles are float32, or float64 under x64. The result has the dtypes of
    the incoming gradient, and the perturbed parameters have those of `params`. In bfloat16
    parameters most of a perturbation is rounded away, so keep parameters in float32 and compute in
    bfloat16. A zero gradient gives a zero perturbation. A NaN in any gradient makes the result NaN,
    which `optax.apply_if_finite` detects if it stands *after* this link.

    Args:
      ascent: maps a gradient to a perturbation, such as `chain(normalize(), scale_by_radius(rho))`.
      descent: maps a path to a gradient. The default None returns :math:`g_k`.
      steps: :math:`k \ge 1`, the number of ascent steps (default 1). Static.

    Returns:
      A gradient transformation with state `SharpnessAwareState`.

    Raises:
      TypeError: `ascent` or `descent` is not a gradient transformation, or `steps` is not an
        integer. In `init`, `ascent` or `descent` is a whole method. In `update`, `value_fn` does
        not return a real scalar, `grad_fn` does not return a gradient, the gradient does not have
        the structure of `params`, a parameter is not a real floating-point array, or `state` is
        not one of this transformation.
      ValueError: `steps` is less than 1. In `update`, `params`, or both `value_fn` and `grad_fn`,
        are missing, the gradient does not have the shapes of `params`, `value_fn` ignores its
        argument, `obj_fn` is given, too, or `params` was cut by `optax.masked` or
        `optax.partition`. In `jax.shard_map`, `value_fn` is the loss of one device or of shards of
        the parameters, or `grad_fn` is the gradient of one device but the incoming one is a mean.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> ascent = optax.chain(normalize(), scale_by_radius(0.1))
      >>> tx = optax.chain(sharpness_aware(ascent), optax.sgd(0.1))
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
            init_slot("ascent", ascent, params), init_slot("descent", descent, params)
        )

    def update_fn(
        updates: optax.Updates,
        state: SharpnessAwareState,
        params: optax.Params | None = None,
        *,
        value_fn: ValueFn | None = None,
        grad_fn: GradFn | None = None,
        value: jax.Array | None = None,
        obj_fn: ValueFn | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SharpnessAwareState]:
        checks.parameters_of_update(params)
        checks.state(state, SharpnessAwareState)
        fix = "pass grads = jax.grad(loss)(params)"
        _value_fn.check_gradient_like("grads must be", updates, params, fix)
        value_fn = _value_fn.either(value_fn, obj_fn)
        _value_fn.check_functions(value_fn, grad_fn, params, updates, value, extra_args)

        def value_and_gradient_at(point: optax.Params) -> tuple[jax.Array | None, optax.Updates]:
            if grad_fn is None:
                return jax.value_and_grad(cast(ValueFn, value_fn))(point)
            return None, _value_fn.gradient_at(point, grad_fn, updates)

        extra_args |= {
            "value_fn": value_fn,
            "grad_fn": lambda point: value_and_gradient_at(point)[1],
        }
        path, ascent_state = ascend(
            ascent,
            state.ascent,
            value_and_gradient_at,
            params,
            updates,
            steps=steps,
            value=value,
            **extra_args,
        )
        result, descent_state = descent.update(
            path.last_gradient, state.descent, params, path=path, value=value, **extra_args
        )
        # A loss such as the hinge has a finite gradient at parameters that are NaN.
        finite = jnp.isfinite(sum(tree.norm(gradient) for gradient in path.gradients[:-1]))

        def finish(result: jax.Array, gradient: jax.Array) -> jax.Array:
            return jnp.where(finite, jnp.asarray(result, jnp.result_type(gradient)), jnp.nan)

        result = jax.tree.map(finish, result, updates)
        return result, SharpnessAwareState(ascent_state, descent_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def init_slot(
    name: str, slot: optax.GradientTransformation, params: optax.Params
) -> optax.OptState:
    """Returns the initial state of a part of a method, or raises if it is a whole method.

    Args:
      name: the name of the part in error messages.
      slot: an ascent, a descent, or an optimizer.
      params: the parameters.

    Raises:
      TypeError: `slot` is a method, such as `sam(0.1)`.

    Example:
      >>> init_slot("ascent", optax.scale(0.1), None)
      EmptyState()
    """
    state = slot.init(params)
    if checks.has_node(state, lambda node: isinstance(node, SharpnessAwareState)):
        raise TypeError(
            f"{name} must be one slot of a method, got a whole method: for asam(rho) as the ascent "
            "write optax.chain(scale_by_magnitude(), scale_by_radius(rho)), both of "
            "xsam_jax.ascent; and no method belongs inside the optimizer of another"
        )
    return state
