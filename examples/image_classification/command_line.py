"""The command line of the trainer: an option for each field of `Config`."""

import dataclasses
import sys
from collections.abc import Iterable

import tyro

from examples.image_classification.check_name import check_name
from examples.image_classification.config import DEFAULTS, Config, ignored_settings
from examples.image_classification.data import DATASETS
from examples.image_classification.methods import METHODS, method_arguments
from examples.image_classification.models import MODELS
from examples.image_classification.presets import PRESETS, settings_for

PROGRAM = "image_classification"
CHOICES: dict[str, Iterable[str]] = {
    "preset": PRESETS,
    "dataset": DATASETS,
    "model": MODELS,
    "method": METHODS,
}


def read_config(arguments: list[str]) -> Config:
    """Reads the command line. The defaults depend on the preset, dataset, model and method.

    Raises:
      ValueError: An argument is wrong.
      SystemExit: The help or a list was requested, or a value cannot be parsed.
    """
    # Parsed twice: the choices of the first pass give the defaults of all other options.
    without_help = [argument for argument in arguments if argument not in ("-h", "--help")]
    chosen = _parse(without_help, Config())
    for option, names in CHOICES.items():
        name = getattr(chosen, option)
        if name == "list":
            print("\n".join(describe(option, choice) for choice in names), flush=True)
            sys.exit()
        if name is not None:
            check_name(option, name, names, f" (--{option} list)")
    settings = settings_for(chosen.preset, chosen.dataset, chosen.model, chosen.method)
    # tyro would make an option of each key of a non-empty dictionary.
    published = settings.pop("method_args", {})
    default = Config(**{**settings, "preset": chosen.preset})
    config = _parse(arguments, default)
    if config.method == settings["method"]:
        config = dataclasses.replace(config, method_args={**published, **config.method_args})
    # A preset of another method may set what this one ignores.
    inherited = [n for n in ignored_settings(config) if getattr(config, n) == getattr(default, n)]
    config = dataclasses.replace(config, **{name: DEFAULTS[name] for name in inherited})
    if any(getattr(config, name) != settings[name] for name in ("dataset", "model", "method")):
        config = dataclasses.replace(config, preset=None)  # another run, in another folder
    return config


def describe(kind: str, name: str) -> str:
    """Returns a line about a name: the source of a preset, or the arguments of a method."""
    if kind == "preset":
        return f"{name:52} {PRESETS[name].source}"
    if kind == "method":
        takes = " ".join(f"{key} {value}" for key, value in method_arguments(name).items())
        return f"{name:24} {f'--method-args {takes}' if takes else ''}".rstrip()
    return name


def _parse(arguments: list[str], default: Config) -> Config:
    return tyro.cli(Config, prog=PROGRAM, args=arguments, default=default)
