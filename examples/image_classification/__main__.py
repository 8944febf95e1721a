"""The entry point of `python -m examples.image_classification`."""

import signal
import sys

import jax
from absl import logging

from examples.image_classification.checkpoints import TrainingError
from examples.image_classification.command_line import PROGRAM, read_config
from examples.image_classification.config import run_folder
from examples.image_classification.distributed import (
    cache_compilations,
    initialize_distributed,
    is_main,
    leave,
)
from examples.image_classification.output import lossy_output
from examples.image_classification.progress import Stopped
from examples.image_classification.run_folder import Diverged
from examples.image_classification.train import prepare, train_prepared


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
        config = read_config(arguments)
        cache_compilations()
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
        accuracies = [f"{name} {last[name]:.2f} %" for name in last if name.endswith("_accuracy")]
        print(f"{run_folder(config)}: {', '.join(accuracies).replace('_accuracy', '')}")
    return 0


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
