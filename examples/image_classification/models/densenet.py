"""Densely connected networks (Huang et al., https://arxiv.org/abs/1608.06993), with bottlenecks.

Convolutions start as He normal over the outputs, the head as torch.nn.Linear with a zero bias.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from examples.image_classification.models.layers import (
    Layers,
    average_pool_2x2,
    global_average_pool,
    has_small_images,
    imagenet_stem,
)


class DenseLayer(nnx.Module):
    """A 1 x 1 and a 3 x 3 convolution, which add `growth` features to their input."""

    def __init__(self, layers: Layers, in_width: int, growth: int) -> None:
        self.branch = nnx.Sequential(
            layers.norm(in_width),
            nnx.relu,
            *layers.conv_norm(in_width, 4 * growth, kernel=1),
            nnx.relu,
            layers.conv(4 * growth, growth),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the old features and the new."""
        return jnp.concatenate([x, self.branch(x)], axis=-1)


def transition(layers: Layers, in_width: int) -> nnx.Sequential:
    """Returns the layers between two dense blocks, which halve width and resolution."""
    convolution = layers.conv(in_width, in_width // 2, kernel=1)
    return nnx.Sequential(layers.norm(in_width), nnx.relu, convolution, average_pool_2x2)


class DenseNet(nnx.Module):
    """Dense blocks with transitions between them.

    The stem is a 3 x 3 convolution for images up to 64 pixels wide, else ImageNet's. The small stem
    has no BatchNorm, since the first dense layer begins with one.

    Args:
      layers: Makes the layers.
      image_shape: Height, width and channels.
      num_classes: Number of classes.
      blocks: Dense layers of each block.
      growth: Features added by a dense layer. The stem has twice as many.
    """

    def __init__(
        self,
        layers: Layers,
        image_shape: Sequence[int],
        num_classes: int,
        blocks: Sequence[int] = (6, 12, 24, 16),
        growth: int = 32,
    ) -> None:
        channels, width = image_shape[-1], 2 * growth
        if has_small_images(image_shape):
            self.stem = nnx.Sequential(layers.conv(channels, width))
        else:
            self.stem = imagenet_stem(layers, channels, width)
        features: list[nnx.Module] = []
        for block, number in enumerate(blocks):
            if block > 0:
                features.append(transition(layers, width))
                width //= 2
            for _ in range(number):
                features.append(DenseLayer(layers, width, growth))
                width += growth
        self.features = nnx.List(features)
        self.norm = layers.norm(width)
        self.head = layers.head(width, num_classes)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns float32 logits of images of shape (batch, height, width, channels)."""
        x = self.stem(images)
        for layer in self.features:
            x = layer(x)
        return self.head(global_average_pool(nnx.relu(self.norm(x))))
