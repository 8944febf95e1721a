r"""One perturbation per group of examples (m-sharpness)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax._devices import MeanOverGroups, varying_like
from xsam_jax._value_fn import either
from xsam_jax.groups._checks_of_groups import (
    check_axis,
    check_outermost,
    check_signature,
    check_stack,
    check_state_rule,
    check_values,
)
from xsam_jax.groups._one_at_a_time import one_at_a_time

EVALUATIONS = ("vmap", "map", "unrolled")

# What a loss or gradient function of a group may be called, and arrays with a value per group.
FUNCTIONS = ("value_fn", "obj_fn", "grad_fn", "losses_fn")
VALUES = ("value", "losses")


def per_group(
    method: optax.GradientTransformation,
    axis_name: Any = None,
    *,
    evaluation: str = "vmap",
) -> optax.GradientTransformationExtraArgs:
    r"""Gives each group of the batch its own perturbation, and averages the results (m-sharpness).

    A batch is divided into :math:`n` groups of :math:`m` examples, with losses :math:`L_j`. Each
    group performs the method on its own loss, and the result is the mean:

    .. math:: \frac{1}{n} \sum_{j=1}^n \mathrm{descent}_j\bigl(\nabla L_j(\theta +
              \mathrm{ascent}(\nabla L_j(\theta)))\bigr).

    SAM was published in this form, with a group per device. Smaller groups act like a larger radius
    (measured on digits, docs/at_scale.md), so choose `rho` again when you change :math:`m`. Groups
    do not communicate during the ascent: on several devices a step of `sam` has one all-reduce in
    place of two. The gradient evaluations are as many as without groups.

    **In `jax.jit`**, on one device or with a sharded batch, the gradients of the groups are stacked
    along a leading axis, and so are the examples::

        tx = optax.chain(per_group(sam(0.05)), optax.sgd(0.1))

        groups = split_into_groups(batch, 8)
        losses, grads = jax.vmap(jax.value_and_grad(loss_fn), in_axes=(None, 0))(params, groups)
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn, groups=groups)

    Here `value_fn(params, group)` takes the examples of a group, and so do `grad_fn` and
    `losses_fn`. `value` and `losses` have a leading axis, too. What follows in the chain sees the
    mean. The result does not depend on the number of devices.

    **In `jax.shard_map` or `jax.pmap`**, name the mesh axis: `per_group(sam(0.05), "data")`. Each
    device is a group. It passes its own gradient, and `value_fn(params)` returns its own loss,
    without `jax.lax.pmean`. In `jax.pmap` and with `check_vma=False` JAX cannot tell a mean from
    the gradient of one device, so there is no error. For groups of several devices, use a mesh with
    two axes, `("group", "member")`: name "group", and let `value_fn` return the `jax.lax.pmean`
    over "member". With `check_vma=False` also pass `grad_fn`, the `pmean` of the gradient. For
    several groups on each device, use `jax.jit` with a sharded batch.

    **State.** There is one state for all groups, and no rule depends on their number:

    * Counters, schedules and random keys are common.
    * Averages of gradients (`friendly_sam`, `vasso`) are those of the mean gradient.
    * :math:`\alpha^*` of `xsam` maximizes the mean of the groups' losses. :math:`\psi` is the mean
      of their angles, and diagnostics of `record` are means.
    * Put a gate inside, `per_group(gated(sam(0.05), gate))`. `gradient_norm` reads the mean
      gradient.

    A method with other state, such as `look_sam` and `eigen_sam`, raises an error in `init`.

    Args:
      method: the method, without the optimizer.
      axis_name: the mesh axis whose devices are the groups, or a tuple of axes. The default None
        expects stacked groups. Static.
      evaluation: how losses and gradients of stacked groups are evaluated. "vmap" (default)
        evaluates all groups together, with the memory of the whole batch. "map" evaluates one
        group at a time in a loop, with the activations of one group. "unrolled" writes the loop
        out, which is the fastest for convolutions on CPU. Use "vmap" on several devices, to
        differentiate through the update, and for `esam`. Static.

    Returns:
      A gradient transformation with the state of `method`. With stacked groups, its updates have
      one axis less than the gradients that it is given. The memory for parameter-sized arrays is
      that of `method`, once per group on a device.

    Raises:
      TypeError: `method` is not a gradient transformation, or `axis_name` is a number. In `init`,
        the state of `method` depends on the gradient of one group, and has no rule for that. In
        `update`, `value_fn` does not take `(params, group)`.
      ValueError: `evaluation` is unknown, or given with `axis_name`. In `update`, `groups` is
        missing or does not fit to `grads`, `grads` are not stacked, no axis has the name
        `axis_name`, or `grads` in `jax.shard_map` are equal on all devices.

    Example:
      >>> import jax.numpy as jnp
      >>> from xsam_jax import per_group, sam, split_into_groups
      >>> tx = optax.chain(per_group(sam(rho=0.1)), optax.sgd(0.1))
      >>> loss_fn = lambda params, batch: jnp.mean(jnp.square(batch @ params - 1.0))
      >>> params, batch = jnp.array([1.0, 1.0]), jnp.array([[1.0, 2.0], [2.0, 1.0]])
      >>> opt_state, groups = tx.init(params), split_into_groups(batch, 2)
      >>> grads = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(params, groups)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn, groups=groups)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.667', '-0.667']

    References:
      Foret et al., `Sharpness-Aware Minimization for Efficiently Improving Generalization
      <https://arxiv.org/abs/2010.01412>`_, 2021, section 4.1
    """
    checks.transformation("method", method)
    checks.choice("evaluation", evaluation, EVALUATIONS)
    if isinstance(axis_name, int):
        raise TypeError(
            f"axis_name must be the name of a mesh axis, got {axis_name!r}: the number of groups "
            "is that of the stacked gradients, split_into_groups(batch, n)"
        )
    if axis_name is not None and evaluation != "vmap":
        raise ValueError(
            f"evaluation={evaluation!r} is for stacked groups: with axis_name each device has a "
            "group of its own, so leave it out"
        )
    method = optax.with_extra_args_support(method)

    def init_fn(params: optax.Params) -> optax.OptState:
        checks.parameters(params)
        check_state_rule(method, params)
        return method.init(params)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        check_outermost(extra_args)
        step = functools.partial(_mean_update, method, state)
        if axis_name is None:
            return _update_of_stack(step, updates, params, evaluation, **extra_args)
        return _update_of_axis(step, updates, params, axis_name, **extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _update_of_axis(
    step: Callable[..., Any],
    updates: optax.Updates,
    params: optax.Params | None,
    axis_name: Any,
    **extra_args: Any,
) -> tuple[optax.Updates, optax.OptState]:
    """The update of this device's group, in `jax.shard_map`, `jax.pmap` or `jax.vmap`."""
    if "groups" in extra_args:
        raise ValueError(
            "groups is for stacked groups, per_group(method): with axis_name each device is one "
            "group, so leave it out"
        )
    checks.parameters_of_update(params)
    # Or a perturbation that does not depend on the gradient, such as noise, would leave equal
    # parameters, whose gradient jax.grad sums over devices.
    params = varying_like(params, updates)
    value_fn = either(extra_args.get("value_fn"), extra_args.get("obj_fn"))
    check_axis(axis_name, updates, params, value_fn)

    def mean(values: Any) -> Any:
        return jax.lax.pmean(values, axis_name)

    return step(mean, updates, params, extra_args)


