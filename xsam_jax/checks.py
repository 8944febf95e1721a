"""Eager validation: each error names the argument, the value, and what to write instead."""

import inspect
import math
import numbers
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xsam_jax.base import AscentPath, GradFn, ValueFn, varying_axes


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
      value: a Python or NumPy number; a scalar `jax.Array`, whose value is not looked at (it may
        be traced); or, where `schedule` is true, a callable.
      minimum: the least value allowed.
      above: the value to exceed.
      maximum: the greatest value allowed.
      below: the value to stay below.
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
    if hasattr(value, "update"):
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
    """Raises unless `value` is an integer of at least `minimum`; a `jax.Array` is trusted."""
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


def radius_or_ascent(rho: Any, ascent: Any) -> None:
    """Raises unless exactly one of the two is given."""
    if (rho is None) == (ascent is None):
        raise ValueError(
            "rho is the length of the ascent of xsam, and ascent another one, with a radius of its "
            f"own: give one of them, xsam(0.15, 0.3) or xsam(None, 0.3, ascent=...), got {rho!r} "
            f"and {ascent!r}"
        )


def random_key(name: str, value: Any) -> None:
    """Raises unless `value` is one key of `jax.random`, typed or raw; it may be traced."""
    if isinstance(value, (jax.Array, np.ndarray)):
        typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        if value.shape == () if typed else (value.dtype == jnp.uint32 and value.ndim == 1):
            return
    raise TypeError(f"{name} must be a single random key, such as jax.random.key(0), got {value!r}")


def transformation(name: str, value: Any) -> None:
    """Raises unless `value` is an Optax gradient transformation."""
    if not (callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))):
        raise TypeError(f"{name} must be an optax.GradientTransformation, got {value!r}")


def has_node(tree: Any, condition: Callable[[Any], bool]) -> bool:
    """Returns whether any node of `tree`, leaf or not, meets `condition`."""
    return any(condition(node) for node in jax.tree.leaves(tree, is_leaf=condition))


