"""Batches of sentences of similar length, in few shapes."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import sacrebleu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from examples.training.devices import device_mesh, place
from examples.translation.config import Config
from examples.translation.data import EOS, PAD, VOCABULARY, Corpus, Text

MULTIPLE = 8  # of the lengths, and of the sentences of a batch


class Batch(NamedTuple):
    """Sentences, padded to one length.

    Attributes:
      source: Tokens, int32, (sentences, length), each sentence with `EOS` at its end.
      target: Tokens of the translations, alike. Rows that fill the batch up are `PAD` alone.
      weight: float32, (sentences,), the number of rows divided by that of target tokens. The mean
        over rows of weighted sums over tokens is then the mean over tokens, and so it is over
        equal parts of the batch.
    """

    source: Any
    target: Any
    weight: Any


class TextSpec(NamedTuple):
    """Constants of the data that the compiled program depends on."""

    vocabulary: int
    steps_per_epoch: int


class TextBatches:
    """The batches of a text, divided over all devices.

    Attributes:
      spec: Constants that the compiled program depends on.
      arrays: None for each split, since batches are copied to the devices one by one.
      examples_per_step: The mean number of sentences of a batch.
      files: Texts for the folder of the run, by name.
      text: The text.
    """

    def __init__(self, text: Text, config: Config) -> None:
        self.text, self._config = text, config
        mesh = device_mesh()
        self._steps = NamedSharding(mesh, P(None, "data"))  # the first axis is the step
        self._batch = NamedSharding(mesh, P("data"))
        train = text.splits["train"]
        self._train_lengths = padded_lengths(train)
        self._lengths = choose_lengths(self._train_lengths, config.buckets)
        # Batches are filled up, so that their sentences do not depend on the number of devices.
        self._multiple = math.lcm(jax.device_count() * config.accumulate, config.groups)
        self._sizes = {length: self._rows(length) for length in self._lengths}
        steps = sum(len(rows) for _, rows in self._train_rows(None))
        self.spec = TextSpec(text.tokenizer.get_vocab_size(), steps)
        self.examples_per_step = len(train.source) / steps
        self.arrays: dict[str, Any] = dict.fromkeys(text.splits)
        bleu = sacrebleu.BLEU(tokenize=config.bleu_tokenize)
        bleu.corpus_score(["."], [["."]])  # the signature has the number of references
        self.files = {
            VOCABULARY: text.tokenizer.to_str(pretty=True) + "\n",
            "sacrebleu.txt": f"{bleu.get_signature()}\n",
        }

    def _rows(self, length: int) -> int:
        """Returns the number of sentences of a batch of a length."""
        rows = self._config.batch_tokens // length // MULTIPLE * MULTIPLE
        if not rows:
            raise ValueError(
                f"batch_tokens {self._config.batch_tokens} is too small: {MULTIPLE} "
                f"sentences of {length} tokens are {MULTIPLE * length}"
            )
        return rows

    def split(self, name: str) -> Corpus:
        """Returns the sentences of a split."""
        return self.text.splits[name]

    def evaluated_splits(self, is_last: bool) -> list[str]:
        """Returns the splits to evaluate. The test is for the last epoch."""
        return ["validation", "test"] if is_last else ["validation"]

    def _train_rows(self, rng: np.random.Generator | None) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the lengths, each with its batches, as rows of sentence numbers, -1 for none."""
        for length, chosen in divide(self._train_lengths, self._lengths):
            ordered = chosen if rng is None else rng.permutation(chosen)
            yield length, fill_up(ordered, self._sizes[length])

    def training_rows(self, epoch: int, start_step: int) -> Iterator[Batch]:
        """Yields the batches of an epoch in random order, each for one call of one step.

        The order is a function of the seed and the epoch.
        """
        rng = np.random.default_rng((self._config.seed, epoch))
        batches = [(length, row) for length, rows in self._train_rows(rng) for row in rows]
        corpus = self.split("train")
        for i in rng.permutation(len(batches))[start_step:]:
            length, row = batches[i]
            # Each group gets as many of the rows that fill up.
            filled = fill_up(row, self._multiple).reshape(-1, self._config.groups).T.ravel()
            batch = make_batch(corpus, filled, length)
            yield Batch(*(place(array[None], self._steps) for array in batch))

    def evaluation_rows(self, data: Corpus) -> Iterator[Batch]:
        """Yields the batches of any sentences, from the shortest to the longest."""
        for _, batch in self.sorted_batches(data):
            yield batch

    def sorted_batches(self, data: Corpus) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yields the sentence numbers, -1 for none, and the batches of any sentences."""
        numbers = padded_lengths(data)
        longest = max(self._lengths[-1], *numbers)
        lengths = [*self._lengths, *([] if longest == self._lengths[-1] else [longest])]
        devices = jax.device_count()
        for length, chosen in divide(numbers, lengths):
            rows = max(1, self._config.batch_tokens // length // devices) * devices
            for row in fill_up(chosen, rows):
                batch = make_batch(data, row, length)
                yield row, Batch(*(place(array, self._batch) for array in batch))


def padded_lengths(corpus: Corpus) -> np.ndarray:
    """Returns the tokens of each pair with `EOS`, the longer sentence's, rounded up."""
    pairs = zip(corpus.source, corpus.target, strict=True)
    longest = np.array([max(len(a), len(b)) + 1 for a, b in pairs])
    return -(-longest // MULTIPLE) * MULTIPLE


def choose_lengths(lengths: np.ndarray, number: int) -> list[int]:
    """Returns at most so many lengths, with which as few tokens as possible are padding."""
    values, counts = np.unique(lengths, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # The tokens of all sentences up to the i-th value, and the lengths chosen for them.
    best: list[tuple[float, list[int]]] = [(0.0, []), *[(math.inf, [])] * len(values)]
    for _ in range(min(number, len(values))):
        best = [
            min(
                (
                    (best[j][0] + (below[i] - below[j]) * last, [*best[j][1], last])
                    for j in range(i)
                ),
                default=(math.inf, []),
            )
            for i, last in enumerate([0, *map(int, values)])
        ]
    return best[-1][1]


def divide(numbers: np.ndarray, lengths: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each length with the sentences that are padded to it, given their own lengths."""
    for above, length in itertools.pairwise([0, *lengths]):
        yield length, np.flatnonzero((numbers > above) & (numbers <= length))


def fill_up(numbers: np.ndarray, size: int) -> np.ndarray:
    """Returns numbers in rows of a size, the last one filled up with -1."""
    count = -(-len(numbers) // size)
    padded = np.full(count * size, -1)
    padded[: len(numbers)] = numbers
    return padded.reshape(count, size)


def equal_batches(corpus: Corpus, number: int, size: int) -> list[Batch]:
    """Returns the first sentences in batches of one shape, weighted by their tokens together."""
    length = int(padded_lengths(corpus)[:number].max())
    rows = np.arange(number).reshape(-1, size)
    batches = [make_batch(corpus, row, length) for row in rows]
    tokens = sum(np.sum(batch.target != PAD) for batch in batches)
    return [batch._replace(weight=np.full(size, number / tokens, np.float32)) for batch in batches]


def make_batch(corpus: Corpus, row: np.ndarray, length: int) -> Batch:
    """Returns the sentences of a row as a batch."""
    source = np.full((len(row), length), PAD, np.int32)
    target = np.full((len(row), length), PAD, np.int32)
    source[:, 0] = EOS  # no sentence is empty, which attention could not take
    for i, number in enumerate(row):
        if number >= 0:
            for array, tokens in ((source, corpus.source), (target, corpus.target)):
                sentence = [*tokens[number], EOS]
                array[i, : len(sentence)] = sentence
    weight = np.full(len(row), len(row) / max(1, np.sum(target != PAD)), np.float32)
    return Batch(source, target, weight)
