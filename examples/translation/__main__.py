"""The entry point of `python -m examples.translation`."""

import sys

from examples.training.main import main as run_main
from examples.training.main import run_one
from examples.translation.command_line import read_config
from examples.translation.config import Config


def main(arguments: list[str] | None = None) -> int:
    """Trains, prints errors in one line, and returns the exit status."""
    return run_main(Config.program, read_config, run_one, arguments)


if __name__ == "__main__":
    sys.exit(main())
