"""The command lines of the small programs: help from a docstring, an error in one line."""

import argparse
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line on stderr, and exit code 2.

    Args:
      name: of the program.
      description: a docstring; what follows its first paragraph stands after the options.
      hint: what to add to errors.
      **options: further ones of `argparse.ArgumentParser`.
    """

    def __init__(
        self, name: str | None = None, description: str = "", hint: str = "", **options: Any
    ) -> None:
        first, _, more = description.partition("\n\n")
        self._hint = hint and f" ({hint})"
        as_written = {"epilog": more, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(name, description=first, allow_abbrev=False, **{**as_written, **options})

    def error(self, message: str) -> NoReturn:
        """Exits."""
        self.exit(2, f"{self.prog}: error: {message}{self._hint}\n")
