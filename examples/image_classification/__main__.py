"""The entry point of `python -m examples.image_classification`."""

import sys
from collections.abc import Sequence

import numpy as np

from examples.image_classification.command_line import read_configs
from examples.image_classification.config import Config
from examples.image_classification.many_runs import train_together
from examples.training.checkpoints import TrainingError
from examples.training.main import fail, run_one, splits_in
from examples.training.main import main as run_main
from examples.training.run_folder import Diverged


def main(arguments: list[str] | None = None) -> int:
    """Trains, prints errors in one line, and returns the exit status."""
    return run_main(Config.program, read_configs, run, arguments)


def run(configs: Sequence[Config]) -> int:
    """Trains one run, or with `--seeds` several, and returns the exit status."""
    return run_together(configs) if len(configs) > 1 else run_one(configs[0])


def run_together(configs: Sequence[Config]) -> int:
    """Trains several seeds in one program, and returns the exit status."""
    program = Config.program
    try:
        results = train_together(configs)
    except TrainingError as error:
        return fail(program, 1, error)
    except (ValueError, OSError) as error:
        return fail(program, 2, error)
    failures = [result for result in results if isinstance(result, Diverged)]
    for failure in failures:
        fail(program, 1, failure)
    ends = [result[-1] for result in results if not isinstance(result, Diverged)]
    for name in splits_in(ends[0] if ends else {}, Config.metric):
        values = [end[f"{name}_accuracy"] for end in ends]
        spread = np.std(values, ddof=1) / len(values) ** 0.5
        print(f"{name} {np.mean(values):.2f} %, standard error {spread:.2f}, {len(values)} seeds")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
