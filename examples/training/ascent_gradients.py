"""Other gradients for the ascent of SAM: those of section 4 of the F-SAM paper.

SAM descends along the gradient of the batch after an ascent along another one: the part of the
batch gradient along the gradient of all data, the rest, or the gradient of other batches.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

Kind = Literal["full", "noise", "noise_eq8", "other_batch", "larger_batch"]
CHUNK = 1000  # images at a time, in the gradient of all data

GradientOfRow = Callable[[jax.Array, jax.Array], Any]


def ascent_gradient(
    kind: Kind,
    gradient: Any,
    gradient_of_row: GradientOfRow,
    size: int,
    batch: jax.Array,
    batches: int,
    key: jax.Array,
) -> Any:
    """Returns the gradient along which SAM ascends.

    Args:
      kind: "full" is the projection on the gradient of all data, "noise" the part orthogonal to it,
        and "noise_eq8" the paper's equation 8, which has the cosine but not the ratio of norms.
        "other_batch" is the gradient of another random batch, and "larger_batch" that of `batches`
        batches, this one among them, without an image twice.
      gradient: The gradient of the batch.
      gradient_of_row: Maps indices, negative ones for padding, and a key to the sum of the
        gradients of the losses of these images.
      size: Number of training images.
      batch: Indices of the images in the batch.
      batches: Number of batches of "larger_batch".
      key: Random key of the step.
    """
    if kind in ("other_batch", "larger_batch"):
        order = jax.random.uniform(key, (size,))
        if kind == "other_batch":
            rows = jnp.argsort(order)[: len(batch)]
            return optax.tree.scale(1 / len(batch), gradient_of_row(rows, key))
        count = min((batches - 1) * len(batch), size - len(batch))
        rows = jnp.argsort(order.at[batch].set(2.0))[:count]  # those of the batch come last
        whole = optax.tree.add_scale(gradient_of_row(rows, key), len(batch), gradient)
        return optax.tree.scale(1 / (len(batch) + count), whole)
    full = optax.tree.scale(1 / size, _total(gradient_of_row, size, key))
    product, square = optax.tree.vdot(gradient, full), optax.tree.vdot(full, full)
    if kind == "noise_eq8":
        cosine = product / optax.tree.norm(gradient) / jnp.sqrt(square)
        return optax.tree.add_scale(gradient, -cosine, full)
    common = optax.tree.scale(product / square, full)
    return common if kind == "full" else optax.tree.sub(gradient, common)


def _total(gradient_of_row: GradientOfRow, size: int, key: jax.Array) -> Any:
    """Returns the sum over all images, a chunk after the other."""
    count = -(-size // CHUNK)
    # Negative indices are padding. They are those of different images, for BatchNorm.
    missing = count * CHUNK - size if count > 1 else 0
    rows = jnp.arange(-missing, size, dtype=jnp.int32).reshape(count, -1)
    if count == 1:
        return gradient_of_row(rows[0], key)
    totals = jax.lax.map(lambda of: gradient_of_row(*of), (rows, jax.random.split(key, count)))
    return jax.tree.map(lambda leaf: leaf.sum(axis=0), totals)
