"""Efficient SAM (ESAM)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _devices, _value_fn
from xsam_jax._schedules import Radius
from xsam_jax.ascent.random_subset import random_subset
from xsam_jax.core import SharpnessAwareState, sharpness_aware
from xsam_jax.methods._ascent_of_length import ascent_of_length


def esam(
    rho: Radius,
    beta: float | jax.Array,
    gamma: float | jax.Array,
    key: jax.Array,
    *,
    convention: str = "paper",
) -> optax.GradientTransformationExtraArgs:
    r"""Efficient SAM (ESAM): perturbs a random subset, and descends on the most sensitive samples.

    With :math:`m \sim \mathrm{Bernoulli}(\beta)`, :math:`\epsilon = \rho\,m\,g_0 / (\beta\|g_0\|)`,
    :math:`l` the losses of the B samples, and :math:`d = l(\theta+\epsilon) - l(\theta)`, the
    update is the gradient at :math:`\theta+\epsilon` of the mean loss of the samples with
    :math:`d > c`, where c is the int(B gamma)-th largest of :math:`d`.

    The inequality is strict, as in the official code, so one sample fewer is selected. All samples
    are selected if :math:`\gamma \ge 0.99`, or if no sample exceeds c.

    Use it in place of `sam` to reproduce the paper. Under `jax.jit` shapes are fixed, so neither
    selection makes a step cheaper: a step costs one further gradient, and a forward pass unless
    `losses` is given.

    Its update needs the extra argument `losses_fn(params) -> (batch,)`, the loss of each sample. It
    takes `losses`, the value of that at `params`, if the caller has it. It does not use `value_fn`.

    Args:
      rho: the length of the ascent, as in `sam`.
      beta: :math:`\beta`, the probability to perturb a parameter, in (0, 1], published 0.5 to 0.6.
        A larger one perturbs more of them. 1 is the full ascent.
      gamma: :math:`\gamma`, the fraction of samples to descend on, in (0, 1], published 0.5. A
        larger one keeps more samples. If it is traced, int(B gamma) is rounded in float32.
      key: a random key, see `random_subset`.
      convention: "paper" (default) draws for each parameter, "official" for each whole array.
        Static.

    Returns:
      A gradient transformation with state `SharpnessAwareState`, which holds step counters only.

    Raises:
      TypeError: a numeric argument is not a real number, or `key` is not a key. In `update`,
        `losses_fn` is not a function that returns a vector, or `losses` has another shape.
      ValueError: an argument is out of range. In `update`, `losses_fn` or `params` is missing.

    Example:
      >>> x, y = jnp.array([[1.0, 2.0], [2.0, 1.0], [0.0, 1.0]]), jnp.array([1.0, -1.0, 0.5])
      >>> losses_fn = lambda params: jnp.square(x @ params - y)
      >>> loss_fn = lambda params: losses_fn(params).mean()
      >>> tx = optax.chain(esam(0.1, beta=0.6, gamma=0.7, key=jax.random.key(0)), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, losses_fn=losses_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-1.702', '-0.851']

    References:
      Du et al., `Efficient Sharpness-aware Minimization for Improved Training of Neural Networks
      <https://arxiv.org/abs/2110.03141>`_, 2022
    """
    checks.real("gamma", gamma, above=0.0, maximum=1.0)
    subset = random_subset(beta, key, convention=convention)
    perturbed = sharpness_aware(optax.chain(ascent_of_length(rho), subset))

    def update_fn(
        updates: optax.Updates,
        state: SharpnessAwareState,
        params: optax.Params | None = None,
        *,
        losses_fn: Callable[[Any], jax.Array] | None = None,
        losses: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SharpnessAwareState]:
        checks.parameters_of_update(params, "losses_fn=...")
        losses_fn = _check_losses(losses_fn, losses, params, updates)

        def gradient_of_selected(point: optax.Params) -> optax.Updates:
            before = losses_fn(params) if losses is None else losses
            after, pullback = jax.vjp(losses_fn, point)
            weights = _sample_weights(after - before, gamma)
            return pullback(weights.astype(after.dtype))[0]

        extra_args |= {"value_fn": None, "obj_fn": None, "grad_fn": gradient_of_selected}
        return perturbed.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(perturbed.init, update_fn)


def _sample_weights(rise: jax.Array, gamma: Any) -> jax.Array:
    """Returns 1/n for the n selected samples, and 0 for the others."""
    size = rise.shape[0]
    rank = size * gamma
    rank = rank.astype(jnp.int32) if isinstance(rank, jax.Array) else int(rank)
    cutoff = jnp.sort(_unsharded(rise), descending=True)[jnp.clip(rank - 1, 0, size - 1)]
    selected = rise > cutoff
    select_all = (jnp.asarray(gamma) >= 0.99) | ~jnp.any(selected)
    # If a loss is NaN no comparison holds, so all samples are selected, and the result is NaN.
    selected = selected | select_all
    return selected / jnp.sum(selected)


def _unsharded(array: jax.Array) -> jax.Array:
    """Returns a vector, replicated over an explicit mesh, since a sort needs all of it."""
    sharding = jax.typeof(array).sharding
    if sharding.spec[0] is None:  # automatic and manual axes do not appear in a type
        return array
    whole = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(None))
    return jax.sharding.reshard(array, whole)


def _check_losses(losses_fn: Any, losses: Any, params: optax.Params, updates: optax.Updates) -> Any:
    """Returns `losses_fn`, or raises unless it is a function that returns a loss for each sample.

    Within `jax.shard_map`, the samples must be those of all devices. Evaluates nothing but the
    shape of `losses_fn(params)`, which `losses` must have, too.
    """
    checks.present(
        losses_fn,
        "losses_fn is missing: esam compares the losses of samples. Write tx.update(grads, "
        "opt_state, params, losses_fn=lambda params: losses(params, batch)), of shape (batch,). "
        f"{_value_fn.DROPPED}",
    )
    if not callable(losses_fn):
        raise TypeError(f"losses_fn must be a function of the parameters, got {losses_fn!r}")
    program, result = _value_fn.trace("losses_fn", losses_fn, params, "losses")
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
    _devices.check_common("losses_fn", program.out_avals, inputs, fix)
    _devices.check_common("losses", losses, inputs, f"{reason}. Pass {gathered}")
    _devices.check_inputs_agree(params, updates, program.out_avals)
    return losses_fn
