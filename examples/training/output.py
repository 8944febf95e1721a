"""Text on stdout and stderr, which may be lost."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from examples.training.distributed import is_main


class LossyStream:
    """Text output that may be lost: its errors are ignored.

    A progress bar must not end a run when its terminal, pipe or log file is gone.
    """

    def __init__(self, stream: TextIO | None, errors: type[OSError] = OSError) -> None:
        """Wraps a stream.

        Args:
          stream: The stream, or None if its descriptor was closed.
          errors: The errors to ignore.
        """
        self._stream = stream or io.StringIO()
        self._errors = errors

    def write(self, text: str) -> int:
        """Writes text. Characters that the stream cannot encode become question marks."""
        with suppress(self._errors):
            if not self._stream.closed:
                encoding = self._stream.encoding or "utf-8"
                self._stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        with suppress(self._errors):
            if not self._stream.closed:
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lossy_output(errors: type[OSError] = OSError) -> Iterator[None]:
    """Makes stdout and stderr of a program `LossyStream`s.

    Args:
      errors: The errors to ignore on stdout. On stderr all are ignored.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Closed, as by `2>&-`. The next file to be opened would get its number, and the text.
            os.open(os.devnull, os.O_RDWR)
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    with (
        redirect_stdout(LossyStream(sys.stdout, errors)),
        redirect_stderr(LossyStream(sys.stderr)),
    ):
        try:
            yield
        finally:
            for stream in streams:
                try:
                    stream.flush()
                except (OSError, ValueError):
                    # What is still in the buffer goes there, or Python would fail at exit.
                    with suppress(OSError, ValueError):
                        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_line(text: str) -> None:
    """Prints a line to stderr, on one of the processes."""
    if is_main():
        print(text, file=LossyStream(sys.stderr), flush=True)
