"""What a run leaves behind: its configuration, metrics, events, checkpoints."""

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import orbax.checkpoint as ocp
from tensorboardX import SummaryWriter

from examples.image_classification.config import Config
from examples.image_classification.devices import is_main

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


class TrainingError(Exception):
    """What ends a run, in one line."""


class RunFolder:
    """The folder of one run.

    `config.json`, `metrics.jsonl` with a line an epoch, TensorBoard events, and `checkpoints/`
    with the last two. A checkpoint is there in full or not at all: it is written to a temporary
    folder, in the background, and renamed.
    """

    def __init__(self, path: Path, config: Config) -> None:
        """Opens a new folder, or that of an earlier run with the same configuration."""
        self.path = path.absolute()
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
            old = json.loads(path.read_text())
            for name in new:
                if name not in MAY_CHANGE and old.get(name) != new[name]:
                    raise ValueError(
                        f"{self.path} holds a run with {name} {old.get(name)}, not {new[name]}: "
                        "give this one another --out, or delete that folder"
                    )
        elif is_main():
            write_atomically(path, json.dumps(new, indent=1) + "\n")

    # --- Checkpoints ---

    @property
    def last_good(self) -> str:
        """The last checkpoint, in words."""
        if self._last_good is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is that of step {self._last_good} in {self.path}"

    def restore(self, state: Any) -> Any:
        """Returns the last state saved, placed like `state`; or that, where there is none."""
        if self._last_good is None:
            return state
        return self._manager.restore(self._last_good, args=ocp.args.StandardRestore(state))

    def save(self, state: Any, step: int, wait: bool = False) -> None:
        """Saves the state, in the background; with `wait` it is there when this returns."""
        with self._failures(step):
            self._manager.wait_until_finished()
            self._last_good = self._manager.latest_step()
            if step != self._last_good:
                self._manager.save(step, args=ocp.args.StandardSave(state))
            if wait:
                self._manager.wait_until_finished()
                self._last_good = self._manager.latest_step()

    @contextmanager
    def _failures(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).split(" [os_error")[0].rsplit(": ", 1)[-1].splitlines()[0]
            raise TrainingError(
                f"no checkpoint could be written at step {step} or before ({reason}); "
                f"{self.last_good}. Make room and run the same command again"
            ) from error

    # --- Metrics ---

    def history(self, step: int) -> list[dict[str, Any]]:
        """Returns the metrics up to a step, and forgets what an interrupted run wrote after it."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]
        kept = [record for record in records if record["step"] <= step]
        if is_main():
            write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))
            self._events = SummaryWriter(str(self.path), purge_step=step + 1)
        return kept

    def log(self, record: dict[str, Any]) -> None:
        """Appends a line of metrics."""
        if not is_main():
            return
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        assert self._events is not None
        for name, value in record.items():
            self._events.add_scalar(name, value, record["step"])
        self._events.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        """Waits for what is being written."""
        if self._events is not None:
            self._events.close()
        self._manager.close()


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is there in full or as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
