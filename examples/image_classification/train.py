"""Trains an image classifier, or resumes an interrupted run.

All randomness is a function of the seed and the step, and `State` holds everything else that a step
needs. A killed run resumes from its last checkpoint and ends with the same parameters.
"""

import sys
import time
from typing import Any, NamedTuple

import jax
import optax

from examples.image_classification.batches import Batches
from examples.image_classification.config import Config, check, run_folder
from examples.image_classification.data import load
from examples.image_classification.distributed import is_main
from examples.image_classification.progress import NotFinite, Progress, Stopped, StopRequest
from examples.image_classification.run_folder import Diverged, RunFolder
from examples.image_classification.steps import (
    Program,
    State,
    TracedSettings,
    make_program,
    make_schedule,
)

Record = dict[str, Any]


def train(config: Config, show: bool = True) -> list[Record]:
    """Trains, or resumes the run in the folder.

    Args:
      config: The settings of the run.
      show: Whether to show a progress bar.

    Returns:
      The metrics as in `metrics.jsonl`, one record per epoch.

    Raises:
      ValueError: A setting is wrong, or the folder holds another run.
      OSError: The data are missing, or the folder cannot be written.
      TrainingError: The loss was not finite (`Diverged`), or a checkpoint could not be written.
      Stopped: SIGTERM or Ctrl-C arrived. The state is saved.
    """
    return train_prepared(prepare(config), show)


class Run(NamedTuple):
    """A run before its first step."""

    config: Config
    batches: Batches
    program: Program
    traced: TracedSettings
    folder: RunFolder


def prepare(config: Config) -> Run:
    """Checks the settings, loads the data, and opens the folder of the run."""
    check(config)
    batches = Batches(load(config), config)
    # Builds model and optimizer, so that wrong names and arguments raise before the folder exists.
    program = make_program(config, batches.spec)
    traced = TracedSettings.of(config)
    return Run(config, batches, program, traced, RunFolder(run_folder(config), config))


def train_prepared(run: Run, show: bool = True) -> list[Record]:
    """Trains a prepared run, as `train` does."""
    config, batches, program, traced, folder = run
    per_epoch = batches.spec.steps_per_epoch
    total = config.epochs * per_epoch
    schedule = make_schedule(config, per_epoch)
    state = folder.restore(program.init(traced))
    step = int(state.step)
    history = folder.history(step)
    if show and is_main():
        text = summary(run, state) if step < total else f"{folder.path} is finished"
        print(text, file=sys.stderr, flush=True)

    with folder, StopRequest() as stop, Progress(total, step, config.batch_size, show) as progress:
        for epoch in range(step // per_epoch, config.epochs):
            label, is_last = f"{epoch + 1}/{config.epochs}", epoch + 1 == config.epochs
            start_time, start_step, stopping = time.perf_counter(), step, False
            try:
                for rows in batches.training_rows(epoch, start_step=step % per_epoch):
                    state, metrics = program.train_steps(
                        state, batches.arrays["train"], rows, traced
                    )
                    progress.update(metrics, label)
                    step += len(metrics["train_loss"])
                    stopping = stop.requested(step)
                    if stopping and step % per_epoch:
                        break
                progress.read_pending()
            except NotFinite as error:
                raise Diverged(
                    f"the loss or the update of step {error.step} is not finite, at learning rate "
                    f"{float(schedule(error.step)):.4g}; {folder.last_checkpoint}. Try a lower "
                    "--learning-rate or --rho, with another --out"
                ) from None

            if step % per_epoch == 0:
                seconds = time.perf_counter() - start_time
                record = {
                    "step": step,
                    "epoch": epoch + 1,
                    "learning_rate": float(schedule(step - 1)),
                    **{name: float(value) / per_epoch for name, value in state.sums.items()},
                    "images_per_second": (step - start_step) * config.batch_size / seconds,
                    "seconds": seconds,
                }
                # A running count, of which a mean over the epoch would say little.
                sharp_steps = optax.tree.get(state.opt_state, "sharp_steps")
                if sharp_steps is not None:
                    record["sharp_steps"] = int(sharp_steps)
                # Peak of the whole process so far. CPUs report none.
                if memory := jax.local_devices()[0].memory_stats():
                    record["peak_memory_mb"] = memory["peak_bytes_in_use"] / 1e6
                state = state._replace(sums=jax.tree.map(jax.numpy.zeros_like, state.sums))
                if is_last or (epoch + 1) % config.evaluate_every == 0:
                    for split in batches.evaluated_splits(is_last):
                        record |= evaluate(program, state, batches, split)
                # Before the checkpoint: a record without one is written again, one lost is not.
                folder.log(record)
                progress.print_epoch(record, label)
                history.append(record)
                if is_last or (epoch + 1) % config.checkpoint_every == 0:
                    folder.save(state, step, wait=is_last)
            if stopping and step < total:
                folder.save(state, step, wait=True)
                raise Stopped(
                    f"stopped after step {step}, which is saved in {folder.path}; "
                    "the same command resumes the run",
                    stop.number,
                )
    if is_main() and history:
        from examples.image_classification import curves  # Matplotlib takes a second to import

        curves.save_curves(history, folder.path / "curves.png")
    return history


def summary(run: Run, state: State) -> str:
    """Describes the run before the first step compiles."""
    config = run.config
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return (
        f"{config.method}, {config.model} ({parameters:,} parameters), {config.dataset}: "
        f"{config.epochs} epochs of {run.batches.spec.steps_per_epoch} steps, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, from step {int(state.step)}, "
        f"in {run.folder.path}\nThe first step compiles."
    )


def evaluate(program: Program, state: State, batches: Batches, split: str) -> Record:
    """Returns the mean loss and accuracy over a split, with the running statistics of BatchNorm."""
    rows = batches.evaluation_rows(batches.images(split))
    sums = jax.device_get([program.evaluate(state, batches.arrays[split], row) for row in rows])
    count = sum(batch["count"] for batch in sums)
    return {
        f"{split}_{name}": float(sum(batch[name] for batch in sums) / count)
        for name in ("loss", "accuracy")
    }
