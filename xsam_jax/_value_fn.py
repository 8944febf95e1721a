"""The functions that `update` receives, `value_fn` and `grad_fn`: types, checks and evaluation."""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _devices
from xsam_jax import _tree as tree

ValueFn: TypeAlias = Callable[[Any], jax.Array]
"""The loss as a pure function of the parameters. It closes over the batch, keys and statistics."""

GradFn: TypeAlias = Callable[[Any], Any]
"""The gradient as a function of the parameters, with their tree structure."""

DROPPED = (
    "If you passed it, something around the method dropped it: the TrainState of Flax linen does "
    "(use xsam_jax.flax_linen.TrainState), and so do "
    "optax.MultiSteps(...).gradient_transformation() around it (put it after the method in the "
    "chain) and optax.contrib.split_real_and_imaginary (split complex parameters before init, "
    "and join them in the loss)"
)


def value_at(value_fn: ValueFn, params: optax.Params, displacement: Any) -> jax.Array:
    """Returns the loss at `params + displacement`, float32 (float64 under x64)."""
    point = optax.apply_updates(params, displacement)
    return jnp.asarray(value_fn(point), tree.accumulation_dtype())


def either(value_fn: ValueFn | None, obj_fn: ValueFn | None) -> ValueFn | None:
    """Returns the loss by whichever of its two names it was given."""
    if value_fn is not None and obj_fn is not None:
        raise ValueError("value_fn and obj_fn are two names of the loss: pass one of them")
    return obj_fn if value_fn is None else value_fn


def require_value_fn(reason: str, value_fn: ValueFn | None) -> ValueFn:
    """Returns `value_fn`, or raises a `ValueError` with the reason why `grad_fn` is not enough."""
    return checks.present(
        value_fn,
        f"value_fn is missing: {reason}, so grad_fn alone is not enough. Write "
        "tx.update(grads, opt_state, params, value_fn=lambda params: loss(params, batch))",
    )


def check_functions(
    value_fn: ValueFn | None,
    grad_fn: GradFn | None,
    params: optax.Params,
    updates: optax.Updates,
    value: Any,
    others: Iterable[str] = (),
) -> None:
    """Raises unless there is a scalar loss or a gradient function.

    The message names the `others`, further extra arguments, one of which may be misspelt.

    Within `jax.shard_map`, `value_fn` and `value` must be the loss of all devices. It traces
    `value_fn(params)` without evaluating it.
    """
    if "groups" in others:
        raise ValueError("groups is for per_group(method), which this method is not inside of")
    if value_fn is None and grad_fn is None:
        others = [name for name in others if name != "mean_over_groups"]
        given = f" (given: {', '.join(others)})" if others else ""
        raise ValueError(
            f"value_fn is missing{given}: a sharpness-aware step evaluates the loss at other "
            "parameters. Write tx.update(grads, opt_state, params, value_fn=lambda params: "
            "loss(params, batch)); in Flax NNX, optimizer.update(model, grads, value_fn="
            f"make_value_fn(loss_fn, model, batch)) with xsam_jax.flax_nnx. {DROPPED}"
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
    program, result = trace("value_fn", value_fn, params, "loss")
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
        # Even if params vary, grads and grad_fn may be means over devices.
        inputs = updates
        reason = "losses that a method compares must be equal on all devices"
    _devices.check_common("value_fn", program.out_avals, inputs, f"{reason}. Write {mean}")
    _devices.check_common("value", value, inputs, "write value=jax.lax.pmean(loss, {})")
    _devices.check_inputs_agree(params, updates, program.out_avals, grad_fn)
    _argument_used(program)


def gradient_at(point: optax.Params, grad_fn: GradFn, updates: optax.Updates) -> optax.Updates:
    """Returns `grad_fn(point)`, or raises if it is not a gradient like `updates`."""
    try:
        gradient = grad_fn(point)
    except TypeError as error:
        contrib = "for that of optax.contrib.sam, grad_fn=lambda params: grad_fn(params, 0)"
        _explain_signature("grad_fn", grad_fn, point, error, f"grad_fn=jax.grad(loss); {contrib}")
        raise
    fix = "write grad_fn=jax.grad(loss), not jax.value_and_grad(loss)"
    check_gradient_like("grad_fn must return", gradient, point, fix)
    mean = "grad_fn=lambda params: jax.lax.pmean(jax.grad(loss)(params), {})"
    reason = "grads do not differ, so it should be the mean gradient, too"
    _devices.check_common("grad_fn", gradient, updates, f"{reason}. Write {mean}")
    return gradient


def gradient_of(
    point: optax.Params,
    updates: optax.Updates,
    value_fn: ValueFn | None = None,
    grad_fn: GradFn | None = None,
    obj_fn: ValueFn | None = None,
    **others: Any,
) -> optax.Updates:
    """Returns the gradient at `point` from the extra arguments of an update, after their checks."""
    value_fn = either(value_fn, obj_fn)
    check_functions(value_fn, grad_fn, point, updates, None, others)
    if grad_fn is not None:
        return gradient_at(point, grad_fn, updates)
    return jax.grad(cast(ValueFn, value_fn))(point)


def trace(name: str, function: Any, params: optax.Params, loss: str) -> Any:
    """Returns the program and the result types of `function(params)`, or re-raises its error.

    Args:
      name: the argument's name, for the message.
      function: the loss, or the losses.
      params: the parameters.
      loss: the name of the loss in the message.
    """
    try:
        return jax.make_jaxpr(function, return_shape=True)(params)
    except Exception as error:
        fix = f"{name}=lambda params: {loss}(params, batch)"
        _explain_signature(name, function, params, error, fix)
        # Such errors arise if the loss calls the parameters, or a method of them, like a model.
        if isinstance(error, AttributeError) or re.search(
            "not callable|NoneType|trace level", str(error)
        ):
            error.add_note(
                f"{name} raised this when it was called with params. For a Flax NNX model write "
                f"{name}=make_value_fn({loss}, model, batch), with xsam_jax.flax_nnx; for an "
                f"Equinox model, {name}=lambda params: {loss}(eqx.combine(params, static), batch)"
            )
        raise


def _explain_signature(
    name: str, function: Any, params: optax.Params, error: Exception, fix: str
) -> None:
    """Raises an explanation if `function(params)` raised `error` because of its signature.

    This is checked after the call, since `functools.wraps` can hide the true signature.
    """
    if not re.search("(positional|keyword-only) argument", str(error)):
        return
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables written in C have none
        return
    try:
        signature.bind(params)
    except TypeError as mismatch:
        raise TypeError(
            f"{name} is called with the parameters alone, but its signature is {signature} "
            f"({mismatch}): write {fix}"
        ) from error


def check_gradient_like(subject: str, gradients: Any, params: optax.Params, fix: str) -> None:
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


def _argument_used(program: Any) -> None:
    """Raises if the loss ignores its argument: its gradient would be zero."""
    arguments = program.jaxpr.invars
    used = {id(v) for equation in program.jaxpr.eqns for v in equation.invars}
    used |= {id(v) for v in program.jaxpr.outvars}
    if arguments and not any(id(v) in used for v in arguments):
        raise ValueError(
            "value_fn does not depend on its argument: its loss is the same at all parameters. "
            "Write value_fn=lambda p: loss(p, batch), with p, not the parameters around it"
        )
