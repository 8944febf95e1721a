"""Layers of the convolutional networks, with PyTorch's padding.

Initial weights and statistics compare with PyTorch as follows:

- Convolutions are He normal over the outputs (fan-out), as in torchvision's ResNet. PyTorch's own
  default is uniform within 1/sqrt(fan-in).
- The head has the weights of torch.nn.Linear, uniform within 1/sqrt(fan-in). Its bias is zero,
  where PyTorch draws it from the same interval.
- BatchNorm starts as in PyTorch. Its running variance averages the biased variance of a batch,
  where PyTorch averages the unbiased one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

HE_FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
# Uniform within 1/sqrt(inputs), as the weights of torch.nn.Linear.
TORCH_LINEAR = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class RunningStatistic(nnx.BatchStat):
    """A statistic that is assigned without reading the sharding of the new value.

    nnx compares the shardings of both values. Reading the sharding of a traced value raises an
    error whose message searches the whole trace, which took over four minutes for PyramidNet.
    """

    def set_value(self, value: Any, **index: Any) -> None:
        """Replaces the value, or the part at `index`."""
        whole = index.get("index") is ...
        super().set_value(value, **({} if whole else index))


def in_float32(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Keeps statistics, scale and bias in float32, which nnx would round to the compute dtype."""
    del dtype, inexact
    return arrays


@dataclass(frozen=True)
class Layers:
    """Makes layers that share random numbers and the dtype they compute in.

    Attributes:
      rngs: Random numbers for the initial weights.
      dtype: Compute dtype. Parameters are float32.
      conv_init: Initializer of the kernels of convolutions.
    """

    rngs: nnx.Rngs
    dtype: Any = jnp.float32
    conv_init: nnx.initializers.Initializer = HE_FAN_OUT

    def conv(self, in_width: int, width: int, kernel: int = 3, stride: int = 1) -> nnx.Conv:
        """Returns a convolution without bias, padded equally on all sides as in PyTorch.

        Flax's "SAME" pads an even image on the right only where the stride is two.
        """
        return nnx.Conv(
            in_width,
            width,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=self.conv_init,
            rngs=self.rngs,
        )

    def norm(self, width: int) -> nnx.BatchNorm:
        """Returns BatchNorm with outputs in the compute dtype."""
        norm = nnx.BatchNorm(
            width,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            promote_dtype=in_float32,
            rngs=self.rngs,
        )
        norm.mean, norm.var = RunningStatistic(norm.mean[...]), RunningStatistic(norm.var[...])
        return norm

    def conv_norm(
        self, in_width: int, width: int, kernel: int = 3, stride: int = 1
    ) -> tuple[nnx.Conv, nnx.BatchNorm]:
        """Returns a convolution and its BatchNorm."""
        return self.conv(in_width, width, kernel, stride), self.norm(width)

    def linear(self, in_width: int, width: int) -> nnx.Linear:
        """Returns a linear layer of a head, in the compute dtype."""
        return nnx.Linear(
            in_width, width, dtype=self.dtype, kernel_init=TORCH_LINEAR, rngs=self.rngs
        )

    def head(self, width: int, num_classes: int) -> nnx.Linear:
        """Returns the last layer, which computes float32 logits for any compute dtype."""
        return nnx.Linear(
            width, num_classes, dtype=jnp.float32, kernel_init=TORCH_LINEAR, rngs=self.rngs
        )


def has_small_images(image_shape: Sequence[int]) -> bool:
    """Returns whether the stem keeps the resolution: CIFAR, Tiny-ImageNet."""
    return max(image_shape[:2]) <= 64


def imagenet_stem(layers: Layers, channels: int, width: int) -> nnx.Sequential:
    """Returns the stem for large images, which divides their resolution by four."""
    return nnx.Sequential(
        *layers.conv_norm(channels, width, kernel=7, stride=2), nnx.relu, max_pool_3x3
    )


def max_pool_3x3(x: jax.Array) -> jax.Array:
    """Halves the resolution, taking maxima over 3 x 3 pixels."""
    return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Halves the resolution, rounding up: VGG halves 28 pixels five times."""
    return nnx.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")


def average_pool_2x2(x: jax.Array) -> jax.Array:
    """Halves the resolution, rounding up as a convolution of stride two does."""
    return nnx.avg_pool(x, (2, 2), strides=(2, 2), padding="SAME", count_include_pad=False)


def global_average_pool(x: jax.Array) -> jax.Array:
    """Returns the mean of each channel, in float32 for the head."""
    return x.mean(axis=(1, 2), dtype=jnp.float32)


def pad_channels(x: jax.Array, width: int) -> jax.Array:
    """Appends channels of zeros up to `width`, for a shortcut without parameters."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, width - x.shape[-1])))
