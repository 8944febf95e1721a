"""Residual networks (He et al., https://arxiv.org/abs/1512.03385): of CIFAR and of ImageNet.

ReLU follows the addition, and a bottleneck strides in its 3 x 3 convolution, as in torchvision.
Convolutions start as He normal over the outputs, the head as torch.nn.Linear with a zero bias.
"""

from collections.abc import Callable, Sequence

import jax
from flax import nnx

from examples.image_classification.models.layers import (
    Layers,
    global_average_pool,
    has_small_images,
    imagenet_stem,
    pad_channels,
)


def basic(layers: Layers, in_width: int, width: int, stride: int) -> nnx.Sequential:
    """Returns two 3 x 3 convolutions."""
    return nnx.Sequential(
        *layers.conv_norm(in_width, width, stride=stride), nnx.relu, *layers.conv_norm(width, width)
    )


def bottleneck(layers: Layers, in_width: int, width: int, stride: int) -> nnx.Sequential:
    """Returns a 3 x 3 convolution at a quarter of the width, between two of 1 x 1."""
    inner = width // 4
    return nnx.Sequential(
        *layers.conv_norm(in_width, inner, kernel=1),
        nnx.relu,
        *layers.conv_norm(inner, inner, stride=stride),
        nnx.relu,
        *layers.conv_norm(inner, width, kernel=1),
    )


class ZeroPadding(nnx.Module):
    """The shortcut without parameters, the paper's option A: every second pixel, more channels."""

    def __init__(self, layers: Layers, in_width: int, width: int, stride: int) -> None:
        del layers, in_width
        self.width, self.stride = width, stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns x at the block's resolution and width."""
        return pad_channels(x[:, :: self.stride, :: self.stride], self.width)


def projection(layers: Layers, in_width: int, width: int, stride: int) -> nnx.Sequential:
    """Returns the shortcut that is a 1 x 1 convolution, the paper's option B."""
    return nnx.Sequential(*layers.conv_norm(in_width, width, kernel=1, stride=stride))


class ResidualBlock(nnx.Module):
    """The sum of a branch and a shortcut, which is the identity where no shape changes."""

    def __init__(
        self,
        layers: Layers,
        in_width: int,
        width: int,
        stride: int,
        branch: Callable[..., nnx.Module],
        shortcut: Callable[..., nnx.Module],
    ) -> None:
        changes = stride != 1 or in_width != width
        self.branch = branch(layers, in_width, width, stride)
        self.shortcut = shortcut(layers, in_width, width, stride) if changes else nnx.identity

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's features."""
        return nnx.relu(self.branch(x) + self.shortcut(x))


class ResNet(nnx.Module):
    """Stages of residual blocks, each with twice the width at half the resolution.

    The stem is a 3 x 3 convolution for images up to 64 pixels wide, else ImageNet's.

    Args:
      layers: Makes the layers.
      image_shape: Height, width and channels.
      num_classes: Number of classes.
      blocks: Number of blocks of each stage.
      width: Width of the stem, and of the 3 x 3 convolutions in the first stage.
      branch: `basic` or `bottleneck`.
      shortcut: `projection` or `ZeroPadding`, where a block changes the shape.
      stem_stride: Stride of the stem for small images.
    """

    def __init__(
        self,
        layers: Layers,
        image_shape: Sequence[int],
        num_classes: int,
        blocks: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        branch: Callable[..., nnx.Module] = basic,
        shortcut: Callable[..., nnx.Module] = projection,
        stem_stride: int = 1,
    ) -> None:
        channels = image_shape[-1]
        if has_small_images(image_shape):
            stem = layers.conv_norm(channels, width, stride=stem_stride)
            self.stem = nnx.Sequential(*stem, nnx.relu)
        else:
            self.stem = imagenet_stem(layers, channels, width)
        expansion = 4 if branch is bottleneck else 1
        stages, in_width = [], width
        for stage, number in enumerate(blocks):
            out_width = width * expansion * 2**stage
            for block in range(number):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(ResidualBlock(layers, in_width, out_width, stride, branch, shortcut))
                in_width = out_width
        self.blocks = nnx.List(stages)
        self.head = layers.head(in_width, num_classes)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns float32 logits of images of shape (batch, height, width, channels)."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(global_average_pool(x))
