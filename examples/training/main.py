"""The entry point of a training program."""

import signal
import sys
from collections.abc import Callable
from typing import TypeVar

import jax
from absl import logging

from examples.training.checkpoints import TrainingError
from examples.training.distributed import cache_compilations, initialize_distributed, is_main, leave
from examples.training.output import lossy_output
from examples.training.progress import Stopped
from examples.training.run_folder import Diverged
from examples.training.settings import Settings, format_metric, run_folder
from examples.training.train import EpochIsOver, Record, prepare, train_prepared

Read = TypeVar("Read")


def main(
    program: str,
    read: Callable[[list[str]], Read],
    run: Callable[[Read], int],
    arguments: list[str] | None,
) -> int:
    """Runs a training program, prints errors in one line, and returns the exit status.

    Args:
      program: Its name.
      read: Reads the command line. It may raise ValueError and OSError.
      run: Trains with the settings that were read, and returns the exit status.
      arguments: The command line, None for that of this process.
    """
    logging.set_verbosity(logging.FATAL)  # orbax logs five tracebacks per error
    cache_compilations()
    with lossy_output():
        try:
            try:
                settings = read(sys.argv[1:] if arguments is None else arguments)
            except (ValueError, OSError) as error:
                return fail(program, 2, error)
            return run(settings)
        except KeyboardInterrupt:
            if jax.process_count() > 1:
                leave(128 + signal.SIGINT)
            return 128 + signal.SIGINT
        except Stopped as stopped:
            if is_main():
                print(f"{program}: {stopped}", file=sys.stderr)
            return 128 + stopped.number  # the shell's status after a signal


def run_one(config: Settings) -> int:
    """Trains one run, and returns the exit status."""
    try:
        if config.distributed:
            initialize_distributed(config.distributed_timeout)
        prepared = prepare(config)
    except (ValueError, OSError) as error:
        return fail(config.program, 2, error)
    try:
        history = train_prepared(prepared)
    except EpochIsOver as error:  # on all processes
        return fail(config.program, 2, error)
    except Diverged as error:  # on all processes
        return fail(config.program, 1, error)
    except (TrainingError, OSError) as error:
        return _fail_alone(config.program, error)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).splitlines()[0]
        return _fail_alone(
            config.program,
            f"another process of the run was lost ({reason}): the same command on all hosts "
            "resumes the run",
        )
    if is_main() and history:
        last, metric = history[-1], config.metric
        names = splits_in(last, metric)
        values = [format_metric(metric, name, last[f"{name}_{metric}"]) for name in names]
        print(f"{run_folder(config)}: {', '.join(values)}")
    return 0


def splits_in(record: Record, metric: str) -> list[str]:
    """Returns the names of the splits that have a metric."""
    return [name for name in ("train", "validation", "test") if f"{name}_{metric}" in record]


def fail(program: str, status: int, error: Exception) -> int:
    """Ends with an error that all processes have."""
    if is_main():
        print(f"{program}: error: {error}", file=sys.stderr)
    return status


def _fail_alone(program: str, error: Exception | str) -> int:
    """Ends with an error that other processes need not have."""
    print(f"{program}: error: {error}", file=sys.stderr, flush=True)
    if jax.process_count() > 1:
        leave(1)
    return 1
