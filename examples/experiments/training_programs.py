"""The training programs, whose runs the experiment tools start and read."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from examples.image_classification import command_line as images
from examples.training.run_folder import read_config_file as read_config_of
from examples.training.settings import Settings
from examples.translation import command_line as text


class TrainingProgram(NamedTuple):
    """A training program.

    Attributes:
      settings: The class of its settings.
      read_config: Reads its command line.
      evaluation: Names of the results of `examples.experiments.evaluate`.
    """

    settings: type[Settings]
    read_config: Callable[[list[str]], Any]
    evaluation: tuple[str, ...]


PROGRAMS = {
    "image_classification": TrainingProgram(
        images.Config, images.read_config, ("test_accuracy", "test_loss", "test_ece", "images")
    ),
    "translation": TrainingProgram(
        text.Config, text.read_config, ("test_accuracy", "test_loss", "test_bleu", "sentences")
    ),
}


def read_config_file(path: Path) -> Any:
    """Returns the configuration of the run in a folder, with `out` set to this folder.

    Raises:
      ValueError: The file is missing, or written by an incompatible version.
    """
    name = ""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # the reader says what is wrong
        name = json.loads((path / "config.json").read_bytes()).get("program")
    # Runs without a program are older than the others.
    program = PROGRAMS.get(name, PROGRAMS["image_classification"])
    return read_config_of(path, program.settings)
