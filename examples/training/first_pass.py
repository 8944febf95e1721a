"""The clean pass of a training step, and the functions of the further passes.

A batch is evaluated as a whole, in groups with a perturbation each, or in parts one after the other
to save memory. Means over equal parts are means over the batch, except that BatchNorm normalizes
over each part.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from examples.training.devices import device_mesh
from xsam_jax import split_into_groups

Losses = Callable[[Any, Any], tuple[jax.Array, Any]]


class FirstPass(NamedTuple):
    """The result of the clean pass.

    Attributes:
      loss: The mean loss of the batch.
      aux: What the loss function returns beside the losses, the mean over the parts.
      gradient: The mean gradient.
      updates: What `update` of the optimizer takes: the gradient, or those of all groups.
      arguments: Further arguments of `update`, for the further passes.
    """

    loss: jax.Array
    aux: Any
    gradient: Any
    updates: Any
    arguments: dict[str, Any]


def first_pass(
    losses_fn: Losses, params: Any, batch: Any, groups: int = 1, accumulate: int = 1
) -> FirstPass:
    """Evaluates the gradient of a batch.

    Args:
      losses_fn: Maps parameters and images with labels to the losses of the images, and arrays
        whose mean over parts is logged or kept.
      params: The parameters.
      batch: Arrays whose leading axis is the images.
      groups: Number of groups with a perturbation each.
      accumulate: Number of parts that are evaluated one after the other, 1 or `groups` if there
        are groups.
    """

    def loss_fn(params: Any, part: Any) -> tuple[jax.Array, Any]:
        losses, aux = losses_fn(params, part)
        return losses.mean(), aux

    def gradient_of(part: Any) -> tuple[tuple[jax.Array, Any], Any]:
        return jax.value_and_grad(loss_fn, has_aux=True)(params, part)

    if groups > 1:
        parts = split_into_groups(batch, groups)
        stacked = _stack(gradient_of, parts) if accumulate > 1 else jax.vmap(gradient_of)(parts)
        (loss, aux), gradient = jax.tree.map(lambda leaf: leaf.mean(axis=0), stacked)
        (losses, _), gradients = stacked
        arguments = {
            "value": losses,
            "value_fn": lambda params, part: loss_fn(params, part)[0],
            "losses_fn": lambda params, part: losses_fn(params, part)[0],
            "groups": parts,
        }
        return FirstPass(loss, aux, gradient, gradients, arguments)
    if accumulate > 1:
        parts = _interleave(batch, accumulate)
        (loss, aux), gradient = _mean(gradient_of, parts)

        def value_fn(params: Any) -> jax.Array:
            return _mean(lambda part: loss_fn(params, part)[0], parts)

        def grad_fn(params: Any) -> Any:
            return _mean(lambda part: jax.grad(loss_fn, has_aux=True)(params, part)[0], parts)

        arguments = {"value": loss, "value_fn": value_fn, "grad_fn": grad_fn}
        return FirstPass(loss, aux, gradient, gradient, arguments)
    (loss, aux), gradient = gradient_of(batch)
    arguments = {
        "value": loss,
        "value_fn": lambda params: loss_fn(params, batch)[0],
        "losses_fn": lambda params: losses_fn(params, batch)[0],  # ESAM compares samples
    }
    return FirstPass(loss, aux, gradient, gradient, arguments)


def _unroll(parts: Any) -> int:
    # On CPU the gradient of a convolution is thirty times slower inside a loop.
    return len(jax.tree.leaves(parts)[0]) if jax.default_backend() == "cpu" else 1


def _stack(function: Callable[[Any], Any], parts: Any) -> Any:
    """Evaluates the parts one after the other."""

    def body(carry: None, part: Any) -> tuple[None, Any]:
        return carry, function(part)

    return jax.lax.scan(body, None, parts, unroll=_unroll(parts))[1]


def _mean(function: Callable[[Any], Any], parts: Any) -> Any:
    """Adds up the results of the parts, one after the other, and divides by their number."""

    def body(total: Any, part: Any) -> tuple[Any, None]:
        return optax.tree.add(total, function(part)), None

    first = jax.tree.map(lambda leaf: leaf[0], parts)
    zeros = optax.tree.zeros_like(jax.eval_shape(function, first))
    total, _ = jax.lax.scan(body, zeros, parts, unroll=_unroll(parts))
    return optax.tree.scale(1 / len(jax.tree.leaves(parts)[0]), total)


def _interleave(batch: Any, parts: int) -> Any:
    """Returns parts to which every device contributes its images."""
    sharding = NamedSharding(device_mesh(), P(None, "data"))

    def split(leaf: jax.Array) -> jax.Array:
        leaf = leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(leaf, sharding)

    return jax.tree.map(split, batch)
