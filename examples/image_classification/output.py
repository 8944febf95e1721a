"""Text on stdout and stderr, which may be lost."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

from examples.image_classification.distributed import is_main


class LossyStream:
    """Text output that never fails: after an error, all of it is dropped.

    A progress bar must not end a run when its terminal, pipe or log file is gone.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or io.StringIO()  # None if the descriptor was closed

    def write(self, text: str) -> int:
        """Writes text."""
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            self._drop()
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._drop()

    def _drop(self) -> None:
        # What is still in the buffer goes there, too, or Python would fail at exit.
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        except (OSError, ValueError):
            self._stream = io.StringIO()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lossy_output() -> Iterator[None]:
    """Makes stdout and stderr of a program `LossyStream`s."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Closed, as by `2>&-`. The next file to be opened would get its number, and the text.
            os.open(os.devnull, os.O_RDWR)
    out, err = LossyStream(sys.stdout), LossyStream(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            out.flush()
            err.flush()


def print_line(text: str) -> None:
    """Prints a line to stderr, on one of the processes."""
    if is_main():
        print(text, file=LossyStream(sys.stderr), flush=True)
