"""The checkpoints of a run, each with the digests of its files."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from examples.training.distributed import is_main
from examples.training.output import print_line

DIGESTS = "SHA256SUMS"
# Orbax writes the time of the commit after the digests.
NOT_DIGESTED = (DIGESTS, "_CHECKPOINT_METADATA", "commit_success.txt")


class TrainingError(Exception):
    """An error that ends a run, described in one line."""


class Checkpoints:
    """The last two checkpoints of a run, and others that are kept.

    A checkpoint is complete or absent: it is written to a temporary folder in the background, and
    then renamed. Orbax has no checksums of arrays, so `SHA256SUMS` in each checkpoint has the
    digests of its files. They are verified before a checkpoint is read.
    """

    def __init__(self, path: Path, read_only: bool = False, kept_steps: Sequence[int] = ()) -> None:
        """Opens the folder of the checkpoints.

        Args:
          path: The folder. It is created where it is missing.
          kept_steps: Steps whose checkpoints are kept beside the last two.
          read_only: Whether to leave the folder as it is. Another program may be writing into it.
        """
        self._path = path.absolute()
        self._saving = 0
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
        else:
            self._path.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(2), policies.CustomSteps(kept_steps)]
                ),
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
            )
        self._manager = ocp.CheckpointManager(self._path, options=options)

    @property
    def last_step(self) -> int | None:
        """The step of the last complete checkpoint."""
        return self._manager.latest_step()

    @property
    def steps(self) -> Sequence[int]:
        """The steps of all complete checkpoints."""
        return self._manager.all_steps()

    def restore(self, state: Any, step: int | None = None) -> Any:
        """Returns the last saved state, sharded like `state`, or `state` if there is none.

        With `step` it is the state of that step.

        Raises:
          TrainingError: The checkpoint is damaged or cannot be read.
        """
        if self.last_step is None:
            return state
        step = self.last_step if step is None else step
        folder = self._path / str(step)
        is_whole = False
        try:
            is_whole = verify_digests(folder)
            if not is_whole:
                print_line(f"warning: {folder} has no {DIGESTS} to verify it by")
            return self._manager.restore(step, args=ocp.args.StandardRestore(state))
        except Exception as error:
            message = f"{folder} cannot be read ({short_reason(error)})"
            if not is_whole:
                steps = self._manager.all_steps()
                message += ": delete it to " + (
                    "resume from the one before" if len(steps) > 1 else "start again"
                )
            raise TrainingError(message) from error

    def save(self, state: Any, step: int) -> None:
        """Saves the state in the background."""
        self._manager.wait_until_finished()
        if step != self.last_step:
            self._saving = step
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def wait(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is written, and ends the threads that write."""
        self._manager.close()

    def _write_digests(self) -> None:
        """Adds the digests to a checkpoint that is written but not renamed yet."""
        if is_main():
            (folder,) = self._path.glob(f"{self._saving}.*tmp*")
            lines = [f"{digest}  {name}\n" for name, digest in digest_files(folder).items()]
            (folder / DIGESTS).write_text("".join(lines))


def digest_files(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 digest of each file in a folder and below, by its name."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in NOT_DIGESTED:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(folder).as_posix()] = digest
    return digests


def verify_digests(folder: Path) -> bool:
    """Compares the files in a folder with their digests.

    Returns:
      Whether there are digests.

    Raises:
      ValueError: A file is missing, has another digest, or has none.
    """
    file = folder / DIGESTS
    if not file.exists():
        return False
    lines = [line.partition("  ") for line in file.read_text(errors="replace").splitlines()]
    expected, found = {name: digest for digest, _, name in lines}, digest_files(folder)
    damaged = [name for name in found | expected if found.get(name) != expected.get(name)]
    if damaged:
        raise ValueError(f"{damaged[0] or DIGESTS} is not as it was written")
    return True


def short_reason(error: Exception) -> str:
    """Returns the end of a long message of orbax, which names the cause."""
    text = re.split(r" \[(?:os_error|tensorstore)", str(error))[0]
    return (text.rsplit(": ", 1)[-1].splitlines() or [repr(error)])[0]
