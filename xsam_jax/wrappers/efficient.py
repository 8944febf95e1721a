"""Part of the parameters, and part of the samples (ESAM)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xsam_jax import checks
from xsam_jax.alias.climb import climb
from xsam_jax.ascent import random_subset
from xsam_jax.base import Radius
from xsam_jax.core import SharpnessAwareState, sharpness_aware


def esam(
    rho: Radius,
    beta: float | jax.Array,
    gamma: float | jax.Array,
    key: jax.Array,
    *,
    convention: str = "paper",
) -> optax.GradientTransformationExtraArgs:
    r"""Efficient SAM (ESAM): a random part is perturbed, and the samples that suffer most descend.

    With :math:`m \sim \mathrm{Bernoulli}(\beta)`, :math:`\epsilon = \rho\,m\,g_0 / (\beta\|g_0\|)`,
    :math:`l` the losses of the B samples, and :math:`d = l(\theta+\epsilon) - l(\theta)`, the
    update is the gradient at :math:`\theta+\epsilon` of the mean loss of the samples with
    :math:`d > c`, where c is the int(B gamma)-th largest of :math:`d`.

    The inequality is strict, as in the official code, so that one sample fewer is taken; from
    :math:`\gamma = 0.99` on, and where none is left, all are. It costs one further gradient and a
    forward pass, which `losses` saves. Under `jax.jit` shapes are fixed, so that neither choice
    makes a step cheaper; what is computed is what the paper computes.

    Its update needs the extra argument `losses_fn(params) -> (batch,)`, the loss of each sample,
    and takes `losses`, its value at `params`, where the caller has it. `value_fn` is not used.

    Args:
      rho: the length of the ascent, as in `sam`.
      beta: the probability :math:`\beta` of a parameter to be perturbed, in (0, 1]; published 0.5
        to 0.6. May be traced.
      gamma: the share :math:`\gamma` of samples that descend, in (0, 1]; published 0.5. May be
        traced, and int(B gamma) is then rounded in float32.
      key: a random key; see `random_subset`.
      convention: "paper" draws for each parameter, "official" for each whole array. Static.

    Returns:
      A gradient transformation with state `SharpnessAwareState`, step counters only. Gradients keep
      their dtype.

    Raises:
      TypeError: a numeric argument is not a real number, or `key` is not a key; in `update`,
        `losses_fn` is not a function that returns a vector, or `losses` is another one.
      ValueError: an argument is out of range; or, in `update`, `losses_fn` or `params` is missing.

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
    perturbed = sharpness_aware(optax.chain(climb(rho), subset))

    def update_fn(
        updates: optax.Updates,
        state: SharpnessAwareState,
        params: optax.Params | None = None,
        *,
        losses_fn: Callable[[Any], jax.Array] | None = None,
        losses: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SharpnessAwareState]:
        checks.present(
            params, "params is missing: tx.update(grads, opt_state, params, losses_fn=...)"
        )
        checks.parameters(params)
        losses_fn = checks.sample_losses(losses_fn, losses, params, updates)

        def gradient_of_the_most_sensitive(point: optax.Params) -> optax.Updates:
            before = losses_fn(params) if losses is None else losses
            after, pullback = jax.vjp(losses_fn, point)
            weights = _weights_of_the_most_sensitive(after - before, gamma)
            return pullback(weights.astype(after.dtype))[0]

        extra_args |= {"value_fn": None, "grad_fn": gradient_of_the_most_sensitive}
        return perturbed.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(perturbed.init, update_fn)


def _weights_of_the_most_sensitive(rise: jax.Array, gamma: Any) -> jax.Array:
    """Returns 1/n for the n samples whose loss rose more than the int(B gamma)-th, 0 elsewhere."""
    size = rise.shape[0]
    rank = size * gamma
    rank = rank.astype(jnp.int32) if isinstance(rank, jax.Array) else int(rank)
    cutoff = jnp.sort(_unsharded(rise), descending=True)[jnp.clip(rank - 1, 0, size - 1)]
    chosen = rise > cutoff
    everyone = (jnp.asarray(gamma) >= 0.99) | ~jnp.any(chosen)
    # Where a loss is NaN no comparison holds, all are taken, and the NaN comes out.
    chosen = chosen | everyone
    return chosen / jnp.sum(chosen)


def _unsharded(array: jax.Array) -> jax.Array:
    """Returns a vector that is whole on each device of an explicit mesh, as a sort needs it."""
    sharding = jax.typeof(array).sharding
    if sharding.spec[0] is None:  # automatic and manual axes do not appear in a type
        return array
    whole = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(None))
    return jax.sharding.reshard(array, whole)
