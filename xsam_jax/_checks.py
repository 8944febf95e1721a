"""Eager checks of arguments. Each error names the argument, the value, and the fix."""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def real(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    above: float = -math.inf,
    maximum: float = math.inf,
    below: float = math.inf,
    schedule: bool = False,
) -> None:
    """Raises unless `value` is a finite real scalar within its bounds.

    Args:
      name: the argument's name, for the message.
      value: a Python or NumPy number, a scalar `jax.Array`, or, if `schedule` is true, a callable.
        The value of a `jax.Array` is not checked, because it may be traced.
      minimum: the smallest value allowed.
      above: a lower bound, itself not allowed.
      maximum: the largest value allowed.
      below: an upper bound, itself not allowed.
      schedule: whether a callable of the step count is allowed.

    Raises:
      TypeError: `value` is not a real scalar.
      ValueError: `value` is out of range, NaN or infinite.
    """
    if schedule and callable(value):
        return
    if isinstance(value, jax.Array):
        if value.shape != () or jnp.issubdtype(value.dtype, jnp.complexfloating):
            raise TypeError(
                f"{name} must be a real scalar, got an array {value.dtype}{list(value.shape)}"
            )
        return
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    if hasattr(value, "init") and hasattr(value, "update"):
        raise TypeError(
            f"{name} must be a real number, got an optimizer: it follows in the chain, "
            "optax.chain(sam(0.05), optax.sgd(0.1))"
        )
    if callable(value):
        raise TypeError(
            f"{name} must be a real number, got the function {value!r}; to schedule it, inject it: "
            f"optax.inject_hyperparams(lambda {name}: method(..., {name}={name}))({name}=schedule)"
        )
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        expected = "a real number or a schedule of the step count" if schedule else "a real number"
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    bounds = {
        f"at least {minimum:g}": number >= minimum,
        f"greater than {above:g}": number > above,
        f"at most {maximum:g}": number <= maximum,
        f"less than {below:g}": number < below,
    }
    for bound, holds in bounds.items():
        if not holds:
            raise ValueError(f"{name} must be {bound}, got {value!r}")


def integer(name: str, value: Any, minimum: int) -> None:
    """Raises unless `value` is an integer of at least `minimum`, or a `jax.Array`."""
    if isinstance(value, jax.Array):
        real(name, value)
    elif isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    elif value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")


def static_integer(name: str, value: Any, minimum: int) -> None:
    """Raises unless `value` is a Python integer, known at trace time, of at least `minimum`."""
    if isinstance(value, jax.Array):
        raise TypeError(
            f"{name} shapes the compiled program, so it must be a Python integer, got {value!r}; "
            f"with optax.inject_hyperparams, name it in static_args=({name!r}, ...) (of xsam all "
            "of 'steps', 'num_alphas', 'probe_batch_size'), or inject the numbers alone, "
            "optax.inject_hyperparams(lambda rho: sam(rho))(rho=0.05)"
        )
    integer(name, value, minimum)


def choice(name: str, value: Any, options: Sequence[Any]) -> None:
    """Raises unless `value` is one of `options`."""
    if not (isinstance(value, str) or value is None) or value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


def convention(value: Any) -> None:
    """Raises unless `value` is "paper" or "official"."""
    choice("convention", value, ("paper", "official"))


def radius(name: str, value: Any, steps: int | None = None) -> None:
    """Raises unless `value` is a non-negative number or schedule, or a sequence of `steps` such."""
    if not isinstance(value, (list, tuple)) or hasattr(value, "update"):
        real(name, value, minimum=0.0, schedule=True)
        return
    for index, item in enumerate(value):
        real(f"{name}[{index}]", item, minimum=0.0, schedule=True)
    if not value or steps not in (None, len(value)):
        raise ValueError(
            f"{name} gives one radius per ascent step: {steps or 'at least one'} needed, "
            f"got {len(value)}, {value!r}"
        )


def random_key(name: str, value: Any) -> None:
    """Raises unless `value` is one key of `jax.random`, typed or raw, which may be traced."""
    if isinstance(value, (jax.Array, np.ndarray)):
        typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        if value.shape == () if typed else (value.dtype == jnp.uint32 and value.ndim == 1):
            return
    raise TypeError(f"{name} must be a single random key, such as jax.random.key(0), got {value!r}")


def transformation(name: str, value: Any) -> None:
    """Raises unless `value` is an Optax gradient transformation."""
    if not (callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))):
        raise TypeError(f"{name} must be an optax.GradientTransformation, got {value!r}")


