"""The command line of the trainer: an option for each field of `Config`."""

import dataclasses
import sys
from collections.abc import Iterable

import tyro

from examples.image_classification.config import Config
from examples.image_classification.data import DATASETS
from examples.image_classification.methods import METHODS, method_arguments
from examples.image_classification.models import MODELS
from examples.image_classification.names import hint
from examples.image_classification.presets import PRESETS, settings_for

PROGRAM = "image_classification"
CHOICES: dict[str, Iterable[str]] = {
    "preset": PRESETS,
    "dataset": DATASETS,
    "model": MODELS,
    "method": METHODS,
}


def read_config(arguments: list[str]) -> Config:
    """Reads the command line; the defaults depend on the preset, data set, model and method.

    Raises:
      ValueError: an argument is wrong.
      SystemExit: the help or a list was asked for, or a value cannot be parsed.
    """
    # Twice: what is published for the choices is the default of all else.
    asked = [argument for argument in arguments if argument not in ("-h", "--help")]
    chosen = _parse(asked, Config())
    for name, names in CHOICES.items():
        if getattr(chosen, name) == "list":
            print("\n".join(describe(name, choice) for choice in names), flush=True)
            sys.exit()
        check_choice(name, getattr(chosen, name), names)
    settings = settings_for(chosen.preset, chosen.dataset, chosen.model, chosen.method)
    # A default that is no empty dictionary would give each of its keys an option of its own.
    published = settings.pop("method_args", {})
    config = _parse(arguments, Config(**{**settings, "preset": chosen.preset}))
    if config.method == settings["method"]:
        merged = {**published, **config.method_args}
        config = dataclasses.replace(config, method_args=merged)
    if any(getattr(config, name) != settings[name] for name in ("dataset", "model", "method")):
        config = dataclasses.replace(config, preset=None)  # it is another run, in another folder
    check_used(config, arguments)
    return config


def describe(kind: str, name: str) -> str:
    """Returns a name with what is to be known of it."""
    if kind == "preset":
        return f"{name:52} {PRESETS[name].source}"
    if kind == "method":
        takes = " ".join(f"{key} {value}" for key, value in method_arguments(name).items())
        return f"{name:24} {f'--method-args {takes}' if takes else ''}".rstrip()
    return name


def _parse(arguments: list[str], default: Config) -> Config:
    return tyro.cli(Config, prog=PROGRAM, args=arguments, default=default)


def check_used(config: Config, arguments: list[str]) -> None:
    """Raises ValueError where an option was given that the method does not look at."""
    given = {argument.split("=")[0].replace("_", "-") for argument in arguments}
    method = METHODS[config.method]
    unused = {
        "--rho": method.scale is None,
        "--rho-max": not config.method.startswith("xsam"),
        "--ascent-steps": not method.steps,
    }
    for option, is_unused in unused.items():
        if is_unused and option in given:
            raise ValueError(f"{config.method} does not use {option}: leave it out")


def check_choice(name: str, value: str | None, names: Iterable[str]) -> None:
    """Raises ValueError where the value is none of the names."""
    if value is not None and value not in names:
        raise ValueError(f"unknown {name} {value!r}; {hint(value, names)} (--{name} list)")
