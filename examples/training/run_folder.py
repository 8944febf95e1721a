"""The folder of a run: configuration, metrics, TensorBoard events and checkpoints."""

import dataclasses
import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import UnionType
from typing import Any, Self, TypeVar

import jax
from filelock import FileLock, Timeout
from tensorboardX import SummaryWriter

from examples.training.checkpoints import Checkpoints, TrainingError, short_reason
from examples.training.distributed import is_main
from examples.training.output import print_line
from examples.training.progress import Stopped
from examples.training.settings import Settings, check_values, defaults, ignored_settings

# A resumed run may change these, which change its results by rounding at most.
MAY_CHANGE = (
    "preset",
    "data_dir",
    "out",
    "probe_batch_size",
    "distributed",
    "distributed_timeout",
    "fsdp",
    "steps_per_dispatch",
    "checkpoint_every",
    "keep_epochs",
    "evaluate_every",
)
EVALUATION = "evaluation.json"
DAMAGED = "metrics.damaged.jsonl"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # errors of a file system without them
# How the system and orbax describe that there is no room.
FULL = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))


class Diverged(TrainingError):
    """The loss or an update was not finite. The same command would fail again."""


Kind = TypeVar("Kind", bound=Settings)


def read_config_file(path: Path, kind: type[Kind]) -> Kind:
    """Returns the configuration of the run in a folder, with `out` set to this folder.

    Args:
      path: The folder.
      kind: The settings of the training program.

    Raises:
      ValueError: The file is missing, or written by an incompatible version.
    """
    file = path / "config.json"
    if not file.exists():
        inside = sorted(path.glob("*/config.json"))
        hint = f", but {inside[0].parent} is one" if inside else ": there is no config.json"
        raise ValueError(f"{path} holds no run{hint}")
    # A setting that is missing is younger than the run.
    settings = to_json(kind()) | parse_object(file, file.read_bytes(), kind.identity)
    if (program := settings.pop("program")) != kind.program:
        raise ValueError(f"{file} cannot be read: it is of {program}, not of {kind.program}")
    if unknown := settings.keys() - defaults(kind).keys():
        raise ValueError(f"{file} cannot be read: unknown setting {min(unknown)!r}")
    try:
        config = kind(**settings | {"out": path})
        check_values(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return config


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
        # A bool is an int to Python, and an int of any length is JSON.
        odd = isinstance(value, bool) or (isinstance(value, int) and abs(value) >= 2**63)
        if not isinstance(value, kind) or (kind is not object and odd):
            raise ValueError(f"{file} cannot be read: {name} is no number but {value!r}")
    return found


def to_json(config: Settings) -> dict[str, Any]:
    """Returns a configuration as it is in a file."""
    settings = {"program": config.program} | dataclasses.asdict(config)
    return json.loads(json.dumps(settings, default=str))


class RunFolder:
    """The folder of one run, which a single program at a time may train in.

    It has `config.json`, `metrics.jsonl` with a line per epoch, TensorBoard events, and the last
    two checkpoints in `checkpoints/`.

    Attributes:
      path: The folder.
      checkpoints: Open from `__enter__` to `__exit__`.
    """

    checkpoints: Checkpoints

    def __init__(self, path: Path, config: Settings, kept_steps: Sequence[int] = ()) -> None:
        """Opens a new folder, or the folder of an earlier run with the same configuration.

        Args:
          path: The folder.
          config: The configuration.
          kept_steps: Steps whose checkpoints are kept beside the last two.

        Raises:
          ValueError: The folder holds another run, or another program trains in it.
        """
        self.path = path.absolute()
        self._config, self._kept_steps = self.path / "config.json", kept_steps
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file: give another --out")
        if path == Path() and not self._config.exists():
            raise ValueError("--out is the current folder, which holds no run: name another")
        self.path.mkdir(parents=True, exist_ok=True)
        self._events: SummaryWriter | None = None
        self._lock = FileLock(self.path / ".lock", blocking=False)
        if is_main():
            self._acquire()
            try:
                self._check_config(config)
            except BaseException:
                self._lock.release()
                raise

    def _acquire(self) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            raise ValueError(
                f"another program trains in {self.path}: wait for its end, or give another --out"
            ) from None
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            print_line(f"warning: {self.path} is on a file system without locks")

    def _check_config(self, config: Settings) -> None:
        """Writes the configuration of a new run, or compares it with that of an earlier one."""
        new = to_json(config)
        may_change = {*MAY_CHANGE, *ignored_settings(config)}
        if not self._config.exists():
            if any(self.path.glob("checkpoints/*")):
                raise ValueError(
                    f"{self._config} is missing beside checkpoints: put it back, or give another "
                    "--out"
                )
            write_atomically(self._config, json.dumps(new, indent=1) + "\n")
            return
        old = to_json(read_config_file(self.path, type(config)))
        changed = [name for name in new if name not in may_change and old[name] != new[name]]
        if changed:
            settings = "; ".join(f"{name} {old[name]}, not {new[name]}" for name in changed)
            raise ValueError(
                f"{self.path} holds a run with {settings}: repeat its settings to resume it, or "
                "give this run another --out"
            )

    # --- Checkpoints ---

    @property
    def last_checkpoint(self) -> str:
        """A description of the last checkpoint, for error messages."""
        with suppress(Exception):  # an error message is already being made
            self.checkpoints.wait()
        step = self.checkpoints.last_step
        if step is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is that of step {step} in {self.path}"

    def save(self, state: Any, step: int, wait: bool = False) -> None:
        """Saves the state in the background, or with `wait` before this returns.

        Raises:
          TrainingError: This checkpoint or the one before could not be written.
        """
        with self._wrap_errors(f"no checkpoint could be written at step {step} or before"):
            self.checkpoints.save(state, step)
            if wait:
                self.checkpoints.wait()

    @contextmanager
    def _wrap_errors(self, message: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            reason = short_reason(error)
            advice = "The same command resumes the run"
            if any(text in reason for text in FULL):
                advice = "Make room, then run the same command"
            elif jax.process_count() > 1:
                advice = "Another process of the run may be lost. The same command resumes it"
            raise TrainingError(
                f"{message} ({reason}); {self.last_checkpoint}. {advice}"
            ) from error

    # --- Metrics ---

    def history(self, step: int) -> list[dict[str, Any]]:
        """Returns the metrics up to a step, and deletes later ones of an interrupted run.

        Lines that cannot be read are moved to `metrics.damaged.jsonl`.
        """
        path = self.path / "metrics.jsonl"
        kept, damaged = {}, []  # an equal line counts once
        lines = path.read_bytes().splitlines() if path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                record = parse_object(path, line, ["step", "epoch"], int | float)
                if not isinstance(record["step"], int):
                    raise ValueError(f"{path} cannot be read: step is {record['step']}")
            except ValueError as error:
                damaged.append(line + b"\n")
                reason = str(error).removeprefix(f"{path} ")
                print_line(f"{path}, line {number} {reason}: moved to {DAMAGED}")
            else:
                kept[line] = record
        known = [record for record in kept.values() if record["step"] <= step]
        if later := len(kept) - len(known):
            print_line(f"{self.path}: {later} epochs after step {step} are trained again")
        if is_main():
            with self._wrap_errors("metrics could not be written"):
                if damaged:
                    with (self.path / DAMAGED).open("ab") as file:
                        file.writelines(damaged)
                write_atomically(path, "".join(json.dumps(record) + "\n" for record in known))
                # A full disk ends the thread that writes events; a short queue would then block.
                self._events = SummaryWriter(
                    str(self.path), purge_step=step + 1, max_queue=10**9, flush_secs=10
                )
        return known

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
        try:
            self.checkpoints = Checkpoints(self.path / "checkpoints", kept_steps=self._kept_steps)
        except BaseException as error:
            self._lock.release()
            if not isinstance(error, OSError | ValueError | RuntimeError):
                raise
            reason = short_reason(error)
            raise TrainingError(f"{self.path}/checkpoints cannot be opened ({reason})") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        """Waits until everything is written, and lets others train in the folder."""
        try:
            # On a full disk the thread that writes events is dead, and closing would wait for it.
            if self._events is not None and (kind is None or issubclass(kind, Stopped)):
                self._events.close()
            with suppress(Exception) if kind is not None else nullcontext():
                self.checkpoints.close()
        finally:
            self._lock.release()


def write_atomically(path: Path, text: str) -> None:
    """Writes a file completely, or leaves it as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
