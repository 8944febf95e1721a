"""Values that differ between the devices of `jax.shard_map`, or between groups of examples."""

from collections.abc import Callable
from typing import Any

import jax
import optax

MeanOverGroups = Callable[[Any], Any]
"""A mean over the groups of `per_group`, leaf by leaf. Slots average what their state keeps."""


def one_group(values: Any) -> Any:
    """Returns `values`, their mean over the only group, where there is no `per_group`."""
    return values


def varying_axes(*trees: Any) -> frozenset[Any]:
    """Returns the axes of `jax.shard_map` over which a leaf of `trees`, or its type, varies."""
    axes: frozenset[Any] = frozenset()
    for leaf in jax.tree.leaves(trees):
        aval = leaf if isinstance(leaf, jax.core.AbstractValue) else jax.typeof(leaf)
        if (manual := getattr(aval, "manual_axis_type", None)) is not None:
            axes |= manual.varying
    return axes


def varying_like(values: Any, *like: Any) -> Any:
    """Returns `values` marked as varying over the axes of `jax.shard_map` over which `like` varies.

    Both branches of a conditional, and all passes of a loop, must return the same types.
    """
    axes = varying_axes(like)
    if not axes:
        return values

    def mark(leaf: jax.Array) -> jax.Array:
        missing = tuple(axes - varying_axes(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(mark, values)


def check_common(name: str, values: Any, inputs: Any, fix: str) -> None:
    """Raises if `values` vary over axes of `jax.shard_map` over which `inputs` do not vary.

    Args:
      name: the argument's name, for the message.
      values: the value of the argument, or the types of its results.
      inputs: the incoming gradient, and the parameters if they matter.
      fix: the end of the message, with `{}` for the names of the axes.
    """
    # If the inputs vary, each device has its own ascent, and its own loss is right.
    axes = varying_axes(values) - varying_axes(inputs)
    if axes:
        names = axis_names(axes)
        fix = fix.format(names if len(axes) == 1 else f"({names})")
        raise ValueError(f"{name} differs between the devices of mesh axis {names}: {fix}")


def check_inputs_agree(
    params: optax.Params,
    updates: optax.Updates,
    losses: Any,
    grad_fn: Callable[[Any], Any] | None = None,
) -> None:
    """Raises if parameters, gradient and loss vary over different axes of `jax.shard_map`."""
    params_axes, axes = varying_axes(params), varying_axes(updates)
    # A grad_fn may return a mean, whatever the loss is.
    if grad_fn is None and params_axes - axes:
        raise ValueError(
            f"params differ between the devices of mesh axis {axis_names(params_axes - axes)}, but "
            "grads do not, and further gradients would be those of one device: pass params with "
            "in_specs=P(), or the mean gradient as grad_fn"
        )
    axes -= varying_axes(losses)
    if axes & params_axes:
        raise ValueError(
            f"params differ between the devices of mesh axis {axis_names(axes & params_axes)}, but "
            "their loss does not, so each device has a shard of them, and would take the norm of "
            "its shard alone. Shard parameters (FSDP) under jax.jit, outside jax.shard_map"
        )
    if grad_fn is None and axes:
        raise ValueError(
            f"grads differ between the devices of mesh axis {axis_names(axes)}, but params and "
            "their loss do not: pass grads = jax.grad(value_fn)(params), or the mean, jax.lax.pmean"
        )


def axis_names(axes: frozenset[Any]) -> str:
    """Returns the names of the axes, for a message."""
    return ", ".join(map(repr, sorted(axes, key=str)))
