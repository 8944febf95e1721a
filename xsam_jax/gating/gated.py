"""A method that is sharpness-aware in some steps only."""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax._devices import MeanOverGroups, one_group, varying_like

GateFn = Callable[[Any], Any]


class Gate(NamedTuple):
    """A gate that reads the gradient and keeps a state. The host cannot evaluate it.

    Attributes:
      init: a function without arguments that returns the state, a pytree of arrays.
      decide: `(updates, state, count) -> (sharp, state)`.
    """

    init: Callable[[], Any]
    decide: Callable[[optax.Updates, Any, jax.Array], tuple[jax.Array, Any]]

    def __call__(self, count: Any) -> NoReturn:
        """Raises: the step count is not enough."""
        raise TypeError(
            "this gate reads the gradient, so the step count is not enough: leave out sharp=, and "
            "it is decided in the program"
        )


class GatedState(NamedTuple):
    """The state of a gated method.

    Attributes:
      count: the number of training steps, int32 scalar.
      sharp_steps: the number of sharpness-aware steps among them, int32 scalar.
      gate: the state of the gate.
      inner: the state of the method. It changes in sharpness-aware steps only.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as in Optax
    sharp_steps: jax.Array
    gate: Any
    inner: optax.OptState


def gated(
    transform: optax.GradientTransformation, gate: GateFn | Gate
) -> optax.GradientTransformationExtraArgs:
    r"""Applies a method in some steps, and returns the gradient unchanged in the others.

    Use it to save gradients: a step that the gate skips costs the one gradient that the caller has
    computed anyway. The state of the method does not change in skipped steps, so `probe_every` of
    an `xsam` inside, and schedules inside, count sharpness-aware steps. To schedule a radius over
    all training steps, inject it:
    `optax.inject_hyperparams(lambda rho: gated(sam(rho), gate))(rho=schedule)`.

    Args:
      transform: a method, without the optimizer. Put the optimizer after it,
        `optax.chain(gated(sam(0.1), gate), optax.sgd(0.1))`. Inside `gated` the optimizer would be
        skipped too, and the raw gradient would be the update.
      gate: `every(k)`, `after(step)`, `bernoulli(p, key)`, another function of the step count, or
        `gradient_norm(...)`.

    Returns:
      A gradient transformation with state `GatedState`. Its update takes the further argument
      `sharp`, a bool that replaces the decision of the gate. With a Python bool there is no
      conditional in the program (see `xsam_jax.gating`). A line search later in the chain refuses
      this argument. Bind it, `functools.partial(tx.update, sharp=True)`. Under `jax.vmap`, keep
      `count` unbatched (axis None).

    Raises:
      TypeError: `transform` is not a gradient transformation, or, in `init`, is a chain or an
        optimizer. `gate` is not a gate. In `update`, `sharp` is not a bool.
      ValueError: in `update`, `transform` is a `per_group`, inside which the gate belongs.

    Example:
      >>> from xsam_jax import sam
      >>> from xsam_jax.gating import every
      >>> tx = optax.chain(gated(sam(0.1), every(2)), optax.sgd(0.1))
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> params = jnp.array([3.0, 4.0])
      >>> opt_state = tx.init(params)
      >>> for _ in range(4):
      ...     grads = jax.grad(loss_fn)(params)
      ...     updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      ...     params = optax.apply_updates(params, updates)
      >>> print(optax.tree.get(opt_state, "sharp_steps"))
      2
    """
    checks.transformation("transform", transform)
    if not callable(gate):
        raise TypeError(
            "gate must be a function of the step count, such as xsam_jax.gating.every(5), "
            f"got {gate!r}"
        )
    transform = optax.with_extra_args_support(transform)
    rule = gate if isinstance(gate, Gate) else _stateless(gate)

    def init_fn(params: optax.Params) -> GatedState:
        # Two arrays: one array cannot be donated twice.
        count, sharp_steps = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        inner = transform.init(params)
        _check_returns_gradient(inner)
        return GatedState(count, sharp_steps, rule.init(), inner)

    def update_fn(
        updates: optax.Updates,
        state: GatedState,
        params: optax.Params | None = None,
        *,
        sharp: bool | jax.Array | None = None,
        mean_over_groups: MeanOverGroups = one_group,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GatedState]:
        # All groups make one decision. A sum of float16 gradients may overflow.
        mean = mean_over_groups(tree.scale(1.0, updates))
        decision, gate_state = rule.decide(mean, state.gate, state.count)
        extra_args["mean_over_groups"] = mean_over_groups

        def branch(result: Any, inner: optax.OptState) -> tuple[Any, optax.OptState]:
            # Both branches must return the same types. State that follows the mean has its type.
            result = tree.cast_like(result, updates)
            return varying_like(result, updates), varying_like(inner, mean)

        def sharp_step(inner: optax.OptState) -> tuple[Any, optax.OptState]:
            return branch(*transform.update(updates, inner, params, **extra_args))

        def plain_step(inner: optax.OptState) -> tuple[Any, optax.OptState]:
            return branch(updates, inner)

        sharp = decision if sharp is None else sharp
        result, inner = switch(sharp, sharp_step, plain_step, state.inner)
        count = optax.safe_increment(state.count)
        sharp_steps = state.sharp_steps + jnp.asarray(sharp, jnp.int32)
        return result, GatedState(count, sharp_steps, gate_state, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def switch(
    sharp: bool | jax.Array,
    when_sharp: Callable[..., Any],
    otherwise: Callable[..., Any],
    *args: Any,
) -> Any:
    """Calls one of two functions: directly for a Python bool, by `jax.lax.cond` for an array.

    Args:
      sharp: which one to call.
      when_sharp: the function for true.
      otherwise: the function for false.
      *args: the arguments of both.

    Returns:
      The result of the function.

    Raises:
      TypeError: `sharp` is not a bool.

    Example:
      >>> switch(True, lambda x: x + 1, lambda x: x, 1)
      2
    """
    if isinstance(sharp, (bool, np.bool_)):
        return when_sharp(*args) if sharp else otherwise(*args)
    if not _is_bool(sharp):
        raise TypeError(f"sharp must be a bool, got {sharp!r}: write sharp=bool(gate(count))")
    return jax.lax.cond(sharp, when_sharp, otherwise, *args)


def _check_returns_gradient(state: Any) -> None:
    """Raises if `state` belongs to a chain or an optimizer, whose result may be an update.

    In skipped steps `gated` returns the gradient. With an optimizer inside, the parameters would
    then move uphill by the whole gradient.
    """
    if type(state) is tuple or isinstance(state, dict):
        raise TypeError(
            "transform must be a method alone, got a chain, whose other links would be skipped: "
            "write optax.chain(gated(sam(0.1), gate), optax.sgd(0.1))"
        )
    # All methods that are optimizers keep the state of their base optimizer under this name.
    if checks.has_node(state, lambda node: "base" in getattr(node, "_fields", ())):
        raise TypeError(
            "gated must not have decoupled_wsam, lookbehind, momentum_sam, async_sam or sampa "
            "inside: they are optimizers, not gradient transformations in front of one. Write "
            "wsam for decoupled_wsam, and for the others rho as a schedule, 0 where it is shut"
        )


def _stateless(gate: GateFn) -> Gate:
    def decide(updates: optax.Updates, state: Any, count: jax.Array) -> tuple[jax.Array, Any]:
        decision = gate(count)
        if not _is_bool(decision):
            raise TypeError(
                f"gate must return a bool, got {decision!r}: write gated(sam(0.1), every(5)), or "
                "gated(sam(0.1), lambda count: count % 5 == 0)"
            )
        return jnp.asarray(decision), state

    return Gate(lambda: (), decide)


def _is_bool(value: Any) -> bool:
    if isinstance(value, jax.Array):
        return value.shape == () and value.dtype == jnp.bool_
    return isinstance(value, (bool, np.bool_))
