"""What a run leaves behind: its configuration, metrics, events, checkpoints."""

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Self

import orbax.checkpoint as ocp
from tensorboardX import SummaryWriter

from examples.image_classification.config import Config
from examples.image_classification.devices import is_main
from examples.image_classification.progress import Stopped

# These change neither what is computed nor what is measured, up to rounding.
MAY_CHANGE = (
    "preset",
    "data_dir",
    "out",
    "distributed",
    "fsdp",
    "steps_per_dispatch",
    "checkpoint_every",
    "evaluate_every",
)


EVALUATION = "evaluation.json"


class TrainingError(Exception):
    """What ends a run, in one line."""


class Diverged(TrainingError):
    """The loss or an update was not finite: the same command would end in the same way."""


def read_config_file(path: Path) -> Config:
    """Returns the configuration of the run in a folder, wherever the folder is now.

    Raises:
      ValueError: there is none, or it is of another version.
    """
    try:
        settings = json.loads((path / "config.json").read_text())
        return Config(**settings | {"augmentation": tuple(settings["augmentation"]), "out": path})
    except FileNotFoundError:
        raise ValueError(f"{path} holds no run: there is no config.json") from None
    except (TypeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path / 'config.json'} cannot be read: {error}") from error


class RunFolder:
    """The folder of one run.

    `config.json`, `metrics.jsonl` with a line an epoch, TensorBoard events, and `checkpoints/`
    with the last two. A checkpoint is there in full or not at all: it is written to a temporary
    folder, in the background, and renamed.
    """

    def __init__(self, path: Path, config: Config) -> None:
        """Opens a new folder, or that of an earlier run with the same configuration."""
        self.path = path.absolute()
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file: give another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.path / "checkpoints", options=options)
        self._last_good = self._manager.latest_step()
        self._events: SummaryWriter | None = None
        self._check_config(json.loads(json.dumps(dataclasses.asdict(config), default=str)))

    def _check_config(self, new: dict[str, Any]) -> None:
        """Writes the configuration beside the run; of one that is to go on, it is the same."""
        path = self.path / "config.json"
        if self._last_good is not None:
            if not path.exists():
                raise ValueError(f"{path} is missing beside checkpoints: give another --out")
            old = json.loads(path.read_text())
            for name in new:
                if name not in MAY_CHANGE and old.get(name) != new[name]:
                    raise ValueError(
                        f"{self.path} holds a run with {name} {old.get(name)}, not {new[name]}: "
                        f"go on with {old.get(name)}, or give this one another --out"
                    )
        elif is_main():
            write_atomically(path, json.dumps(new, indent=1) + "\n")

    # --- Checkpoints ---

    @property
    def last_good(self) -> str:
        """The last checkpoint, in words."""
        with suppress(Exception):  # what went wrong is about to be said
            self._manager.wait_until_finished()
        self._last_good = self._manager.latest_step()
        if self._last_good is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is that of step {self._last_good} in {self.path}"

    def restore(self, state: Any) -> Any:
        """Returns the last state saved, placed like `state`; or that, where there is none.

        Raises:
          TrainingError: what was saved cannot be read.
        """
        if self._last_good is None:
            return state
        try:
            return self._manager.restore(self._last_good, args=ocp.args.StandardRestore(state))
        except Exception as error:
            path = self.path / "checkpoints" / str(self._last_good)
            raise TrainingError(
                f"{path} cannot be read ({_reason(error)}): delete it to go on from the one before"
            ) from error

    def save(self, state: Any, step: int, wait: bool = False) -> None:
        """Saves the state, in the background; with `wait` it is there when this returns."""
        with self._failures(f"no checkpoint could be written at step {step} or before"):
            self._manager.wait_until_finished()
            if step != self._manager.latest_step():
                self._manager.save(step, args=ocp.args.StandardSave(state))
            if wait:
                self._manager.wait_until_finished()

    @contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise TrainingError(
                f"{what} ({_reason(error)}); {self.last_good}. Make room, then run the same command"
            ) from error

    # --- Metrics ---

    def history(self, step: int) -> list[dict[str, Any]]:
        """Returns the metrics up to a step, and forgets what an interrupted run wrote after it."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]
        kept = [record for record in records if record["step"] <= step]
        if is_main():
            with self._failures("metrics could not be written"):
                write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
                # A full disk ends the thread that writes events; a short queue would then block.
                self._events = SummaryWriter(
                    str(self.path), purge_step=step + 1, max_queue=10**9, flush_secs=10
                )
        return kept

    def log(self, record: dict[str, Any]) -> None:
        """Appends a line of metrics."""
        if not is_main():
            return
        path = self.path / "metrics.jsonl"
        with self._failures("metrics could not be written"), path.open("a") as file:
            (self.path / EVALUATION).unlink(missing_ok=True)  # it was of other parameters
            file.write(json.dumps(record) + "\n")
        assert self._events is not None
        for name, value in record.items():
            self._events.add_scalar(name, value, record["step"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        """Waits for what is being written."""
        # On a full disk the thread that writes events is dead, and would be waited for.
        if self._events is not None and (kind is None or issubclass(kind, Stopped)):
            self._events.close()
        with suppress(Exception) if kind is not None else nullcontext():
            self._manager.close()


def _reason(error: Exception) -> str:
    """Returns the end of a long message of orbax, where it says what was wrong."""
    text = re.split(r" \[(?:os_error|tensorstore)", str(error))[0]
    return (text.rsplit(": ", 1)[-1].splitlines() or [repr(error)])[0]


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is there in full or as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
