"""The command line of a training program: an option for each of its settings."""

import contextlib
import io
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import tyro

from examples.training.check_name import check_name
from examples.training.methods import method_arguments
from examples.training.presets import Preset, adapt, without_arguments
from examples.training.settings import Settings

Kind = TypeVar("Kind", bound=Settings)


def read_settings(
    kind: type[Kind],
    arguments: Sequence[str],
    presets: Mapping[str, Preset],
    choices: Mapping[str, Iterable[str]],
    settings_for: Callable[..., dict[str, Any]],
) -> Kind:
    """Reads a command line. The defaults depend on the preset and on the choices.

    Args:
      kind: The settings of the program.
      arguments: The command line.
      presets: The presets by name.
      choices: The names that some options choose among, by the option.
      settings_for: Returns the default settings, given the preset and the choices.

    Raises:
      ValueError: A name is unknown.
      SystemExit: The help or a list was requested, or a value cannot be parsed.
    """
    # Parsed twice: the choices of the first pass give the defaults of all other options.
    without_help = [argument for argument in arguments if argument not in ("-h", "--help")]
    chosen = parse(kind, kind.program, without_help, default=kind())
    for option, names in {"preset": presets, **choices}.items():
        name = getattr(chosen, option)
        if name == "list":
            print("\n".join(describe(option, choice, presets) for choice in names), flush=True)
            sys.exit()
        if name is not None:
            check_name(option, name, names, f" (--{option} list)")
    settings = settings_for(chosen.preset, *(getattr(chosen, option) for option in choices))
    # tyro would make an option of each key of the published arguments of the method.
    default = without_arguments(kind, chosen.preset, settings)
    return adapt(parse(kind, kind.program, arguments, default=default), settings, choices)


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


def describe(kind: str, name: str, presets: Mapping[str, Preset]) -> str:
    """Returns a line about a name: the source of a preset, or the arguments of a method."""
    if kind == "preset":
        return f"{name:52} {presets[name].source}"
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
