"""Checks of the arguments of `per_group` and of its update."""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _devices, _value_fn
from xsam_jax import _tree as tree


def check_state_rule(
    method: optax.GradientTransformationExtraArgs,
    params: optax.Params,
    extra_args: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Raises if the state after a step differs between groups.

    It traces a step of a toy loss, so it costs little. A method that needs further arguments is
    checked in `update`, which has them.

    Args:
      method: the method.
      params: the parameters.
      extra_args: further arguments of its update, without losses, gradients and their values.
    """
    finished = False

    def new_state(gradient: Any) -> Any:
        nonlocal finished
        finished = False
        like = jax.tree.map(jnp.zeros_like, gradient)  # the parameters, equal for all groups

        def value_fn(params: Any) -> jax.Array:
            """A loss of its own for each group."""
            return tree.squared_norm(tree.combine(1.0, params, -1.0, gradient))

        _, state = method.update(
            gradient,
            method.init(like),
            like,
            value_fn=value_fn,
            losses_fn=lambda params: value_fn(params)[None],
            mean_over_groups=lambda values: jax.lax.pmean(values, "groups"),
            **extra_args,
        )
        finished = True
        return state

    def stacked(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((2, *jnp.shape(leaf)), jnp.result_type(leaf))

    gradients = jax.tree.map(stacked, params)

    def differs(select: Callable[[Any], Any]) -> bool:
        step = jax.vmap(lambda g: select(new_state(g)), out_axes=None, axis_name="groups")
        try:
            jax.eval_shape(step, gradients)
        except Exception:
            # vmap refuses a result that differs, after the step. An error within the step is that
            # of a missing argument, and raised again by the step itself.
            return finished
        return False

    def leaf_of(index: int, state: Any) -> Any:
        return jax.tree.leaves(state)[index]

    if differs(lambda state: state):
        leaves = jax.tree_util.tree_leaves_with_path(method.init(params))
        names = [
            jax.tree_util.keystr(path)
            for index, (path, _) in enumerate(leaves)
            if differs(functools.partial(leaf_of, index))
        ]
        raise TypeError(
            "per_group has no rule for a part of the state of this method, which would differ "
            f"between groups: state{names[0]}. All methods work but look_sam, eigen_sam, those "
            "with a gradient at look_ahead, and those with an optimizer inside unless it is plain "
            "optax.sgd. An optimizer in a chain comes after per_group: "
            "optax.chain(per_group(sam(0.05)), optax.adam(0.1))"
        )


def check_outermost(extra_args: Mapping[str, Any]) -> None:
    """Raises inside a gate or another `per_group`, which pass on their mean."""
    if "mean_over_groups" in extra_args:
        raise ValueError(
            "per_group must not be inside a gate or another per_group: write "
            "per_group(gated(sam(0.1), gate)), and for several groups on each device use jax.jit "
            "with stacked groups"
        )


def check_axis(axis_name: Any, updates: optax.Updates, params: optax.Params, value_fn: Any) -> None:
    """Raises unless the axis exists, and gradients and losses differ between its devices."""
    try:
        index = jax.lax.axis_index(axis_name)
    except NameError:
        raise ValueError(
            f"axis_name {axis_name!r} is not an axis here: call update inside jax.shard_map or "
            "jax.pmap over an axis of this name; in jax.jit alone write per_group(method), with "
            "stacked groups"
        ) from None
    # Empty where JAX does not track what differs: check_vma=False, pmap and vmap.
    axes = _devices.varying_axes(index) - _devices.varying_axes(updates)
    if axes:
        names = _devices.axis_names(axes)
        raise ValueError(
            f"grads do not differ between the devices of mesh axis {names}, so they are not those "
            "of one group: jax.grad of parameters that are equal on all devices sums over them. "
            f'Write grads = jax.grad(loss)(jax.lax.pcast(params, ({names},), to="varying"))'
        )
    if callable(value_fn):
        program, _ = _value_fn.trace("value_fn", value_fn, params, "loss")
        axes = _devices.varying_axes(index) - _devices.varying_axes(program.out_avals)
        if axes:
            names = _devices.axis_names(axes)
            raise ValueError(
                f"value_fn must return the loss of its own group, but it is the same on all "
                f"devices of mesh axis {names}: leave out jax.lax.pmean over {names}"
            )


def check_stack(updates: optax.Updates, params: optax.Params | None, groups: Any) -> int:
    """Returns the number of groups, or raises if gradients or examples do not have this axis."""
    checks.parameters_of_update(params, "value_fn=..., groups=...")
    if not jax.tree.leaves(groups):
        raise ValueError(
            "groups is missing: per_group evaluates the loss of each group. Write "
            "tx.update(grads, opt_state, params, value_fn=loss_fn, groups=groups), with "
            "groups = split_into_groups(batch, n) and loss_fn(params, group). In jax.shard_map "
            "write per_group(method, axis_name)"
        )
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(groups)}
    if len(sizes) > 1 or () in sizes:
        shapes = ", ".join(str(list(jnp.shape(leaf))) for leaf in jax.tree.leaves(groups))
        raise ValueError(
            "groups must hold arrays with one leading axis, the groups, got shapes "
            f"{shapes}: write groups = split_into_groups(batch, n)"
        )
    ((size,),) = sizes
    if axes := _devices.varying_axes(updates, groups):
        raise ValueError(
            f"stacked groups inside jax.shard_map over {_devices.axis_names(axes)}: name the axis, "
            "per_group(method, axis_name), or use stacked groups in jax.jit with a sharded batch, "
            "without jax.shard_map"
        )
    fix = "grads = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(params, groups)"
    for leaf in jax.tree.leaves(updates):
        if jnp.shape(leaf)[:1] != (size,):
            raise ValueError(
                f"grads must be stacked, one gradient for each of the {size} groups, got a leaf of "
                f"shape {list(jnp.shape(leaf))}: write {fix}, with "
                "groups = split_into_groups(batch, n)"
            )

    def without_axis(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(jnp.shape(leaf)[1:], jnp.result_type(leaf))

    first = jax.tree.map(without_axis, updates)
    _value_fn.check_gradient_like(
        "each of the stacked grads must be", first, params, f"write {fix}"
    )
    return size


def check_values(values: dict[str, Any], size: int) -> None:
    """Raises unless every value has one entry for each group."""
    for name, value in values.items():
        if jnp.shape(value)[:1] != (size,):
            raise ValueError(
                f"{name} must have an entry for each of the {size} groups, got shape "
                f"{list(jnp.shape(value))}"
            )


def check_signature(name: str, function: Any) -> None:
    """Raises unless `function(params, group)` can be called."""
    fix = f"write {name}=lambda params, group: loss(params, group)"
    if not callable(function):
        raise TypeError(
            f"{name} must be a function of parameters and group, got {function!r}: {fix}"
        )
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except ValueError:  # some callables written in C have none
        return
    try:
        signature.bind(None, None)
    except TypeError as mismatch:
        raise TypeError(
            f"{name} is called with the parameters and the examples of a group, but its signature "
            f"is {signature} ({mismatch}): {fix}"
        ) from None
