"""The compiled programs of translation: model, loss and beam search."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sacrebleu
from flax import nnx

from examples.training.program import Metrics, Program, State
from examples.translation.batches import Batch, TextBatches, TextSpec
from examples.translation.beam_search import beam_search
from examples.translation.config import Config
from examples.translation.data import BOS, EOS, PAD, Corpus
from examples.translation.transformer import Transformer, make_model


class TranslationProgram(Program):
    """The compiled functions of a run that translates.

    Attributes:
      search: `search(params, source)` returns the translations of a batch as tokens.

    `loss` is not compiled, since its callers differentiate it.
    """

    _config: Config
    _spec: TextSpec

    def __init__(self, config: Config, spec: TextSpec) -> None:
        super().__init__(config, spec)
        self.search = jax.jit(self._search, out_shardings=self._replicated)

    def make_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """Returns the network, with new weights."""
        return make_model(
            self._config.model,
            vocabulary=self._spec.vocabulary,
            dropout=self._config.dropout,
            rngs=rngs,
            dtype=jnp.bfloat16 if self._config.bf16 else jnp.float32,
        )

    def gather(self, arrays: Any, row: Batch) -> Batch:
        """Returns the batch itself."""
        del arrays
        return row

    def augment(self, batch: Batch, key: jax.Array) -> Batch:
        """Returns the batch as it is."""
        del key
        return batch

    def losses(self, model: Any, part: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the cross-entropies of sentences with smoothed targets, and the accuracy.

        Their mean is that over tokens. The accuracy is that of the tokens, in percent.
        """
        logits, is_token = self._logits(model, part), part.target != PAD
        rate = self._config.label_smoothing
        # Smoothed targets would take the memory of the logits once more.
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, part.target)
        uniform = jax.nn.logsumexp(logits, axis=-1) - logits.mean(axis=-1)
        losses = (1 - rate) * losses + rate * uniform
        correct = jnp.sum(is_token & (logits.argmax(axis=-1) == part.target), axis=1)
        accuracy = 100 * (part.weight * correct).mean()
        return part.weight * jnp.where(is_token, losses, 0.0).sum(axis=1), accuracy

    def sums(self, model: Any, batch: Batch) -> Metrics:
        """Returns sums of cross-entropy and accuracy over the tokens, and their number."""
        logits, is_token = self._logits(model, batch), batch.target != PAD
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.target)
        return {
            "loss": jnp.sum(jnp.where(is_token, losses, 0.0)),
            "accuracy": 100.0 * jnp.sum(is_token & (logits.argmax(axis=-1) == batch.target)),
            "count": jnp.sum(is_token),
        }

    def loss(self, params: Any, batch: tuple[Any, Batch]) -> jax.Array:
        """Returns the weighted mean loss of a batch, as a function of the parameters.

        Args:
          params: Parameters of the model.
          batch: The statistics of BatchNorm, of which there are none, and the batch.
        """
        statistics, sentences = batch
        sentences = self.place(sentences)
        logits = self._logits(self.evaluation_model(params, statistics), sentences)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, sentences.target)
        of_tokens = jnp.where(sentences.target != PAD, losses, 0.0)
        return (sentences.weight * of_tokens.sum(axis=1)).mean()

    def measure(self, state: State, batches: TextBatches, split: str) -> dict[str, float]:
        """Returns the BLEU of a split, with all sentences translated by beam search."""
        corpus = batches.split(split)
        found = self.translate(state, batches, corpus)
        return {f"{split}_bleu": self.bleu(found, corpus.references)}

    def bleu(self, translations: Sequence[str], references: Sequence[str]) -> float:
        """Returns the BLEU of translations."""
        bleu = sacrebleu.BLEU(tokenize=self._config.bleu_tokenize)
        return bleu.corpus_score(translations, [references]).score

    def translate(self, state: State, batches: TextBatches, corpus: Corpus) -> list[str]:
        """Returns the translations of sentences, in their order."""
        tokens: list[list[int]] = [[]] * len(corpus.source)
        # The lengths of the references must not matter.
        sources = corpus._replace(target=[[]] * len(corpus.source))
        for row, batch in batches.sorted_batches(sources):
            found = np.asarray(self.search(state.params, state.statistics, batch.source))
            for number, sentence in zip(row, found, strict=True):
                if number >= 0:
                    end = np.flatnonzero(sentence == EOS)
                    tokens[number] = sentence[: end[0] if len(end) else None].tolist()
        return batches.text.tokenizer.decode_batch(tokens)

    def _logits(self, model: Transformer, batch: Batch) -> jax.Array:
        previous = jnp.pad(batch.target[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)
        return model(batch.source, previous)

    def _search(self, params: Any, statistics: Any, source: jax.Array) -> jax.Array:
        model = self.evaluation_model(params, statistics)
        source, beam = self.place(source), self._config.beam
        sentences, limit = len(source), int(1.2 * source.shape[1]) + 10
        memory = jax.tree.map(lambda leaf: leaf.repeat(beam, axis=0), model.encode(source))

        def step(tokens: jax.Array, position: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
            logits, cache = model.step(tokens, position, cache, memory)
            return logits.at[:, jnp.array([PAD, BOS])].set(-jnp.inf), cache

        return beam_search(
            step,
            model.empty_cache(sentences * beam, limit),
            sentences,
            beam=beam,
            limit=limit,
            bos=BOS,
            eos=EOS,
            length_penalty=self._config.length_penalty,
        )
