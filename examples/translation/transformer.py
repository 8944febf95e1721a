"""The Transformer that translates, as in fairseq."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.training.check_name import check_name
from examples.translation.data import PAD

KeysValues = tuple[jax.Array, jax.Array]  # (sentences, length, heads, width of a head) each
Linear = partial(
    nnx.Linear,
    kernel_init=nnx.initializers.xavier_uniform(),
    bias_init=nnx.initializers.zeros_init(),
)


class Attention(nnx.Module):
    """Attention with several heads."""

    def __init__(self, width: int, heads: int, dtype: Any, rngs: nnx.Rngs) -> None:
        self._heads = heads
        # As wide as one matrix for all three, whose fan-out is three times as large.
        init = nnx.initializers.variance_scaling(0.5, "fan_avg", "uniform")
        make = partial(Linear, width, width, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value = (make(kernel_init=init) for _ in range(3))
        self.out = make()

    def keys_values(self, inputs: jax.Array) -> KeysValues:
        """Returns the keys and values of inputs (sentences, length, width)."""
        return self._split(self.key(inputs)), self._split(self.value(inputs))

    def __call__(self, inputs: jax.Array, keys_values: KeysValues, mask: jax.Array) -> jax.Array:
        """Returns the values that the inputs attend to, mixed.

        Args:
          inputs: (sentences, length, width).
          keys_values: Those to attend to.
          mask: Where to look, broadcast to (sentences, heads, length, number of keys).
        """
        query = self._split(self.query(inputs))
        found = jax.nn.dot_product_attention(query, *keys_values, mask=mask)
        return self.out(found.reshape(inputs.shape))

    def _split(self, array: jax.Array) -> jax.Array:
        return array.reshape(*array.shape[:-1], self._heads, -1)


class Block(nnx.Module):
    """A layer: attention to the sentence, to another one in a decoder, and a network.

    Each is followed by the sum with its input, dropped out, and LayerNorm.
    """

    def __init__(
        self, size: "Size", decoder: bool, dropout: float, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        make = partial(Attention, size.width, size.heads, dtype, rngs)
        self.attention = make()
        self.cross: Any = make() if decoder else None
        self.wide = Linear(size.width, size.hidden, dtype=dtype, rngs=rngs)
        self.narrow = Linear(size.hidden, size.width, dtype=dtype, rngs=rngs)
        count = 3 if decoder else 2
        self.norms = nnx.List(
            [nnx.LayerNorm(size.width, epsilon=1e-5, rngs=rngs) for _ in range(count)]
        )
        # Each drops units of its own.
        self.dropouts = nnx.List([nnx.Dropout(dropout) for _ in range(count)])

    def __call__(
        self,
        inputs: jax.Array,
        own: KeysValues,
        mask: jax.Array,
        memory: tuple[KeysValues, jax.Array] | None = None,
    ) -> jax.Array:
        """Returns the outputs, shaped like the inputs.

        Args:
          inputs: (sentences, length, width).
          own: Keys and values of the sentence itself.
          mask: Where to look in it.
          memory: For a decoder the keys and values of the other sentence, and where to look.
        """
        places = zip(self.norms, self.dropouts, strict=True)

        def add(inputs: jax.Array, change: jax.Array) -> jax.Array:
            norm, dropout = next(places)
            return norm(inputs + dropout(change))

        outputs = add(inputs, self.attention(inputs, own, mask))
        if self.cross is not None:
            assert memory is not None
            outputs = add(outputs, self.cross(outputs, *memory))
        return add(outputs, self.narrow(jax.nn.relu(self.wide(outputs))))


class Size(NamedTuple):
    """The size of a Transformer."""

    layers: int  # of the encoder, and of the decoder
    width: int
    heads: int
    hidden: int


class Transformer(nnx.Module):
    """An encoder and a decoder, which share the embeddings of their tokens with the output.

    `LayerNorm` follows each sum, positions are sinusoidal, and attention is not dropped out.

    References:
      Vaswani et al., `Attention Is All You Need <https://arxiv.org/abs/1706.03762>`_, NeurIPS 2017
      Ott et al., `fairseq <https://arxiv.org/abs/1904.01038>`_, NAACL 2019
    """

    def __init__(
        self, size: Size, vocabulary: int, dropout: float, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        self._width, self._heads, self._dtype = size.width, size.heads, dtype
        scale = nnx.initializers.normal(size.width**-0.5)
        self.embedding = nnx.Embed(vocabulary, size.width, embedding_init=scale, rngs=rngs)
        make = partial(Block, size, dropout=dropout, dtype=dtype, rngs=rngs)
        self.encoder: Any = nnx.List([make(decoder=False) for _ in range(size.layers)])
        self.decoder: Any = nnx.List([make(decoder=True) for _ in range(size.layers)])
        self.dropouts = nnx.List([nnx.Dropout(dropout) for _ in ("source", "target")])

    def __call__(self, source: jax.Array, previous: jax.Array) -> jax.Array:
        """Returns float32 logits (sentences, length, vocabulary).

        Args:
          source: Tokens to translate, (sentences, length), `PAD` at the end.
          previous: The tokens of the translation before each position, alike.
        """
        memory, length = self.encode(source), previous.shape[1]
        outputs = self.dropouts[1](self._embed(previous, positions(length, self._width)))
        mask = jnp.tril(jnp.ones((length, length), bool))
        for block, of_block in zip(self.decoder, memory, strict=True):
            outputs = block(outputs, block.attention.keys_values(outputs), mask, of_block)
        return self._logits(outputs)

    def encode(self, source: jax.Array) -> list[tuple[KeysValues, jax.Array]]:
        """Returns for each layer of the decoder keys and values of the source, and its mask."""
        mask = (source != PAD)[:, None, None]
        outputs = self.dropouts[0](self._embed(source, positions(source.shape[1], self._width)))
        for block in self.encoder:
            outputs = block(outputs, block.attention.keys_values(outputs), mask)
        return [(block.cross.keys_values(outputs), mask) for block in self.decoder]

    def empty_cache(self, sentences: int, length: int) -> list[KeysValues]:
        """Returns for each layer of the decoder room for the keys and values of translations."""
        width = self._width // self._heads
        zeros = jnp.zeros((sentences, length, self._heads, width), self._dtype)
        return [(zeros, zeros)] * len(self.decoder)

    def step(
        self,
        token: jax.Array,
        position: jax.Array,
        cache: list[KeysValues],
        memory: list[tuple[KeysValues, jax.Array]],
    ) -> tuple[jax.Array, list[KeysValues]]:
        """Returns the logits (sentences, vocabulary) after one more token, and the new cache."""
        length = cache[0][0].shape[1]
        place = jax.lax.dynamic_slice_in_dim(positions(length, self._width), position, 1)
        outputs = self._embed(token[:, None], place)
        mask = jnp.arange(length) <= position
        filled = []
        for block, of_block, layer in zip(self.decoder, memory, cache, strict=True):
            new = block.attention.keys_values(outputs)
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(array, part, position, axis=1)
                for array, part in zip(layer, new, strict=True)
            )
            own = keys, values
            filled.append(own)
            outputs = block(outputs, own, mask, of_block)
        return self._logits(outputs)[:, 0], filled

    def _embed(self, tokens: jax.Array, places: jax.Array) -> jax.Array:
        scaled = self.embedding(tokens) * math.sqrt(self._width) + places
        return scaled.astype(self._dtype)

    def _logits(self, outputs: jax.Array) -> jax.Array:
        weights = self.embedding.embedding[...].astype(self._dtype)
        outputs = outputs.astype(self._dtype)  # LayerNorm's are float32
        return jnp.dot(outputs, weights.T, preferred_element_type=jnp.float32)


def positions(length: int, width: int) -> jax.Array:
    """Returns sinusoidal positions (length, width), all sines before all cosines."""
    rates = np.exp(-math.log(10_000) * np.arange(width // 2) / (width // 2 - 1))
    angles = np.arange(length)[:, None] * rates
    return jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), jnp.float32)


MODELS: dict[str, Size] = {
    "transformer_tiny": Size(layers=2, width=128, heads=4, hidden=256),
    "transformer_small": Size(layers=3, width=256, heads=4, hidden=512),
    "transformer_iwslt": Size(layers=6, width=512, heads=4, hidden=1024),
}


def make_model(
    name: str, *, vocabulary: int, dropout: float, rngs: nnx.Rngs, dtype: Any = jnp.float32
) -> Transformer:
    """Returns a Transformer with new weights.

    Args:
      name: A name of `MODELS`.
      vocabulary: Number of tokens.
      dropout: Share of units that are dropped in training.
      rngs: Random numbers for the weights.
      dtype: Dtype of all computations before the logits. Parameters are float32.
    """
    check_name("model", name, MODELS)
    return Transformer(MODELS[name], vocabulary, dropout, dtype, rngs)
