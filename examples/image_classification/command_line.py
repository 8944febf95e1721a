"""The command line of image classification: an option for each field of `Config`."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from examples.image_classification.config import DEFAULTS, Config
from examples.image_classification.data import DATASETS
from examples.image_classification.models import MODELS
from examples.image_classification.presets import PRESETS, settings_for
from examples.training.command_line import parse_seeds, read_settings
from examples.training.methods import METHODS

CHOICES: dict[str, Iterable[str]] = {"dataset": DATASETS, "model": MODELS, "method": METHODS}


@dataclass(frozen=True)
class Options(Config):
    """Trains an image classifier, or resumes an interrupted run."""

    seeds: tuple[str, ...] = ()
    """Train several seeds in one program, each in its folder: numbers, or a range such as 0:32."""


def read_config(arguments: list[str]) -> Config:
    """Reads the command line of one run, as `read_configs` does."""
    (config,) = read_configs(arguments)
    return config


def read_configs(arguments: list[str]) -> list[Config]:
    """Reads the command line. The defaults depend on the preset, dataset, model and method.

    Returns:
      The configuration, or with `--seeds` one for each seed, in a folder `seed<seed>`.

    Raises:
      ValueError: An argument is wrong.
      SystemExit: The help or a list was requested, or a value cannot be parsed.
    """
    values = vars(read_settings(Options, arguments, PRESETS, CHOICES, settings_for)).copy()
    words = values.pop("seeds")
    config = Config(**values)
    if not words:
        return [config]
    if config.seed != DEFAULTS["seed"]:
        raise ValueError("give --seed or --seeds, not both")
    seeds = parse_seeds(words)
    folders = {seed: config.out and config.out / f"seed{seed}" for seed in seeds}
    return [replace(config, seed=seed, out=folders[seed]) for seed in seeds]
