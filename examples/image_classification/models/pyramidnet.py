"""Pyramidal residual networks (Han et al., https://arxiv.org/abs/1610.02915), additive, basic.

Convolutions start as He normal over the outputs, the head as torch.nn.Linear with a zero bias.
"""

from collections.abc import Sequence

import jax
from flax import nnx

from examples.image_classification.models.layers import (
    Layers,
    average_pool_2x2,
    global_average_pool,
    pad_channels,
)


class PyramidBlock(nnx.Module):
    """Two 3 x 3 convolutions with BatchNorm and a single ReLU between them.

    The shortcut averages over 2 x 2 pixels where the block strides, and is padded with channels.
    """

    def __init__(self, layers: Layers, in_width: int, width: int, stride: int) -> None:
        self.branch = nnx.Sequential(
            layers.norm(in_width),
            *layers.conv_norm(in_width, width, stride=stride),
            nnx.relu,
            *layers.conv_norm(width, width),
        )
        self.shortcut = average_pool_2x2 if stride == 2 else nnx.identity

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's features, before any activation."""
        y = self.branch(x)
        return y + pad_channels(self.shortcut(x), y.shape[-1])


class PyramidNet(nnx.Module):
    """Three stages of blocks, each wider than the last by the same number, for small images.

    Args:
      layers: Makes the layers.
      image_shape: Height, width and channels.
      num_classes: Number of classes.
      blocks: Blocks of each stage. The depth is 6 * blocks + 2.
      alpha: Width added over all blocks to the 16 of the stem.
    """

    def __init__(
        self,
        layers: Layers,
        image_shape: Sequence[int],
        num_classes: int,
        blocks: int = 18,
        alpha: int = 270,
    ) -> None:
        in_width = 16
        self.stem = nnx.Sequential(*layers.conv_norm(image_shape[-1], in_width))
        stages = []
        for index in range(3 * blocks):
            width = 16 + round(alpha * (index + 1) / (3 * blocks))
            stride = 2 if index in (blocks, 2 * blocks) else 1
            stages.append(PyramidBlock(layers, in_width, width, stride))
            in_width = width
        self.blocks = nnx.List(stages)
        self.norm = layers.norm(in_width)
        self.head = layers.head(in_width, num_classes)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns float32 logits of images of shape (batch, height, width, channels)."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(global_average_pool(nnx.relu(self.norm(x))))
