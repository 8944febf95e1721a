"""The entry point of `python -m examples.image_classification`."""

import os
import signal
import sys

from absl import logging

from examples.image_classification.command_line import PROGRAM, read_config
from examples.image_classification.config import run_folder
from examples.image_classification.distributed import (
    cache_compilations,
    initialize_distributed,
    is_main,
)
from examples.image_classification.progress import Stopped
from examples.image_classification.run_folder import TrainingError
from examples.image_classification.train import prepare, train_prepared


def main(arguments: list[str] | None = None) -> int:
    """Trains, prints errors in one line, and returns the exit status."""
    logging.set_verbosity(logging.FATAL)  # orbax logs five tracebacks per error
    try:
        config = read_config(sys.argv[1:] if arguments is None else arguments)
        cache_compilations()
        if config.distributed:
            initialize_distributed()
        run = prepare(config)
    except BrokenPipeError:  # a list piped to `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        return _fail(2, error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    try:
        history = train_prepared(run)
    except (TrainingError, OSError) as error:
        return _fail(1, error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Stopped as stopped:
        if is_main():
            print(f"{PROGRAM}: {stopped}", file=sys.stderr)
        return 128 + stopped.number  # the shell's status after a signal
    if is_main() and history:
        last = history[-1]
        accuracies = [f"{name} {last[name]:.2f} %" for name in last if name.endswith("_accuracy")]
        print(f"{run_folder(config)}: {', '.join(accuracies).replace('_accuracy', '')}")
    return 0


def _fail(status: int, error: Exception) -> int:
    if is_main():
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
