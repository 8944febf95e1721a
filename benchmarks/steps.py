"""The training steps of the comparison: plain, hand-written SAM, SAM of Optax and of this library.

All share the base optimizer, compute the first gradient themselves, and have the signature
`step(params, opt_state, batch) -> (params, opt_state, loss)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.models import Batch
from xsam_jax import look_ahead, sam, slerp_sam, xsam

RHO = 0.05
RHO_MAX = 0.1
LEARNING_RATE = 0.05
BASE = optax.sgd(LEARNING_RATE, momentum=0.9)

LossFn = Callable[[Any, Batch], jax.Array]


class Step(NamedTuple):
    """A step function, and the function that makes its optimizer state from the parameters."""

    init: Callable[[Any], Any]
    step: Callable[[Any, Any, Batch], tuple[Any, Any, jax.Array]]


def gradient(loss_fn: LossFn) -> Step:
    """Returns the step of the base optimizer: one gradient."""

    def step(params: Any, opt_state: Any, batch: Batch) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = BASE.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return Step(BASE.init, step)


def hand_written_sam(loss_fn: LossFn) -> Step:
    """Returns SAM in as few operations as possible, without guards."""

    def step(params: Any, opt_state: Any, batch: Batch) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
        perturbed = jax.tree.map(lambda p, g: p + RHO / norm * g, params, grads)
        grads = jax.grad(loss_fn)(perturbed, batch)
        updates, opt_state = BASE.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return Step(BASE.init, step)


def contrib_sam(loss_fn: LossFn, steps: int = 1) -> Step:
    """Returns `optax.contrib.sam` in opaque mode, with the gradient normalized in the ascent."""
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(RHO))
    tx = optax.contrib.sam(BASE, adversary, sync_period=steps + 1, opaque_mode=True)

    def step(params: Any, opt_state: Any, batch: Batch) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(
            grads,
            opt_state,
            params,
            grad_fn=lambda params, _: jax.grad(loss_fn)(params, batch),
        )
        return optax.apply_updates(params, updates), opt_state, loss

    return Step(tx.init, step)


def ours(
    loss_fn: LossFn,
    transformation: optax.GradientTransformationExtraArgs,
    base: optax.GradientTransformation = BASE,
    losses_fn: LossFn | None = None,
    **decision: Any,
) -> Step:
    """Returns a step of the base optimizer behind a transformation of this library.

    Args:
      loss_fn: the loss.
      transformation: the method.
      base: the optimizer behind it.
      losses_fn: the losses of the images, for a method that needs these.
      **decision: `sharp`, for a gate that the host decides.
    """
    tx = optax.chain(transformation, base)

    def step(params: Any, opt_state: Any, batch: Batch) -> tuple[Any, Any, jax.Array]:
        def value_fn(params: Any) -> jax.Array:
            return loss_fn(params, batch)

        loss, grads = jax.value_and_grad(value_fn)(params)
        extra = dict(decision)
        if losses_fn is not None:
            extra["losses_fn"] = lambda params: losses_fn(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=value_fn, **extra)
        return optax.apply_updates(params, updates), opt_state, loss

    return Step(tx.init, step)


def looking_ahead(loss_fn: LossFn, tx: optax.GradientTransformation) -> Step:
    """Returns a step of an optimizer that takes the gradient at `look_ahead`."""
    tx = optax.with_extra_args_support(tx)

    def step(params: Any, opt_state: Any, batch: Batch) -> tuple[Any, Any, jax.Array]:
        def value_fn(params: Any) -> jax.Array:
            return loss_fn(params, batch)

        loss, grads = jax.value_and_grad(value_fn)(look_ahead(opt_state, params))
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), opt_state, loss

    return Step(tx.init, step)


def probe_alone(loss_fn: LossFn) -> Step:
    """Returns the update of XSAM with both gradients given, which are kept in the state."""
    tx = xsam(RHO, RHO_MAX)

    def init(params: Any) -> Any:
        return params, params, tx.init(params)

    def step(params: Any, state: Any, batch: Batch) -> tuple[Any, Any, jax.Array]:
        first, last, xsam_state = state
        updates, xsam_state = tx.update(
            first,
            xsam_state,
            params,
            value_fn=lambda params: loss_fn(params, batch),
            grad_fn=lambda params: last,
        )
        return params, (updates, last, xsam_state), optax.tree.get(xsam_state, "alpha")

    return Step(init, step)


def competitors(loss_fn: LossFn) -> dict[str, Step]:
    """Returns every step by the name it has in the tables, the reference second."""
    return {
        "gradient": gradient(loss_fn),
        "hand-written SAM": hand_written_sam(loss_fn),
        "optax.contrib.sam": contrib_sam(loss_fn),
        "sam": ours(loss_fn, sam(RHO)),
        "slerp_sam": ours(loss_fn, slerp_sam(RHO, alpha=1.5)),
        "xsam, grid": ours(loss_fn, xsam(RHO, RHO_MAX)),
        "xsam, section": ours(loss_fn, xsam(RHO, RHO_MAX, search="section")),
    }


def at_count(opt_state: Any, count: int) -> Any:
    """Returns the optimizer state with its step counter set."""
    return optax.tree.set(opt_state, count=jnp.asarray(count, jnp.int32))
