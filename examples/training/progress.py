"""The progress bar of a run, and signals that stop it."""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from examples.training.distributed import is_main
from examples.training.output import LossyStream, print_line

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # SIGHUP: the terminal was closed
REFRESH = 0.5  # seconds
LINE_EVERY = 10.0


class Stopped(Exception):
    """A signal stopped the run, which has saved its state."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class NotFinite(Exception):
    """The loss or the update of a step is not finite."""

    def __init__(self, step: int) -> None:
        super().__init__(f"not finite at step {step}")
        self.step = step


class StopRequest:
    """Records SIGTERM, SIGHUP or Ctrl-C. A second Ctrl-C interrupts at once.

    With several processes JAX itself handles the SIGTERM of any process, and all agree on a step.
    Other signals in one of them become a SIGTERM.

    Attributes:
      number: The signal received.
      is_agreed: Whether the run is to stop after the last step of which it was asked.
    """

    def __init__(self) -> None:
        self._received = self.is_agreed = False
        self._calls = 0
        self.number = int(signal.SIGTERM)
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        names = SIGNALS if jax.process_count() == 1 else SIGNALS[1:]
        if threading.current_thread() is threading.main_thread():
            for name in names:
                if signal.getsignal(name) is not signal.SIG_IGN:  # as nohup sets SIGHUP
                    self._previous[name] = signal.signal(name, self._receive)
        return self

    def __exit__(self, *exception: Any) -> None:
        for name, handler in self._previous.items():
            signal.signal(name, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received, self.number = True, number
        with suppress(RuntimeError):  # the signal came while something was being printed
            text = "stopping after this step or evaluation; Ctrl-C again to quit at once"
            print(text, file=LossyStream(sys.stderr), flush=True)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self) -> bool:
        """Returns whether to stop after this call, the same on all processes."""
        # JAX has the processes agree on the number of a call, which must grow by one each time.
        self._calls += 1
        if jax.process_count() == 1:
            self.is_agreed = self._received
        elif not self.is_agreed:
            self.is_agreed = multihost_utils.reached_preemption_sync_point(self._calls)
        return self.is_agreed


class Progress:
    """A progress bar over the examples of the whole run, which also checks that metrics are finite.

    The metrics of a call are read while the next one runs, so that the device never waits. Where
    stderr is not a terminal, lines replace the bar, at most one in ten seconds.
    """

    def __init__(self, total: int, done: int, batch_size: float, unit: str, show: bool) -> None:
        self._batch_size, self._done, self._unit = batch_size, done, unit
        self._pending: tuple[Any, str] | None = None
        self._last_shown = self._last_printed = 0.0
        stream = LossyStream(sys.stderr)
        self._prints_lines = show and is_main() and not stream.isatty()
        self._bar = tqdm(
            file=stream,
            total=total * batch_size,
            initial=done * batch_size,
            unit=f" {unit}",
            unit_scale=True,
            dynamic_ncols=True,
            smoothing=0.05,
            mininterval=REFRESH,
            disable=None if show and is_main() else True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._bar.close()

    def print_epoch(self, record: dict[str, Any], epoch: str) -> None:
        """Prints the metrics of an epoch where there is no bar."""
        now = time.monotonic()
        if not self._prints_lines or now - self._last_printed < LINE_EVERY:
            return
        self._last_printed = now
        ends, others = ("_loss", "_accuracy", "_bleu"), ("best_", "last_five_")
        shown = {n: record[n] for n in record if n.endswith(ends) and not n.startswith(others)}
        values = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
        rate = f"{record[f'{self._unit}_per_second']:.0f} {self._unit}/s"
        print_line(f"epoch {epoch}: {values}, {rate}")

    def update(self, metrics: dict[str, jax.Array], epoch: str) -> None:
        """Stores the metrics of a call, of one or more steps, and reads those of the previous call.

        Raises:
          NotFinite: A loss or an update of the previous call is not finite.
        """
        self.read_pending()
        self._pending = metrics, epoch

    def read_pending(self) -> None:
        """Reads the metrics of the last call."""
        if self._pending is None:
            return
        (metrics, epoch), self._pending = self._pending, None
        losses = np.asarray(metrics["train_loss"])
        finite = np.isfinite(losses) & np.isfinite(np.asarray(metrics["update_norm"]))
        if not finite.all():
            raise NotFinite(self._done + int(finite.argmin()))
        self._done += len(losses)
        now = time.monotonic()
        if now - self._last_shown > REFRESH:
            self._last_shown = now
            accuracy = np.mean(np.asarray(metrics["train_accuracy"]))
            self._bar.set_description(f"epoch {epoch}", refresh=False)
            self._bar.set_postfix_str(f"loss {losses.mean():.3f}, accuracy {accuracy:.1f} %", False)
        self._bar.update(len(losses) * self._batch_size)
