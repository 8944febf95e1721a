"""The processes of a run, and the cache of compiled programs."""

import atexit
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils


def cache_compilations() -> None:
    """Caches compiled programs in the user's cache folder, unless JAX already has a folder."""
    option = "jax_compilation_cache_dir"
    if getattr(jax.config, option) is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update(option, str(folder / "xsam_jax" / "compiled"))


def initialize_distributed(timeout: int) -> None:
    """Joins the processes of a pod slice or cluster, which JAX detects.

    Where JAX detects none, it reads `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`.

    Args:
      timeout: Seconds to wait for the other processes: at the start, at the end, and for a sign of
        life in between.
    """

    def read_integer(name: str) -> int | None:
        text = os.environ.get(name)
        if text is not None and not text.isdigit():
            raise ValueError(f"{name} must be a number, got {text!r}")
        return None if text is None else int(text)

    count, index = read_integer("JAX_NUM_PROCESSES"), read_integer("JAX_PROCESS_ID")
    Watcher.instance = Watcher(
        "this process was killed, or another process of the run did not start or was lost for "
        f"{timeout} s (--distributed-timeout). The same command on all hosts resumes the run"
    )
    jax.distributed.initialize(
        num_processes=count,
        process_id=index,
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=timeout,
        shutdown_timeout_seconds=timeout,
    )


class Watcher:
    """A process that prints a line if this one ends abruptly.

    When a process of the run is missing, JAX aborts the others with a C++ stack trace, which Python
    cannot catch.

    Attributes:
      instance: The watcher of this process, if there is one.
    """

    instance: "Watcher | None" = None
    CODE = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"

    def __init__(self, text: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", self.CODE, text],
            stdin=subprocess.PIPE,
            start_new_session=True,  # without Ctrl-C
        )
        atexit.register(self.end)

    def end(self) -> None:
        """Ends the watcher without a line."""
        if self._process.poll() is None:
            self._process.communicate(b"this process ends by itself")


def leave(status: int) -> None:
    """Ends this process without waiting for the others, which JAX would do."""
    if Watcher.instance is not None:
        Watcher.instance.end()
    os._exit(status)


def is_main() -> bool:
    """Returns whether this process writes and prints."""
    return jax.process_index() == 0


def gather_texts(text: str) -> list[str]:
    """Returns the text of every process, on every process."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(data)] = data
    parts = multihost_utils.process_allgather(padded)
    return [bytes(p[:n]).decode() for p, n in zip(parts, lengths, strict=True)]


@contextmanager
def raising_together() -> Iterator[None]:
    """Raises ValueError on all processes where one of them raises an error inside."""
    error = None
    try:
        yield
    except Exception as caught:
        if jax.process_count() == 1:
            raise
        error = caught
    messages = gather_texts("" if error is None else str(error) or repr(error))
    for index, message in enumerate(messages):
        if message:
            raise ValueError(f"process {index}: {message}") from error
