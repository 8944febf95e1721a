r"""Translates text with a trained network, a line a sentence.

python -m examples.experiments.translate runs/de-en-transformer_small-sam/seed0 < sentences.de
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from examples.experiments.command_line import read_options, run_command
from examples.experiments.evaluate import restore
from examples.experiments.training_programs import read_config_file
from examples.translation.batches import MULTIPLE, TextBatches, padded_lengths
from examples.translation.config import Config
from examples.translation.data import VOCABULARY, Text, encode, read_vocabulary, split_lines


@dataclass(frozen=True)
class Options:
    """The command line."""

    folder: Positional[Path]
    """Folder of a run of `python -m examples.translation`."""


def run(options: Options) -> None:
    """Reads sentences from stdin and prints their translations.

    Raises:
      ValueError: the folder holds no run that translates, or stdin is no text.
      OSError: the vocabulary cannot be read.
    """
    config = read_config_file(options.folder)
    if not isinstance(config, Config):
        raise ValueError(f"{options.folder} holds no run that translates")
    tokenizer = read_vocabulary(options.folder / VOCABULARY)
    try:
        lines = split_lines(sys.stdin.buffer.read())
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input cannot be read as UTF-8 text ({error})") from error
    sentences = [line for line in lines if line]
    if not sentences:
        return
    corpus = encode(tokenizer, sentences, sentences)
    tokens = max(config.batch_tokens, MULTIPLE * int(padded_lengths(corpus).max()))
    config = dataclasses.replace(config, batch_tokens=tokens)
    batches = TextBatches(Text({"train": corpus}, tokenizer), config)
    trained = restore(options.folder, batches=batches)
    translations = iter(trained.program.translate(trained.state, batches, corpus))
    for line in lines:
        print(next(translations) if line else "")


def main(arguments: list[str] | None = None) -> int:
    """Translates and returns the exit status."""
    return run_command(run, read_options(Options, arguments))


if __name__ == "__main__":
    sys.exit(main())
