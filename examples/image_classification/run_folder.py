"""The folder of a run: configuration, metrics, TensorBoard events and checkpoints."""

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import UnionType
from typing import Any, Self

import orbax.checkpoint as ocp
from tensorboardX import SummaryWriter

from examples.image_classification.config import Config, ignored_settings
from examples.image_classification.distributed import is_main
from examples.image_classification.progress import Stopped

# A resumed run may change these, which change its results by rounding at most.
MAY_CHANGE = (
    "preset",
    "data_dir",
    "out",
    "probe_batch_size",
    "distributed",
    "fsdp",
    "steps_per_dispatch",
    "checkpoint_every",
    "evaluate_every",
)
EVALUATION = "evaluation.json"


class TrainingError(Exception):
    """An error that ends a run, described in one line."""


class Diverged(TrainingError):
    """The loss or an update was not finite. The same command would fail again."""


def read_config_file(path: Path) -> Config:
    """Returns the configuration of the run in a folder, with `out` set to this folder.

    Raises:
      ValueError: The file is missing, or written by an incompatible version.
    """
    file = path / "config.json"
    if not file.exists():
        raise ValueError(f"{path} holds no run: there is no config.json")
    settings = parse_object(file, file.read_bytes(), [])
    try:
        return Config(**settings | {"augmentation": tuple(settings["augmentation"]), "out": path})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def parse_object(
    file: Path, text: bytes, names: Sequence[str], kind: type | UnionType = object
) -> dict[str, Any]:
    """Returns the JSON object in the text of a file.

    Raises:
      ValueError: the text is something else, a name is missing, or a value is of another kind.
    """
    try:
        found = json.loads(text)
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict) or not found.keys() >= set(names):
        expected = f"a JSON object with {', '.join(names)}" if names else "a JSON object"
        raise ValueError(f"{file} cannot be read: it is not {expected}")
    for name, value in found.items():
        if not isinstance(value, kind):
            raise ValueError(f"{file} cannot be read: {name} is no number but {value!r}")
    return found


class RunFolder:
    """The folder of one run.

    It has `config.json`, `metrics.jsonl` with a line per epoch, TensorBoard events, and the last
    two checkpoints in `checkpoints/`. A checkpoint is complete or absent: it is written to a
    temporary folder in the background, and then renamed.
    """

    def __init__(self, path: Path, config: Config) -> None:
        """Opens a new folder, or the folder of an earlier run with the same configuration."""
        self.path = path.absolute()
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file: give another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.path / "checkpoints", options=options)
        self._last_step = self._manager.latest_step()
        self._events: SummaryWriter | None = None
        self._check_config(config)

    def _check_config(self, config: Config) -> None:
        """Writes the configuration of a new run, or compares it with the one of a resumed run."""
        new = json.loads(json.dumps(dataclasses.asdict(config), default=str))
        may_change = {*MAY_CHANGE, *ignored_settings(config)}
        path = self.path / "config.json"
        if self._last_step is not None:
            if not path.exists():
                raise ValueError(f"{path} is missing beside checkpoints: give another --out")
            old = parse_object(path, path.read_bytes(), [])
            for name in new:
                if name not in may_change and old.get(name) != new[name]:
                    raise ValueError(
                        f"{self.path} holds a run with {name} {old.get(name)}, not {new[name]}: "
                        f"resume with {old.get(name)}, or give this run another --out"
                    )
        elif is_main():
            write_atomically(path, json.dumps(new, indent=1) + "\n")

    # --- Checkpoints ---

    @property
    def last_checkpoint(self) -> str:
        """A description of the last checkpoint, for error messages."""
        with suppress(Exception):  # an error message is already being made
            self._manager.wait_until_finished()
        self._last_step = self._manager.latest_step()
        if self._last_step is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is that of step {self._last_step} in {self.path}"

    def restore(self, state: Any) -> Any:
        """Returns the last saved state, sharded like `state`, or `state` if there is none.

        Raises:
          TrainingError: The checkpoint cannot be read.
        """
        if self._last_step is None:
            return state
        try:
            return self._manager.restore(self._last_step, args=ocp.args.StandardRestore(state))
        except Exception as error:
            path = self.path / "checkpoints" / str(self._last_step)
            raise TrainingError(
                f"{path} cannot be read ({_reason(error)}): delete it to resume from the one before"
            ) from error

    def save(self, state: Any, step: int, wait: bool = False) -> None:
        """Saves the state in the background, or with `wait` before this returns."""
        with self._wrap_errors(f"no checkpoint could be written at step {step} or before"):
            self._manager.wait_until_finished()
            if step != self._manager.latest_step():
                self._manager.save(step, args=ocp.args.StandardSave(state))
            if wait:
                self._manager.wait_until_finished()

    @contextmanager
    def _wrap_errors(self, message: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise TrainingError(
                f"{message} ({_reason(error)}); {self.last_checkpoint}. "
                "Make room, then run the same command"
            ) from error

    # --- Metrics ---

    def history(self, step: int) -> list[dict[str, Any]]:
        """Returns the metrics up to a step, and deletes later ones of an interrupted run."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]
        kept = [record for record in records if record["step"] <= step]
        if is_main():
            with self._wrap_errors("metrics could not be written"):
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
        with self._wrap_errors("metrics could not be written"), path.open("a") as file:
            (self.path / EVALUATION).unlink(missing_ok=True)  # of older parameters
            file.write(json.dumps(record) + "\n")
        assert self._events is not None
        for name, value in record.items():
            self._events.add_scalar(name, value, record["step"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        """Waits until everything is written."""
        # On a full disk the thread that writes events is dead, and closing would wait for it.
        if self._events is not None and (kind is None or issubclass(kind, Stopped)):
            self._events.close()
        with suppress(Exception) if kind is not None else nullcontext():
            self._manager.close()


def _reason(error: Exception) -> str:
    """Returns the end of a long message of orbax, which names the cause."""
    text = re.split(r" \[(?:os_error|tensorstore)", str(error))[0]
    return (text.rsplit(": ", 1)[-1].splitlines() or [repr(error)])[0]


def write_atomically(path: Path, text: str) -> None:
    """Writes a file completely, or leaves it as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
