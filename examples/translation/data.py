"""Parallel text, and the vocabulary that both languages share."""

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from examples.training.output import print_line
from examples.training.settings import run_folder
from examples.translation.config import Config

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(len(SPECIAL))
VOCABULARY = "vocabulary.json"


class Corpus(NamedTuple):
    """Sentences in two languages.

    Attributes:
      source: The tokens of each sentence, without special ones.
      target: The tokens of its translation.
      references: The translations as text.
    """

    source: list[list[int]]
    target: list[list[int]]
    references: list[str]


class Text(NamedTuple):
    """All text of a run.

    Attributes:
      splits: The corpora: train, validation and test.
      tokenizer: Maps text to tokens and back.
    """

    splits: dict[str, Corpus]
    tokenizer: Tokenizer


def load(config: Config) -> Text:
    """Reads the text of a run. The vocabulary is that of the run's folder, if there is one.

    Raises:
      ValueError: A file of a pair is missing a line, a sentence is empty, or the text does not have
        as many different pairs as the vocabulary.
      OSError: A file is missing, or is no text.
    """
    if config.data_dir is None:
        raise ValueError("translation needs --data-dir, a folder with train.de, train.en and so on")
    names = {"train": "train", "validation": "valid", "test": "test"}
    pairs = {split: read_pair(config, name) for split, name in names.items()}
    sources, targets = pairs["train"]
    if config.train_size is not None:
        if config.train_size > len(sources):
            raise ValueError(
                f"train_size {config.train_size} is more than the {len(sources)} sentences"
            )
        sources, targets = sources[: config.train_size], targets[: config.train_size]
    saved = run_folder(config) / VOCABULARY
    tokenizer = read_vocabulary(saved) if saved.exists() else None
    tokenizer = tokenizer or train_vocabulary(sources + targets, config.vocabulary)
    pairs["train"] = sources, targets
    splits = {name: encode(tokenizer, *pair) for name, pair in pairs.items()}
    splits["train"] = without_long(splits["train"], config.max_length)
    return Text(splits, tokenizer)


def read_pair(config: Config, split: str) -> tuple[list[str], list[str]]:
    """Returns the sentences of a split in both languages."""
    assert config.data_dir is not None
    paths = [find_file(config.data_dir, split, lang) for lang in (config.source, config.target)]
    texts = [read_lines(path) for path in paths]
    first, second = map(len, texts)
    if first != second:
        raise ValueError(f"{paths[0]} has {first} lines, and {paths[1]} {second}: they must match")
    if not first:
        raise ValueError(f"{paths[0]} has no sentence")
    for path, lines in zip(paths, texts, strict=True):
        if empty := [i for i, line in enumerate(lines, 1) if not line]:
            raise ValueError(f"{path}, line {empty[0]} is empty, {len(empty)} in all")
    return texts[0], texts[1]


def find_file(folder: Path, split: str, language: str) -> Path:
    """Returns the file of a split in one language."""
    paths = [folder / f"{split}.{language}", folder / f"{split}.{language}.gz"]
    for path in paths:
        if path.exists():
            return path
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: give another --data-dir")
    found = sorted({path.name.split(".")[1] for path in folder.glob(f"{split}.*")})
    having = f"It has {split} in {', '.join(found)}" if found else f"It has no {split}.*"
    raise FileNotFoundError(f"{folder} has no {paths[0].name} or {paths[1].name}. {having}")


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a text file, compressed or not, without space around them."""
    try:
        data = path.read_bytes()
        return split_lines(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise OSError(f"{path} cannot be read as UTF-8 text ({error})") from error


def split_lines(data: bytes) -> list[str]:
    """Returns the lines of UTF-8 text, without space around them."""
    # Other line breaks of Unicode may stand within a sentence. A file of translations must not have
    # more lines by a carriage return.
    text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", " ")
    return [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []


def train_vocabulary(sentences: list[str], size: int) -> Tokenizer:
    """Returns a tokenizer whose vocabulary is trained on sentences (byte-pair encoding).

    Raises:
      ValueError: The text has fewer pairs to merge.

    References:
      Sennrich et al., `Neural Machine Translation of Rare Words with Subword Units
      <https://arxiv.org/abs/1508.07909>`_, ACL 2016
    """
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNK]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    if (found := tokenizer.get_vocab_size()) != size:
        near = "most" if found < size else "least"
        raise ValueError(f"vocabulary {size} does not fit the text: it allows at {near} {found}")
    tokenizer.encode_special_tokens = True  # <eos> in a sentence is text
    return tokenizer


def read_vocabulary(path: Path) -> Tokenizer:
    """Returns a saved tokenizer."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no other
        raise OSError(f"{path} cannot be read ({error})") from error
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer: Tokenizer, sources: list[str], targets: list[str]) -> Corpus:
    """Returns sentences as tokens."""
    source, target = ([e.ids for e in tokenizer.encode_batch(text)] for text in (sources, targets))
    return Corpus(source, target, targets)


def without_long(corpus: Corpus, limit: int) -> Corpus:
    """Returns the pairs in which both sentences have at most so many tokens."""
    pairs = zip(corpus.source, corpus.target, strict=True)
    kept = np.flatnonzero([max(len(a), len(b)) <= limit for a, b in pairs])
    if not len(kept):
        raise ValueError(f"all training sentences have more than {limit} tokens: raise max_length")
    if left_out := len(corpus.source) - len(kept):
        print_line(f"{left_out} training sentences of more than {limit} tokens are left out")
    return Corpus(
        [corpus.source[i] for i in kept],
        [corpus.target[i] for i in kept],
        [corpus.references[i] for i in kept],
    )
