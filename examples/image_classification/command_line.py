"""The command line of the trainer: an option for each field of `Config`."""

import contextlib
import io
import itertools
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tyro

from examples.image_classification.check_name import check_name
from examples.image_classification.config import DEFAULTS, Config
from examples.image_classification.data import DATASETS
from examples.image_classification.methods import METHODS, method_arguments
from examples.image_classification.models import MODELS
from examples.image_classification.presets import PRESETS, adapt, settings_for, without_arguments

PROGRAM = "image_classification"
CHOICES: dict[str, Iterable[str]] = {
    "preset": PRESETS,
    "dataset": DATASETS,
    "model": MODELS,
    "method": METHODS,
}


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
    # Parsed twice: the choices of the first pass give the defaults of all other options.
    without_help = [argument for argument in arguments if argument not in ("-h", "--help")]
    chosen = parse(Options, PROGRAM, without_help, default=Options())
    for option, names in CHOICES.items():
        name = getattr(chosen, option)
        if name == "list":
            print("\n".join(describe(option, choice) for choice in names), flush=True)
            sys.exit()
        if name is not None:
            check_name(option, name, names, f" (--{option} list)")
    settings = settings_for(chosen.preset, chosen.dataset, chosen.model, chosen.method)
    # tyro would make an option of each key of the published arguments of the method.
    default = without_arguments(chosen.preset, settings)
    values = vars(parse(Options, PROGRAM, arguments, default=Options(**vars(default)))).copy()
    words = values.pop("seeds")
    config = adapt(Config(**values), settings)
    if not words:
        return [config]
    if config.seed != DEFAULTS["seed"]:
        raise ValueError("give --seed or --seeds, not both")
    seeds = parse_seeds(words)
    folders = {seed: config.out and config.out / f"seed{seed}" for seed in seeds}
    return [replace(config, seed=seed, out=folders[seed]) for seed in seeds]


def parse_seeds(words: Sequence[str]) -> tuple[int, ...]:
    """Returns the seeds of a command line: numbers, and ranges without their end, as in `0:32`.

    Raises:
      ValueError: A word is something else, or a seed is there twice.
    """

    def read(word: str) -> Iterable[int]:
        first, colon, end = word.partition(":")
        if not first.isdecimal() or (colon and not end.isdecimal()):
            raise ValueError(f"--seeds must be numbers, or a range such as 0:32, not {word!r}")
        return range(int(first), int(end)) if colon else [int(first)]

    seeds = tuple(itertools.chain.from_iterable(map(read, words)))
    if not seeds:
        raise ValueError(f"--seeds {' '.join(words)} has no seed")
    if len({*seeds}) < len(seeds):
        raise ValueError(f"seeds must differ, got {' '.join(words)}")
    return seeds


def describe(kind: str, name: str) -> str:
    """Returns a line about a name: the source of a preset, or the arguments of a method."""
    if kind == "preset":
        return f"{name:52} {PRESETS[name].source}"
    if kind == "method":
        takes = " ".join(f"{key} {value}" for key, value in method_arguments(name).items())
        return f"{name:24} {f'--method-args {takes}' if takes else ''}".rstrip()
    return name


def parse(kind: Any, program: str, arguments: Sequence[str], **options: Any) -> Any:
    """Reads a command line with `tyro.cli`, which prints an error in a box. This prints a line.

    Args:
      kind: A dataclass.
      program: The name of the program.
      arguments: The command line.
      **options: Other options of `tyro.cli`.

    Raises:
      SystemExit: The help was requested (status 0), or the command line is wrong (status 2).
    """
    box = io.StringIO()
    try:
        if "--out=" in arguments or ("--out", "") in itertools.pairwise(arguments):
            print("\n--out names no folder", file=box)  # below a title, as tyro prints it
            raise SystemExit(2)
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, prog=program, args=arguments, **options)
    except SystemExit as end:
        if end.code:
            message = unbox(box.getvalue()).removeprefix(f"Error parsing {kind.__name__}: ")
            print(f"{program}: error: {message}", file=sys.stderr)
        raise


def unbox(text: str) -> str:
    """Returns the first section of a message of tyro, which has a title and rules, as one line."""

    def is_rule(line: str) -> bool:
        return re.fullmatch("[─╰╯-]*", line) is not None

    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    after_title = [line.strip(" │") for line in plain.splitlines()][1:]
    section = itertools.dropwhile(is_rule, after_title)
    return " ".join(itertools.takewhile(lambda line: not is_rule(line), section))
