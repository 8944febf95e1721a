"""The models of the benchmarks: an MLP, a ResNet and a ViT.

`tiny` is for tests, `full` for a CPU, and `large` for a GPU (ResNet-18 and ViT-Ti, as on CIFAR).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

CLASSES = 10


class Batch(NamedTuple):
    """Images of shape (n, side, side, channels), and their labels."""

    images: jax.Array
    labels: jax.Array


@dataclass(frozen=True)
class Problem:
    """Parameters, a batch, and the losses of its images, which are pure in both."""

    name: str
    params: Any
    batch: Batch
    losses_fn: Callable[[Any, Batch], jax.Array]

    def loss_fn(self, params: Any, batch: Batch) -> jax.Array:
        """Returns the mean loss."""
        return self.losses_fn(params, batch).mean()

    def value_fn(self, params: Any) -> jax.Array:
        """Returns the loss on the fixed batch."""
        return self.loss_fn(params, self.batch)


class MLP(nn.Module):
    """Matrix products alone, where an update is expensive beside a gradient."""

    widths: Sequence[int]

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(images.shape[0], -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(CLASSES)(x)


class CNN(nn.Module):
    """Two convolutions with pooling and two matrices, as in tutorials."""

    widths: tuple[int, int, int]

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for width in self.widths[:2]:
            x = nn.avg_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(self.widths[2])(x.reshape(len(x), -1)))
        return nn.Dense(CLASSES)(x)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm on the statistics of the batch."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(nn.Conv, self.width, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=False)
        y = nn.relu(norm()(conv((3, 3), strides=self.stride)(x)))
        y = norm()(conv((3, 3))(y))
        if y.shape != x.shape:
            x = norm()(conv((1, 1), strides=self.stride)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The residual network of CIFAR: stages of twice the width at half the resolution."""

    widths: Sequence[int]
    blocks: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = nn.Conv(self.widths[0], (3, 3), use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                x = ResidualBlock(width, stride=2 if stage > 0 and block == 0 else 1)(x)
        return nn.Dense(CLASSES)(x.mean(axis=(1, 2)))


class EncoderBlock(nn.Module):
    """Attention, then a two-layer MLP, each with normalized input and a residual connection."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
        return x + nn.Dense(width)(y)


class ViT(nn.Module):
    """A vision transformer that averages its tokens."""

    width: int
    blocks: int
    heads: int
    patch: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        patch = (self.patch, self.patch)
        x = nn.Conv(self.width, patch, strides=patch)(images)
        x = x.reshape(x.shape[0], -1, self.width)
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        for _ in range(self.blocks):
            x = EncoderBlock(self.heads)(x)
        return nn.Dense(CLASSES)(nn.LayerNorm()(x).mean(axis=1))


def classification(name: str, network: nn.Module, batch: Batch) -> Problem:
    """Returns the cross-entropy of `network` at its initial parameters."""

    def losses_fn(params: Any, batch: Batch) -> jax.Array:
        # The loss does not read the running statistics of BatchNorm, which are dropped.
        logits, _ = network.apply({"params": params}, batch.images, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)

    params = jax.jit(network.init)(jax.random.key(0), batch.images)["params"]
    return Problem(name, params, batch, losses_fn)


def random_batch(number: int, side: int) -> Batch:
    """Returns noise with random labels, since the cost of a step does not depend on the images."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((number, side, side, 3), np.float32)
    return Batch(jnp.asarray(images), jnp.asarray(rng.integers(0, CLASSES, number)))


def mlp(size: str = "full") -> Problem:
    """Returns an MLP 512 wide on 125 images, large 2,048 wide."""
    if size == "tiny":
        return classification("mlp", MLP((32, 32)), random_batch(4, side=8))
    if size == "large":
        return classification("mlp", MLP((2048, 2048, 2048)), random_batch(125, side=32))
    return classification("mlp", MLP((512, 512, 512)), random_batch(125, side=32))


def resnet(size: str = "full") -> Problem:
    """Returns a ResNet with BatchNorm on 125 images."""
    if size == "tiny":
        return classification("resnet", ResNet((4, 8), blocks=1), random_batch(4, side=8))
    if size == "large":
        network = ResNet((64, 128, 256, 512), blocks=2)
        return classification("resnet", network, random_batch(125, side=32))
    return classification("resnet", ResNet((16, 32, 64), blocks=2), random_batch(125, side=32))


def vit(size: str = "full") -> Problem:
    """Returns a ViT with patches of 4 x 4 pixels on 64 images, large on 256."""
    if size == "tiny":
        return classification("vit", ViT(16, blocks=1, heads=2, patch=4), random_batch(4, side=8))
    if size == "large":
        network = ViT(192, blocks=12, heads=3, patch=4)
        return classification("vit", network, random_batch(256, side=32))
    return classification("vit", ViT(128, blocks=5, heads=4, patch=4), random_batch(64, side=32))


def cnn(size: str = "full") -> Problem:
    """Returns a CNN on 250 images, a quarter of those in the table on curvature."""
    if size == "tiny":
        return classification("cnn", CNN((4, 4, 8)), random_batch(4, side=8))
    return classification("cnn", CNN((32, 64, 64)), random_batch(250, side=32))


MODELS: dict[str, Callable[[str], Problem]] = {"mlp": mlp, "resnet": resnet, "vit": vit}


def build(name: str, size: str = "full") -> Problem:
    """Returns the model of that name at that size."""
    return MODELS[name](size)
