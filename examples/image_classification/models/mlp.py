"""A network without convolutions, for digits of 8 x 8 pixels."""

from collections.abc import Sequence
from math import prod

import jax
import jax.numpy as jnp
from flax import nnx

from examples.image_classification.models.layers import Layers


class MLP(nnx.Module):
    """Two hidden layers with ReLU on the flattened image, with Flax's initialization.

    Args:
      layers: Random numbers and the compute dtype.
      image_shape: Height, width and channels.
      num_classes: Number of classes.
      width: Width of the hidden layers.
    """

    def __init__(
        self, layers: Layers, image_shape: Sequence[int], num_classes: int, width: int = 256
    ) -> None:
        dtype, rngs = layers.dtype, layers.rngs
        self.first = nnx.Linear(prod(image_shape), width, dtype=dtype, rngs=rngs)
        self.second = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns float32 logits of images of shape (batch, height, width, channels)."""
        x = images.reshape(images.shape[0], -1)
        x = nnx.relu(self.first(x))
        return self.head(nnx.relu(self.second(x)))
