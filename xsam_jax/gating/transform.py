"""A transform behind a gate."""

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xsam_jax import checks, tree
from xsam_jax.base import varying_like

GateFn = Callable[[Any], Any]


class Gate(NamedTuple):
    """A decision that looks at the gradient, and remembers; it cannot be asked on the host.

    Attributes:
      init: a function without arguments that returns the state, a pytree of arrays.
      decide: `(updates, state, count) -> (sharp, state)`.
    """

    init: Callable[[], Any]
    decide: Callable[[optax.Updates, Any, jax.Array], tuple[jax.Array, Any]]

    def __call__(self, count: Any) -> NoReturn:
        """Raises: the step count is not enough."""
        raise TypeError(
            "this gate looks at the gradient, so the step count does not answer it: leave out "
            "sharp=, and it is decided in the program"
        )


class GatedState(NamedTuple):
    """The state of a gated transform.

    Attributes:
      count: the number of training steps taken, int32 scalar.
      gradient_evaluations: the number of gradients taken so far, those of the caller included,
        int32 scalar. Where gates nest, or stand around `look_sam`, that of the outermost.
      gate: the state of the gate.
      inner: the state of the transform, which moves in sharpness-aware steps only.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as in Optax
    gradient_evaluations: jax.Array
    gate: Any
    inner: optax.OptState


def gated(
    transform: optax.GradientTransformation, gate: GateFn | Gate
) -> optax.GradientTransformationExtraArgs:
    r"""Applies a sharpness-aware transform in some steps, and passes the gradient on in the others.

    A step in which the gate is shut costs the one gradient that the caller has taken anyway, and
    leaves the transform's state alone: `probe_every` of an `xsam` inside, and schedules inside,
    count the steps in which the gate was open. For a radius that is scheduled over training steps
    write `optax.inject_hyperparams(lambda rho: gated(sam(rho), gate))(rho=schedule)`.

    Args:
      transform: a method, or a chain that has one, which returns a gradient. The optimizer follows,
        `optax.chain(gated(sam(0.1), gate), optax.sgd(0.1))`: inside, it would be passed by, and the
        gradient would be the update.
      gate: `every(k)`, `after(step)`, `bernoulli(p, key)` or another function of the count of
        training steps; or `gradient_norm(...)`.

    Returns:
      A gradient transformation with state `GatedState`. Its update takes the further argument
      `sharp`: a bool that replaces the gate's decision. A Python bool leaves no conditional in the
      program (see `xsam_jax.gating`). A line search later in the chain refuses it: bind it,
      `functools.partial(tx.update, sharp=True)`. Under `jax.vmap`, keep `count` unbatched (axis
      None).

    Raises:
      TypeError: `transform` is not a gradient transformation, or is `decoupled_wsam`, which is an
        optimizer; `gate` is not a gate; or, in `update`, `sharp` is not a bool.

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
      >>> print(optax.tree.get(opt_state, "gradient_evaluations"))
      6
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
        # Two arrays, as one cannot be donated twice.
        count, evaluations = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        inner = transform.init(params)
        checks.returns_gradients("gated", inner)
        return GatedState(count, evaluations, rule.init(), inner)

    def update_fn(
        updates: optax.Updates,
        state: GatedState,
        params: optax.Params | None = None,
        *,
        sharp: bool | jax.Array | None = None,
        count_gradients: Callable[[Any], None] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GatedState]:
        decision, gate_state = rule.decide(updates, state.gate, state.count)

        def when_open(inner: optax.OptState) -> tuple[Any, optax.OptState, jax.Array]:
            counter = GradientCounter()
            result, inner = transform.update(
                updates, inner, params, count_gradients=counter, **extra_args
            )
            # The types of the other branch, whatever the transform has made of them.
            result, inner = varying_like((tree.cast_like(result, updates), inner), updates)
            return result, inner, jnp.asarray(counter.total, jnp.int32)

        def when_shut(inner: optax.OptState) -> tuple[Any, optax.OptState, jax.Array]:
            result, inner = varying_like((updates, inner), updates)
            return result, inner, jnp.zeros((), jnp.int32)

        sharp = decision if sharp is None else sharp
        result, inner, further = switch(sharp, when_open, when_shut, state.inner)
        if count_gradients is not None:
            count_gradients(further)
        evaluations = state.gradient_evaluations + 1 + further
        count = optax.safe_increment(state.count)
        return result, GatedState(count, evaluations, gate_state, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def switch(
    sharp: bool | jax.Array,
    when_sharp: Callable[..., Any],
    otherwise: Callable[..., Any],
    *args: Any,
) -> Any:
    """Calls one of two functions: at once for a Python bool, in a `jax.lax.cond` for an array.

    Args:
      sharp: which of them.
      when_sharp: the one for true.
      otherwise: the one for false.
      *args: what both are called with.

    Returns:
      What the function returns.

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


class GradientCounter:
    """Adds up what it is called with: the extra argument `count_gradients` of `sharpness_aware`.

    It counts what is traced: gradients within a conditional other than a gate's count as taken.

    Attributes:
      total: the number of gradients, a Python integer unless a gate inside decides in the program.
    """

    def __init__(self) -> None:
        self.total: Any = 0

    def __call__(self, number: Any) -> None:
        self.total = self.total + number


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
