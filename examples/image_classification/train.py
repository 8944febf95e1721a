"""Trains an image classifier, or goes on with a run that was interrupted.

All randomness is a function of the seed and the step, and all else that a step needs is in `State`:
a run that was killed goes on from its last checkpoint as if nothing had happened.
"""

import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from examples.experiments import figures
from examples.image_classification.config import Config, check, run_folder
from examples.image_classification.data import load
from examples.image_classification.devices import Devices, is_main
from examples.image_classification.feed import Feed
from examples.image_classification.optimizer import make_optimizer, make_schedule
from examples.image_classification.progress import NotFinite, Progress, Stop, Stopped
from examples.image_classification.run_folder import Diverged, RunFolder
from examples.image_classification.steps import Inputs, Program, State, make_program

Record = dict[str, Any]


class Run(NamedTuple):
    """A run before its first step."""

    config: Config
    feed: Feed
    program: Program
    folder: RunFolder
    inputs: Inputs


def train(config: Config, show: bool = True) -> list[Record]:
    """Trains, or goes on with what is in the run's folder.

    Args:
      config: what to train.
      show: whether to show a progress bar.

    Returns:
      The metrics, as in `metrics.jsonl`: one record an epoch.

    Raises:
      ValueError: an argument is wrong, or the folder holds another run.
      OSError: the data are not where they were looked for, or the folder cannot be written.
      TrainingError: the loss was not finite (`Diverged`), or a checkpoint could not be written.
      Stopped: SIGTERM or Ctrl-C came; the state is saved.
    """
    return train_prepared(prepare(config), show)


def prepare(config: Config) -> Run:
    """Loads the data and opens the run's folder: what can go wrong for a wrong argument."""
    inputs = Inputs.of(config)
    check(config)
    feed = Feed(load(config), config, Devices())
    make_optimizer(config, feed.shape.steps_per_epoch, inputs.key)
    program = make_program(config, feed.shape)
    return Run(config, feed, program, RunFolder(run_folder(config), config), inputs)


def train_prepared(run: Run, show: bool = True) -> list[Record]:
    """Trains; see `train`."""
    config, feed, program, folder, inputs = run
    per_epoch = feed.shape.steps_per_epoch
    schedule = make_schedule(config, per_epoch)
    state = folder.restore(program.init(inputs))
    step = int(state.step)
    history = folder.history(step)

    total = config.epochs * per_epoch
    if show and is_main():
        said = summary(run, state) if step < total else f"{folder.path} is finished"
        print(said, file=sys.stderr, flush=True)
    with folder, Stop() as stop, Progress(total, step, config.batch_size, show) as progress:
        for epoch in range(step // per_epoch, config.epochs):
            began, before, stopping = time.perf_counter(), step, False
            try:
                for rows in feed.rows(epoch, first=step % per_epoch):
                    state, metrics = program.train_steps(state, feed.arrays["train"], rows, inputs)
                    progress.see(metrics, f"{epoch + 1}/{config.epochs}")
                    step += len(metrics["train_loss"])
                    stopping = stop.requested(step)
                    if stopping and step % per_epoch:
                        break
                progress.see_last()
            except NotFinite as error:
                raise Diverged(
                    f"the loss or the update of step {error.step} is not finite, at learning rate "
                    f"{float(schedule(error.step)):.4g}; {folder.last_good}. Try a lower "
                    "--learning-rate or --rho, with another --out"
                ) from None

            if step % per_epoch == 0:
                seconds = time.perf_counter() - began
                record = {
                    "step": step,
                    "epoch": epoch + 1,
                    "learning_rate": float(schedule(step - 1)),
                    **{name: float(value) / per_epoch for name, value in state.sums.items()},
                    "images_per_second": (step - before) * config.batch_size / seconds,
                    "seconds": seconds,
                }
                # Of the whole process so far; CPUs do not say.
                if memory := jax.local_devices()[0].memory_stats():
                    record["peak_memory_mb"] = memory["peak_bytes_in_use"] / 1e6
                state = state._replace(sums=jax.tree.map(jax.numpy.zeros_like, state.sums))
                last = epoch + 1 == config.epochs
                if last or (epoch + 1) % config.evaluate_every == 0:
                    for split in feed.held_out(last):
                        record |= evaluate(program, state, feed, split)
                # Before the checkpoint: a record without one is written again, one lost is not.
                folder.log(record)
                progress.say(record, f"{epoch + 1}/{config.epochs}")
                history.append(record)
                if last or (epoch + 1) % config.checkpoint_every == 0:
                    folder.save(state, step, wait=last)
            if stopping and step < total:
                folder.save(state, step, wait=True)
                raise Stopped(
                    f"stopped after step {step}, which is saved in {folder.path}; the same command "
                    "goes on",
                    stop.number,
                )
    if is_main() and history:
        draw(history, folder.path)
    return history


def summary(run: Run, state: State) -> str:
    """Says what is trained, before the first step compiles."""
    config, shape = run.config, run.feed.shape
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return (
        f"{config.method}, {config.model} ({size:,} parameters), {config.dataset}: {config.epochs} "
        f"epochs of {shape.steps_per_epoch} steps, {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}, from step {int(state.step)}, in {run.folder.path}\n"
        "The first step compiles."
    )


def evaluate(program: Program, state: State, feed: Feed, split: str) -> Record:
    """Returns the mean loss and accuracy over a split, with the running statistics of BatchNorm."""
    rows = feed.evaluation_rows(split)
    sums = [program.evaluate(state, feed.arrays[split], row) for row in rows]
    sums = jax.device_get(sums)
    count = sum(batch["count"] for batch in sums)
    return {
        f"{split}_{name}": float(sum(batch[name] for batch in sums) / count)
        for name in ("loss", "accuracy")
    }


def draw(history: list[Record], folder: Path) -> None:
    """Writes a picture of the metrics over epochs."""
    figures.save(figures.training_curves(history), folder / "curves")
