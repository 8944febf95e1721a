"""Vision transformers (Dosovitskiy et al., https://arxiv.org/abs/2010.11929) in the sizes of DeiT.

DeiT is Touvron et al., https://arxiv.org/abs/2012.12877. Weights, the class token and positions
start as its normal distribution of standard deviation 0.02 (its truncation at 2 has no effect),
biases as zero. LayerNorm's epsilon is 1e-6, GELU is exact, and there is no dropout.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from examples.image_classification.models.layers import Layers, in_float32

NORMAL = nnx.initializers.normal(0.02)


def layer_norm(layers: Layers, width: int) -> nnx.LayerNorm:
    """Returns LayerNorm with outputs in the compute dtype."""
    return nnx.LayerNorm(
        width, epsilon=1e-6, dtype=layers.dtype, promote_dtype=in_float32, rngs=layers.rngs
    )


class EncoderBlock(nnx.Module):
    """Self-attention, then two linear layers with GELU, each after LayerNorm."""

    def __init__(self, layers: Layers, width: int, heads: int) -> None:
        linear = partial(nnx.Linear, dtype=layers.dtype, kernel_init=NORMAL, rngs=layers.rngs)
        self.attention_norm = layer_norm(layers, width)
        self.attention = nnx.MultiHeadAttention(
            heads, width, dtype=layers.dtype, kernel_init=NORMAL, decode=False, rngs=layers.rngs
        )
        self.mlp_norm = layer_norm(layers, width)
        self.expand = linear(width, 4 * width)
        self.contract = linear(4 * width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns tokens of the same shape."""
        x = x + self.attention(self.attention_norm(x))
        y = nnx.gelu(self.expand(self.mlp_norm(x)), approximate=False)
        return x + self.contract(y)


class ViT(nnx.Module):
    """A transformer encoder over patches, which classifies by an extra token.

    Args:
      layers: Random numbers and the compute dtype.
      image_shape: Height, width and channels.
      num_classes: Number of classes.
      blocks: Number of encoder blocks.
      width: Width of a token.
      heads: Number of attention heads.
      patch: Side of a patch in pixels. None is 4 for images up to 32 pixels, 8 up to 64, else 16.

    Raises:
      ValueError: Patches do not tile the image.
    """

    def __init__(
        self,
        layers: Layers,
        image_shape: Sequence[int],
        num_classes: int,
        blocks: int = 12,
        width: int = 192,
        heads: int = 3,
        patch: int | None = None,
    ) -> None:
        rows, columns, channels = image_shape
        if patch is None:
            side = max(rows, columns)
            patch = 4 if side <= 32 else 8 if side <= 64 else 16
        if rows % patch or columns % patch:
            raise ValueError(
                f"image_shape is {rows} x {columns}, which patches of {patch} do not tile; "
                "resize the images, or choose another patch"
            )
        tokens = rows * columns // patch**2 + 1
        self.embed = nnx.Conv(
            channels,
            width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            dtype=layers.dtype,
            kernel_init=NORMAL,
            rngs=layers.rngs,
        )
        self.class_token = nnx.Param(NORMAL(layers.rngs.params(), (1, 1, width)))
        self.positions = nnx.Param(NORMAL(layers.rngs.params(), (1, tokens, width)))
        self.blocks = nnx.List([EncoderBlock(layers, width, heads) for _ in range(blocks)])
        self.norm = layer_norm(layers, width)
        self.head = nnx.Linear(
            width, num_classes, dtype=jnp.float32, kernel_init=NORMAL, rngs=layers.rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns float32 logits of images of shape (batch, height, width, channels)."""
        x = self.embed(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        class_token = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([class_token.astype(x.dtype), x], axis=1)
        x = x + self.positions[...].astype(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))
