"""The command lines of the experiment tools and the benchmarks: dataclasses that tyro reads."""

import dataclasses
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import logging

from examples.training.checkpoints import TrainingError
from examples.training.command_line import parse
from examples.training.distributed import cache_compilations
from examples.training.output import lossy_output
from examples.training.progress import Stopped

Options = TypeVar("Options")


def read_options(kind: type[Options], arguments: list[str] | None) -> Options:
    """Reads a command line.

    Args:
      kind: a dataclass with a docstring for each field. Its `__post_init__` may raise ValueError.
        The docstring of its module describes the program.
      arguments: the command line, None for that of this process.

    Raises:
      SystemExit: the help was requested (status 0), or the command line is wrong (status 2, after
        one line on stderr).
    """
    description = sys.modules[kind.__module__].__doc__
    given = sys.argv[1:] if arguments is None else arguments
    options = parse(kind, name_program(kind), given, description=description)
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return dataclasses.replace(options, **jax.tree.map(expand_user, values))


def expand_user(value: Any) -> Any:
    """Returns a path with the home folder in place of ~, which the shell leaves in `--out=~/x`."""
    return value.expanduser() if isinstance(value, Path) else value


def run_command(run: Callable[[Options], None], options: Options) -> int:
    """Runs a program, prints an error as one line on stderr, and returns the exit status.

    The status is 2 for wrong arguments and files, 1 where training failed, and 128 and the number
    of the signal where training was stopped.
    """
    program = name_program(type(options))
    logging.set_verbosity(logging.FATAL)  # orbax logs tracebacks beside the line
    cache_compilations()
    with lossy_output(BrokenPipeError):  # lost results are an error, but for `| head`
        try:
            run(options)
            sys.stdout.flush()
        except (ValueError, OSError, TrainingError) as error:
            print(f"{program}: error: {error}", file=sys.stderr)
            return 1 if isinstance(error, TrainingError) else 2
        except Stopped as stopped:
            print(f"{program}: {stopped}", file=sys.stderr)
            return 128 + stopped.number
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    return 0


def name_program(kind: type) -> str:
    """Returns the name of the file that a class stands in."""
    return Path(sys.modules[kind.__module__].__file__ or "").stem