def selection(mask: Any, params: Any) -> Any:
    """Returns a boolean for each leaf of `params`, or raises where `mask` does not say them.

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


_DROPPED = (
    "If you passed it, something around the method dropped it: the TrainState of Flax linen does "
    "(use xsam_jax.flax_linen.TrainState), and so do "
    "optax.MultiSteps(...).gradient_transformation() around it (put it after the method in the "
    "chain) and optax.contrib.split_real_and_imaginary (split complex parameters before init, "
    "and join them in the loss)"
)
_EQUINOX = (
    "of an Equinox model, pass the inexact arrays, "
    "params, static = eqx.partition(model, eqx.is_inexact_array)"
)


def parameters(params: Any) -> None:
    """Raises where `params` has leaves without a real gradient, or was cut by a mask."""
    if has_node(params, lambda node: isinstance(node, optax.MaskedNode)):
        raise ValueError(
            "params has MaskedNode leaves: a sharpness-aware transform evaluates the loss of all "
            "parameters, so it stands outside optax.masked and optax.partition. Write "
            "optax.chain(xsam(...), optax.partition(...)); to perturb a subset only, mask inside "
            "the ascent"
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
                f"params; {_EQUINOX}"
            )


def loss_functions(
    value_fn: ValueFn | None,
    grad_fn: GradFn | None,
    params: optax.Params,
    updates: optax.Updates,
    value: Any,
) -> None:
    """Raises unless there is a way to a gradient: a scalar loss, or a gradient function.

    Within `jax.shard_map`, `value_fn` and `value` must be the loss of all devices. Evaluates
    nothing but the shape of `value_fn(params)`.
    """
    if value_fn is None and grad_fn is None:
        raise ValueError(
            "value_fn is missing: a sharpness-aware step evaluates the loss at other parameters. "
            "Write tx.update(grads, opt_state, params, value_fn=lambda params: loss(params, batch))"
            "; in Flax NNX, optimizer.update(model, grads, value_fn=make_value_fn(loss_fn, model, "
            f"batch)) with xsam_jax.flax_nnx. {_DROPPED}"
        )
    if grad_fn is not None and not callable(grad_fn):
        raise TypeError(f"grad_fn must be a function of the parameters, got {grad_fn!r}")
    if value_fn is None:
        return
    if not callable(value_fn):
        raise TypeError(
            "value_fn must be a function of the parameters, "
            f"value_fn=lambda params: loss(params, batch), got {value_fn!r}"
        )
    program, result = _traced("value_fn", value_fn, params, "loss")
    if isinstance(result, (tuple, list, dict)):
        raise TypeError(
            f"value_fn must return the loss alone, got a {type(result).__name__} of {len(result)}: "
            "for a loss_fn that returns (loss, aux) write "
            "value_fn=lambda params: loss_fn(params)[0], or make_value_fn(..., has_aux=True)"
        )
    if not isinstance(result, jax.ShapeDtypeStruct):
        raise TypeError(f"value_fn must return a real scalar, got {result!r}")
    if result.shape != () or not jnp.issubdtype(result.dtype, jnp.floating):
        hint = ": for per-sample losses write value_fn=lambda params: losses(params).mean()"
        raise TypeError(
            f"value_fn must return a real scalar, got {result.dtype}{list(result.shape)}"
            + (hint if result.shape else "")
        )
    mean = "value_fn=lambda params: jax.lax.pmean(loss(params), {})"
    if grad_fn is None:
        inputs: Any = (params, updates)
        reason = "its gradient would be their sum, n times too long on n devices"
    else:
        # Where params vary, grads and grad_fn may be means over devices all the same.
        inputs = updates
        reason = "losses that a method compares must be equal on all devices"
    _of_all_devices("value_fn", program.out_avals, inputs, f"{reason}. Write {mean}")
    _of_all_devices("value", value, inputs, "write value=jax.lax.pmean(loss, {})")
    _consistent_inputs(params, updates, program.out_avals, grad_fn)
    _argument_used(program)


def gradient_at(point: optax.Params, grad_fn: GradFn, updates: optax.Updates) -> optax.Updates:
    """Returns `grad_fn(point)`, or raises where it is no gradient such as `updates`."""
    try:
        gradient = grad_fn(point)
    except TypeError as error:
        contrib = "for that of optax.contrib.sam, grad_fn=lambda params: grad_fn(params, 0)"
        _explain_signature("grad_fn", grad_fn, point, error, f"grad_fn=jax.grad(loss); {contrib}")
        raise
    fix = "write grad_fn=jax.grad(loss), not jax.value_and_grad(loss)"
    gradients_like("grad_fn must return", gradient, point, fix)
    mean = "grad_fn=lambda params: jax.lax.pmean(jax.grad(loss)(params), {})"
    reason = "grads do not differ, so it should be the mean gradient, too"
    _of_all_devices("grad_fn", gradient, updates, f"{reason}. Write {mean}")
    return gradient


def _traced(name: str, function: Any, params: optax.Params, loss: str) -> Any:
    """Returns the program and the types of `function(params)`, or raises what it raises.

    Args:
      name: the argument's name, for the message.
      function: the loss, or the losses.
      params: the parameters.
      loss: what it computes, for the message.
    """
    try:
        return jax.make_jaxpr(function, return_shape=True)(params)
    except Exception as error:
        fix = f"{name}=lambda params: {loss}(params, batch)"
        _explain_signature(name, function, params, error, fix)
        # As for parameters that are called, or asked for a method, as if they were the model.
        if isinstance(error, AttributeError) or re.search("not callable|NoneType", str(error)):
            error.add_note(
                f"{name} raised this when it was called with params. For a Flax NNX model write "
                f"{name}=make_value_fn({loss}, model, batch), with xsam_jax.flax_nnx; for an "
                f"Equinox model, {name}=lambda params: {loss}(eqx.combine(params, static), batch)"
            )
        raise


def _explain_signature(
    name: str, function: Any, params: optax.Params, error: Exception, fix: str
) -> None:
    """Raises where `function(params)` raised `error` since its signature forbids this call.

    Not before the call: `functools.wraps` gives a function the signature of another one.
    """
    if not re.search("(positional|keyword-only) argument", str(error)):
        return
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables written in C do not tell
        return
    try:
        signature.bind(params)
    except TypeError as mismatch:
        raise TypeError(
            f"{name} is called with the parameters alone, but its signature is {signature} "
            f"({mismatch}): write {fix}"
        ) from error


def scalar_result(name: str, value: Any) -> None:
    """Raises unless `value`, which the function `name` returned, is a real scalar."""
    if isinstance(value, (tuple, list, dict)):
        raise TypeError(f"{name} must return a real scalar, got a {type(value).__name__}")
    value = jnp.asarray(value)
    if value.shape != () or jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must return a real scalar, got {value.dtype}{list(value.shape)}")


def returns_gradients(name: str, state: Any) -> None:
    """Raises where `state` is that of a method which returns an update in place of a gradient."""
    if has_node(state, lambda node: getattr(node, "returns_updates", False)):
        raise TypeError(
            f"{name} must not have decoupled_wsam inside: it is an optimizer, not a gradient "
            "transformation in front of one. Write wsam, the coupled form"
        )


def sample_losses(losses_fn: Any, losses: Any, params: optax.Params, updates: optax.Updates) -> Any:
    """Returns `losses_fn`, or raises unless it is a function that returns a loss for each sample.

    Within `jax.shard_map`, the samples must be those of all devices. Evaluates nothing but the
    shape of `losses_fn(params)`, which `losses` must have, too.
    """
    present(
        losses_fn,
        "losses_fn is missing: esam compares the losses of samples. Write tx.update(grads, "
        "opt_state, params, losses_fn=lambda params: losses(params, batch)), of shape (batch,). "
        f"{_DROPPED}",
    )
    if not callable(losses_fn):
        raise TypeError(f"losses_fn must be a function of the parameters, got {losses_fn!r}")
    program, result = _traced("losses_fn", losses_fn, params, "losses")
    if not isinstance(result, jax.ShapeDtypeStruct):
        raise TypeError(f"losses_fn must return an array of shape (batch,), got {result!r}")
    if len(result.shape) != 1 or not jnp.issubdtype(result.dtype, jnp.floating):
        hint = ": the loss of each sample, not their mean" if result.shape == () else ""
        raise TypeError(
            "losses_fn must return an array of shape (batch,), "
            f"got {result.dtype}{list(result.shape)}{hint}"
        )
    if losses is not None and jnp.shape(losses) != result.shape:
        raise TypeError(
            f"losses must be losses_fn(params), of shape {list(result.shape)}, "
            f"got shape {list(jnp.shape(losses))}"
        )
    inputs = params, updates
    gathered = 'jax.lax.all_gather(losses, {}, tiled=True, to="invarying")'
    reason = "esam compares the samples of all devices"
    fix = f"{reason}. Return {gathered}, or use jax.jit with a sharded batch, without jax.shard_map"
    _of_all_devices("losses_fn", program.out_avals, inputs, fix)
    _of_all_devices("losses", losses, inputs, f"{reason}. Pass {gathered}")
    _consistent_inputs(params, updates, program.out_avals)
    return losses_fn


def _of_all_devices(name: str, values: Any, inputs: Any, fix: str) -> None:
    """Raises where `values` vary over axes of `jax.shard_map` over which `inputs` do not vary.

    Args:
      name: the argument's name, for the message.
      values: its value, or the types of what it returns.
      inputs: the incoming gradient, and the parameters where they count.
      fix: the end of the message, with `{}` for the names of the axes.
    """
    # Where the inputs vary, each device has an ascent of its own, and a loss of its own is right.
    axes = varying_axes(values) - varying_axes(inputs)
    if axes:
        names = _names(axes)
        fix = fix.format(names if len(axes) == 1 else f"({names})")
        raise ValueError(f"{name} differs between the devices of mesh axis {names}: {fix}")


def _consistent_inputs(
    params: optax.Params, updates: optax.Updates, losses: Any, grad_fn: GradFn | None = None
) -> None:
    """Raises where parameters, gradient and loss vary over axes of `jax.shard_map` that differ."""
    params_axes, axes = varying_axes(params), varying_axes(updates)
    # What a grad_fn returns may be a mean, whatever the loss is.
    if grad_fn is None and params_axes - axes:
        raise ValueError(
            f"params differ between the devices of mesh axis {_names(params_axes - axes)}, but "
            "grads do not, and further gradients would be those of one device: pass params with "
            "in_specs=P(), or the mean gradient as grad_fn"
        )
    axes -= varying_axes(losses)
    if axes & params_axes:
        raise ValueError(
            f"params differ between the devices of mesh axis {_names(axes & params_axes)}, but "
            "their loss does not, so each device has a shard of them, and would take the norm of "
            "its shard alone. Shard parameters (FSDP) under jax.jit, outside jax.shard_map"
        )
    if grad_fn is None and axes:
        raise ValueError(
            f"grads differ between the devices of mesh axis {_names(axes)}, but params and their "
            "loss do not: pass grads = jax.grad(value_fn)(params), or the mean, jax.lax.pmean"
        )


def _names(axes: frozenset[Any]) -> str:
    return ", ".join(map(repr, sorted(axes, key=str)))


def _argument_used(program: Any) -> None:
    """Raises where the loss ignores its argument: training would stand still without a word."""
    arguments = program.jaxpr.invars
    used = {id(v) for equation in program.jaxpr.eqns for v in equation.invars}
    used |= {id(v) for v in program.jaxpr.outvars}
    if arguments and not any(id(v) in used for v in arguments):
        raise ValueError(
            "value_fn does not depend on its argument: its loss is the same at all parameters. "
            "Write value_fn=lambda p: loss(p, batch), with p, not the parameters around it"
        )


def gradients_like(subject: str, gradients: Any, params: optax.Params, fix: str) -> None:
    """Raises unless `gradients` have the tree structure and the shapes of `params`.

    Args:
      subject: the beginning of the message, such as "grads must be".
      gradients: a pytree of arrays.
      params: the parameters.
      fix: the end of the message.
    """
    expected: Any = jax.tree.structure(params)
    got: Any = jax.tree.structure(gradients)
    if expected != got:
        raise TypeError(
            f"{subject} a gradient with the structure of params, {expected}, got {got}: {fix}"
        )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), gradient in zip(leaves, jax.tree.leaves(gradients), strict=True):
        if jnp.shape(leaf) != jnp.shape(gradient):
            raise ValueError(
                f"{subject} a gradient with the shapes of params, {list(jnp.shape(leaf))} at "
                f"params{jax.tree_util.keystr(path)}, got {list(jnp.shape(gradient))}: {fix}"
            )


def present(value: Any, message: str) -> Any:
    """Returns `value`, or raises a `ValueError` with `message` where it is None."""
    if value is None:
        raise ValueError(message)
    return value


def loss_needed(reason: str, value_fn: ValueFn | None) -> ValueFn:
    """Returns `value_fn`, or raises a `ValueError` that says why `grad_fn` alone is not enough."""
    return present(
        value_fn,
        f"value_fn is missing: {reason}, so grad_fn alone is not enough. Write "
        "tx.update(grads, opt_state, params, value_fn=lambda params: loss(params, batch))",
    )


def ascent_path(name: str, path: AscentPath | None, params: optax.Params | None) -> AscentPath:
    """Returns the path that the descent `name` was given, or raises where it stands elsewhere.

    It also checks `params`, as a descent within a mask would see them cut.
    """
    parameters(params)
    return present(
        path,
        f"path is missing: {name} reads the path of an ascent, so it is used as a descent, "
        f"sharpness_aware(ascent, descent={name}(...))",
    )