def state(value: Any, kind: type) -> None:
    """Raises unless `value`, the state that `update` was given, is of the type of `init`."""
    if not isinstance(value, kind):
        raise TypeError(
            f"opt_state is not a state of this transformation: a {kind.__name__} is needed, got "
            f"{type(value).__name__}. Write opt_state = tx.init(params), also for a state that was "
            "saved before the method joined the chain"
        )


def has_node(tree: Any, condition: Callable[[Any], bool]) -> bool:
    """Returns whether any node of `tree`, leaf or not, meets `condition`."""
    return any(condition(node) for node in jax.tree.leaves(tree, is_leaf=condition))


def broadcast_mask(mask: Any, params: Any) -> Any:
    """Returns a boolean for each leaf of `params`, or raises if `mask` does not fit.

    Args:
      mask: a pytree of booleans with the structure of `params`, or a prefix of it, or a function
        of `params` that returns one.
      params: a pytree of arrays.
    """
    if callable(mask):
        mask = mask(params)
    for leaf in jax.tree.leaves(mask):
        if not isinstance(leaf, (bool, np.bool_)):
            raise TypeError(f"mask must hold booleans, known at trace time, got {leaf!r}")
    try:
        return jax.tree.map(lambda on, part: jax.tree.map(lambda _: on, part), mask, params)
    except ValueError as error:
        raise ValueError(
            f"mask must be a pytree of booleans with the structure of params, or a prefix of it: "
            f"{error}"
        ) from None


_EQUINOX = (
    "of an Equinox model, pass the inexact arrays, "
    "params, static = eqx.partition(model, eqx.is_inexact_array)"
)


def parameters(params: Any) -> None:
    """Raises if `params` has leaves without a real gradient, or was cut by a mask."""
    if has_node(params, lambda node: isinstance(node, optax.MaskedNode)):
        raise ValueError(
            "params has MaskedNode leaves: a sharpness-aware transform evaluates the loss of all "
            "parameters, so it stands outside optax.masked and optax.partition. Write "
            "optax.chain(xsam(...), optax.partition(...)), or momentum_sam(optax.partition(...), "
            "rho), which perturbs parameters with a momentum; to perturb a subset only, mask "
            "inside the ascent"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None:
            if not isinstance(leaf, float):
                raise TypeError(
                    f"params has a leaf that is no floating-point array, {leaf!r} at "
                    f"params{jax.tree_util.keystr(path)}: make a number an array, "
                    f"jnp.asarray(1.0), and keep the rest out of params; {_EQUINOX}"
                )
        elif jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"params has a complex leaf, {dtype}{list(leaf.shape)}: "
                "split it into real and imaginary parts"
            )
        elif not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"params has a leaf without gradient, {dtype}{list(leaf.shape)} at "
                f"params{jax.tree_util.keystr(path)}: close value_fn over it, and keep it out of "
                f"params; {_EQUINOX}; in Flax NNX, params = nnx.as_pure(nnx.state(model, "
                "nnx.Param))"
            )


def scalar_result(name: str, value: Any) -> None:
    """Raises unless `value`, which the function `name` returned, is a real scalar."""
    if isinstance(value, (tuple, list, dict)):
        raise TypeError(f"{name} must return a real scalar, got a {type(value).__name__}")
    value = jnp.asarray(value)
    if value.shape != () or jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must return a real scalar, got {value.dtype}{list(value.shape)}")


def present(value: Any, message: str) -> Any:
    """Returns `value`, or raises a `ValueError` with `message` if it is None."""
    if value is None:
        raise ValueError(message)
    return value


def parameters_of_update(params: Any, loss: str = "value_fn=...") -> None:
    """Raises if an update lacks `params`, or they are not `parameters`.

    Args:
      params: the argument of the update.
      loss: its further arguments, for the message.
    """
    present(params, f"params is missing: tx.update(grads, opt_state, params, {loss})")
    parameters(params)


def ascent_path(name: str, path: Any, params: optax.Params | None) -> Any:
    """Returns the path, or raises if the descent `name` is not used as a descent.

    It also checks `params`, because a mask around a descent would cut them.
    """
    parameters(params)
    return present(
        path,
        f"path is missing: {name} reads the path of an ascent, so it is used as a descent, "
        f"sharpness_aware(ascent, descent={name}(...))",
    )
