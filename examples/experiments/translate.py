r"""Translates text with a trained network, a line a sentence.

python -m examples.experiments.translate runs/de-en-transformer_small-sam/seed0 < sentences.de
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from examples.experiments.command_line import read_options, run_command
from examples.experiments.evaluate import restore
from examples.translation.data import encode
from examples.translation.program import TranslationProgram


@dataclass(frozen=True)
class Options:
    """The command line."""

    folder: Positional[Path]
    """Folder of a run of `python -m examples.translation`."""
    data_dir: Path | None = None
    """Where the text of the training lies. None: where it was during training."""


def run(options: Options) -> None:
    """Reads sentences from stdin and prints their translations.

    Raises:
      ValueError: the folder holds no run that translates, or stdin is no text.
      OSError: the text of the training is not there.
    """
    trained = restore(options.folder, options.data_dir)
    if not isinstance(trained.program, TranslationProgram):
        raise ValueError(f"{options.folder} holds no run that translates")
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input cannot be read as UTF-8 text ({error})") from error
    lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
    sentences = [line for line in lines if line]
    if not sentences:
        return
    corpus = encode(trained.batches.text.tokenizer, sentences, sentences)
    translations = iter(trained.program.translate(trained.state, trained.batches, corpus))
    for line in lines:
        print(next(translations) if line else "")


def main(arguments: list[str] | None = None) -> int:
    """Translates and returns the exit status."""
    return run_command(run, read_options(Options, arguments))


if __name__ == "__main__":
    sys.exit(main())
