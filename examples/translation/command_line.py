"""The command line of translation: an option for each field of `Config`."""

from collections.abc import Iterable

from examples.training.command_line import read_settings
from examples.training.methods import METHODS
from examples.translation.config import Config
from examples.translation.presets import PRESETS, settings_for
from examples.translation.transformer import MODELS

CHOICES: dict[str, Iterable[str]] = {
    "model": MODELS,
    "method": [name for name, method in METHODS.items() if not method.ascends_along],
}


def read_config(arguments: list[str]) -> Config:
    """Reads the command line. The defaults depend on the preset, model and method.

    Raises:
      ValueError: An argument is wrong.
      SystemExit: The help or a list was requested, or a value cannot be parsed.
    """
    return read_settings(Config, arguments, PRESETS, CHOICES, settings_for)