def _update_of_stack(
    step: Callable[..., Any],
    updates: optax.Updates,
    params: optax.Params | None,
    evaluation: str,
    *,
    groups: Any = None,
    **extra_args: Any,
) -> tuple[optax.Updates, optax.OptState]:
    """The update of all groups, whose gradients and examples are stacked."""
    size = check_stack(updates, params, groups)
    values = {k: v for k in VALUES if (v := extra_args.pop(k, None)) is not None}
    functions = {k: f for k in FUNCTIONS if (f := extra_args.pop(k, None)) is not None}
    check_values(values, size)
    for name, function in functions.items():
        check_signature(name, function)
    if evaluation != "vmap":
        unroll = evaluation == "unrolled"
        functions = {k: one_at_a_time(k, f, unroll) for k, f in functions.items()}

    def mean(values: Any) -> Any:
        # Not pmean, which fails on explicit mesh axes under vmap (JAX 0.10).
        values = jax.lax.all_gather(values, "groups")
        return jax.tree.map(lambda leaf: leaf.mean(axis=0), values)

    def update(gradient: Any, group: Any, values: Any) -> tuple[Any, Any]:
        own = {k: lambda params, f=f: f(params, group) for k, f in functions.items()}
        return step(mean, gradient, params, extra_args | own | values)

    try:
        return jax.vmap(update, out_axes=None, axis_name="groups")(updates, groups, values)
    except (TypeError, ValueError) as error:
        if "value_fn" in str(error):
            error.add_note(
                "Inside per_group, value_fn takes parameters and group, such as "
                "value_fn=lambda params, group: loss_fn(params, group)[0]"
            )
        raise


def _mean_update(
    method: optax.GradientTransformationExtraArgs,
    state: optax.OptState,
    mean: MeanOverGroups,
    updates: optax.Updates,
    params: optax.Params,
    extra_args: dict[str, Any],
) -> tuple[optax.Updates, optax.OptState]:
    """The update of one group, averaged over all."""
    if further := extra_args.keys() - {*FUNCTIONS, *VALUES}:  # `init` did not have them
        check_state_rule(method, params, {name: extra_args[name] for name in further})
    result, state = method.update(updates, state, params, mean_over_groups=mean, **extra_args)
    # A sum of float16 gradients may overflow.
    return tree.cast_like(mean(tree.scale(1.0, result)), result), state
