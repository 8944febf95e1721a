"""The entry point of `python -m examples.image_classification`."""

import signal
import sys
from collections.abc import Sequence

import jax
import numpy as np
from absl import logging

from examples.image_classification.checkpoints import TrainingError
from examples.image_classification.command_line import PROGRAM, read_configs
from examples.image_classification.config import Config, run_folder
from examples.image_classification.distributed import (
    cache_compilations,
    initialize_distributed,
    is_main,
    leave,
)
from examples.image_classification.many_runs import train_together
from examples.image_classification.output import lossy_output
from examples.image_classification.progress import Stopped
from examples.image_classification.run_folder import Diverged
from examples.image_classification.train import Record, prepare, train_prepared


def main(arguments: list[str] | None = None) -> int:
    """Trains, prints errors in one line, and returns the exit status."""
    logging.set_verbosity(logging.FATAL)  # orbax logs five tracebacks per error
    with lossy_output():
        try:
            return run(sys.argv[1:] if arguments is None else arguments)
        except KeyboardInterrupt:
            if jax.process_count() > 1:
                leave(128 + signal.SIGINT)
            return 128 + signal.SIGINT
        except Stopped as stopped:
            if is_main():
                print(f"{PROGRAM}: {stopped}", file=sys.stderr)
            return 128 + stopped.number  # the shell's status after a signal


def run(arguments: list[str]) -> int:
    """Trains, prints errors in one line, and returns the exit status."""
    try:
        config, *others = configs = read_configs(arguments)
        cache_compilations()
        if others:
            return run_together(configs)
        if config.distributed:
            initialize_distributed(config.distributed_timeout)
        prepared = prepare(config)
    except (ValueError, OSError) as error:
        return _fail(2, error)
    try:
        history = train_prepared(prepared)
    except Diverged as error:  # on all processes
        return _fail(1, error)
    except (TrainingError, OSError) as error:
        return _fail_alone(error)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).splitlines()[0]
        return _fail_alone(
            f"another process of the run was lost ({reason}): the same command on all hosts "
            "resumes the run"
        )
    if is_main() and history:
        last = history[-1]
        accuracies = [f"{name} {last[f'{name}_accuracy']:.2f} %" for name in splits_in(last)]
        print(f"{run_folder(config)}: {', '.join(accuracies)}")
    return 0


def run_together(configs: Sequence[Config]) -> int:
    """Trains several seeds in one program, and returns the exit status.

    Raises:
      ValueError: An option is wrong.
      OSError: The data are missing.
    """
    try:
        results = train_together(configs)
    except TrainingError as error:
        return _fail(1, error)
    failures = [result for result in results if isinstance(result, Diverged)]
    for failure in failures:
        _fail(1, failure)
    ends = [result[-1] for result in results if not isinstance(result, Diverged)]
    for name in splits_in(ends[0] if ends else {}):
        values = [end[f"{name}_accuracy"] for end in ends]
        spread = np.std(values, ddof=1) / len(values) ** 0.5
        print(f"{name} {np.mean(values):.2f} %, standard error {spread:.2f}, {len(values)} seeds")
    return 1 if failures else 0


def splits_in(record: Record) -> list[str]:
    """Returns the names of the splits that have an accuracy."""
    return [name for name in ("train", "validation", "test") if f"{name}_accuracy" in record]


def _fail(status: int, error: Exception) -> int:
    """Ends with an error that all processes have."""
    if is_main():
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
    return status


def _fail_alone(error: Exception | str) -> int:
    """Ends with an error that other processes need not have."""
    print(f"{PROGRAM}: error: {error}", file=sys.stderr, flush=True)
    if jax.process_count() > 1:
        leave(1)
    return 1


if __name__ == "__main__":
    sys.exit(main())
