"""Wide residual networks (Zagoruyko and Komodakis, https://arxiv.org/abs/1605.07146).

Convolutions start as He normal over the outputs, the head as torch.nn.Linear with a zero bias.
"""

from collections.abc import Sequence

import jax
from flax import nnx

from examples.image_classification.models.layers import Layers, global_average_pool


class PreActivationBlock(nnx.Module):
    """Two 3 x 3 convolutions, each after BatchNorm and ReLU.

    Where the width changes, the shortcut is a 1 x 1 convolution of the activated input.
    """

    def __init__(self, layers: Layers, in_width: int, width: int, stride: int) -> None:
        self.norm = layers.norm(in_width)
        self.branch = nnx.Sequential(
            *layers.conv_norm(in_width, width, stride=stride), nnx.relu, layers.conv(width, width)
        )
        changes = in_width != width
        self.projection = layers.conv(in_width, width, 1, stride) if changes else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's features, before any activation."""
        y = nnx.relu(self.norm(x))
        shortcut = x if self.projection is None else self.projection(y)
        return self.branch(y) + shortcut


class WideResNet(nnx.Module):
    """Three stages of pre-activation blocks without dropout, for small images.

    Args:
      layers: Makes the layers.
      image_shape: Height, width and channels.
      num_classes: Number of classes.
      blocks: Blocks of each stage. The depth is 6 * blocks + 4.
      widen: Factor of the widths of 16, 32 and 64.
    """

    def __init__(
        self,
        layers: Layers,
        image_shape: Sequence[int],
        num_classes: int,
        blocks: int = 4,
        widen: int = 10,
    ) -> None:
        in_width = 16
        self.stem = layers.conv(image_shape[-1], in_width)
        stages = []
        for width, first_stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            for block in range(blocks):
                stride = first_stride if block == 0 else 1
                stages.append(PreActivationBlock(layers, in_width, width, stride))
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
