"""Trains a network, or resumes an interrupted run.

All randomness is a function of the seed and the step, and `State` holds everything else that a step
needs. A killed run resumes from its last checkpoint and ends with the same parameters.
"""

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import optax

from examples.training.distributed import gather_texts, is_main, raising_together
from examples.training.optimizer import make_schedule, sharp_period
from examples.training.output import print_line
from examples.training.program import Program, State, TracedSettings
from examples.training.progress import NotFinite, Progress, Stopped, StopRequest
from examples.training.run_folder import Diverged, RunFolder, to_json, write_atomically
from examples.training.settings import Settings, check, run_folder

Record = dict[str, Any]


def train(config: Settings, show: bool = True) -> list[Record]:
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
      Stopped: SIGTERM, SIGHUP or Ctrl-C arrived. The state is saved.
    """
    return train_prepared(prepare(config), show)


class Batches(Protocol):
    """The data of a run in batches, divided over all devices.

    Attributes:
      spec: Constants that the compiled program depends on.
      arrays: Data of each split on the devices, or None for a split that is copied batch by batch.
      examples_per_step: The mean number of examples of a batch.
      files: Texts to be kept in the folder of the run, by name.
    """

    spec: Any
    arrays: dict[str, Any]
    examples_per_step: float
    files: dict[str, str]

    def split(self, name: str) -> Any:
        """Returns the data of a split on the host."""

    def evaluated_splits(self, is_last: bool) -> list[str]:
        """Returns the splits to evaluate after an epoch."""

    def training_rows(self, epoch: int, start_step: int) -> Iterator[Any]:
        """Yields the rows of an epoch, several steps at a time, for one call each."""

    def evaluation_rows(self, data: Any) -> Iterator[Any]:
        """Yields the rows of any data in order."""


class Run(NamedTuple):
    """A run before its first step."""

    config: Any  # the `Settings` of a program
    batches: Any  # its `Batches`
    program: Program
    traced: TracedSettings
    folder: RunFolder


def prepare(config: Settings) -> Run:
    """Checks the settings, loads the data, and opens the folder of the run."""
    with raising_together():
        check(config)
    check_equal_on_all_processes(config)
    with raising_together():
        batches = config.load()
        # Builds model and optimizer, so that wrong arguments raise before the folder exists.
        program = config.make_program(batches.spec)
        traced = TracedSettings.of(config)
        if not any((run_folder(config) / "checkpoints").glob("*")):
            new = program.abstract_state
            program.pretrained(new.params, new.statistics)  # a file that does not fit raises
        folder = open_folder(config, batches)
        if is_main():
            for name, text in batches.files.items():
                if not (folder.path / name).exists():
                    write_atomically(folder.path / name, text)
        return Run(config, batches, program, traced, folder)


def open_folder(config: Settings, batches: Batches) -> RunFolder:
    """Opens the folder of a run."""
    kept = [epoch * batches.spec.steps_per_epoch for epoch in config.keep_epochs]
    return RunFolder(run_folder(config), config, kept)


def is_saved(config: Settings, epoch: int) -> bool:
    """Returns whether a checkpoint is saved after an epoch, counted from 1."""
    in_turn = epoch % config.checkpoint_every == 0
    return in_turn or epoch == config.epochs or epoch in config.keep_epochs


class EpochIsOver(ValueError):
    """The checkpoint of an epoch was to be kept, but the epoch is over."""


def check_kept(run: Run, step: int) -> None:
    """Raises EpochIsOver if epochs to keep are over, and their checkpoints were not kept."""
    per_epoch, steps = run.batches.spec.steps_per_epoch, run.folder.checkpoints.steps
    kept = {epoch * per_epoch for epoch in run.config.keep_epochs}
    if missed := sorted(kept.intersection(range(step + 1)).difference(steps)):
        epochs = ", ".join(str(lost // per_epoch) for lost in missed)
        raise EpochIsOver(
            f"--keep-epochs: epoch {epochs} of {run.folder.path} is over, and its checkpoint was "
            "not kept. Train again, with another --out"
        )


def check_equal_on_all_processes(config: Settings) -> None:
    """Raises ValueError where processes of one run have different settings."""
    # The data may lie elsewhere on each host.
    texts = gather_texts(json.dumps(to_json(dataclasses.replace(config, data_dir=None))))
    first, *others = map(json.loads, texts)
    for index, other in enumerate(others, 1):
        for name, value in first.items():
            if other[name] != value:
                raise ValueError(
                    f"{name} is {other[name]} on process {index} and {value} on process 0: start "
                    "all processes with the same options"
                )


def train_prepared(run: Run, show: bool = True) -> list[Record]:
    """Trains a prepared run, as `train` does."""
    config, per_epoch = run.config, run.batches.spec.steps_per_epoch
    total = config.epochs * per_epoch
    with run.folder as folder, StopRequest() as stop:
        state = restore(run)
        step = int(state.step)
        check_kept(run, step)
        history = folder.history(step)
        if (lost := step // per_epoch - len(history)) > 0:
            text = f"{folder.path}: the metrics of {lost} epochs before step {step} are lost"
            if step == total and (not history or history[-1]["step"] < total):
                text += f". To train the last ones again, delete {folder.path}/checkpoints/{step}"
            print_line(text)
        if run.batches.examples_per_step == 1 and state.statistics:
            print_line("warning: BatchNorm has one image to normalize over: raise --batch-size")
        if show:
            print_line(summary(run, state) if step < total else f"{folder.path} is finished")
        with Progress(total, step, run.batches.examples_per_step, config.unit, show) as progress:
            for epoch in range(step // per_epoch, config.epochs):
                state, record = train_epoch(run, state, epoch, progress, stop)
                step, is_last = int(state.step), epoch + 1 == config.epochs
                if record and is_last:
                    record |= over_epochs([*history, record], config.metric)
                if record:
                    # Before the checkpoint: a record without one is written again, one lost is not.
                    folder.log(record)
                    progress.print_epoch(record, f"{epoch + 1}/{config.epochs}")
                    history.append(record)
                    if is_saved(config, epoch + 1):
                        folder.save(state, step, wait=is_last)
                # A signal may also have come while the epoch was evaluated.
                if stop.requested() and step < total:
                    folder.save(state, step, wait=True)
                    raise stopped(step, folder.path, stop)
    if is_main() and history:
        from examples.training import curves  # Matplotlib takes a second to import

        curves.save_curves(history, folder.path / "curves.png")
    last = history[-1] if history else {}
    if bad := [name for name in last if name.endswith("_loss") and not math.isfinite(last[name])]:
        raise Diverged(f"{', '.join(bad)} of the last epoch is not finite, in {folder.path}")
    return history


def restore(run: Run) -> State:
    """Returns the state of the last checkpoint, or that before the first step."""
    abstract = run.program.abstract_state
    state = run.folder.checkpoints.restore(abstract)
    return run.program.start(run.traced) if state is abstract else state


def stopped(step: int, path: Path, stop: StopRequest) -> Stopped:
    """Returns the exception that ends a run after a signal, when its state is saved."""
    text = f"stopped after step {step}, which is saved in {path}; the same command resumes the run"
    return Stopped(text, stop.number)


def train_epoch(
    run: Run, state: State, epoch: int, progress: Progress, stop: StopRequest
) -> tuple[State, Record]:
    """Trains until the end of an epoch, or until a stop is requested.

    Returns:
      The new state, and the metrics of the epoch, empty if it is not complete.

    Raises:
      Diverged: The loss or an update was not finite.
    """
    per_epoch, label = run.batches.spec.steps_per_epoch, f"{epoch + 1}/{run.config.epochs}"
    step = start_step = int(state.step)
    period = sharp_period(run.config)
    start_time = time.perf_counter()
    try:
        for rows in run.batches.training_rows(epoch, start_step=step % per_epoch):
            # A call of one step leaves the conditional to the host: on CPU the gradient of a
            # convolution is slow inside one.
            single = period > 1 and len(jax.tree.leaves(rows)[0]) == 1
            sharp = step % period == 0 if single else None
            state, metrics = run.program.train_steps(
                state, run.batches.arrays["train"], rows, run.traced, sharp
            )
            progress.update(metrics, label)
            step += len(metrics["train_loss"])
            if stop.requested() and step % per_epoch:
                break
        progress.read_pending()
    except NotFinite as error:
        raise diverged(run, error.step) from None
    if step % per_epoch:
        return state, {}
    seconds = time.perf_counter() - start_time
    rate = (step - start_step) * run.batches.examples_per_step / seconds
    speed = {f"{run.config.unit}_per_second": rate, "seconds": seconds}
    record = summarize_epoch(run, state) | speed
    state = state._replace(sums=jax.tree.map(jax.numpy.zeros_like, state.sums))
    is_last = epoch + 1 == run.config.epochs
    if is_last or (epoch + 1) % run.config.evaluate_every == 0:
        for split in run.batches.evaluated_splits(is_last):
            record |= evaluate(run.program, state, run.batches, split)
    return state, record


def diverged(run: Run, step: int) -> Diverged:
    """Returns the error of a run whose loss or update is not finite at a step."""
    rate = float(make_schedule(run.config, run.batches.spec.steps_per_epoch)(step))
    return Diverged(
        f"the loss or the update of step {step} is not finite, at learning rate {rate:.4g}; "
        f"{run.folder.last_checkpoint}. Try a lower --learning-rate or --rho, with another --out"
    )


def summarize_epoch(run: Run, state: State) -> Record:
    """Returns the metrics of the epoch that the state has completed."""
    step, per_epoch = int(state.step), run.batches.spec.steps_per_epoch
    record = {
        "step": step,
        "epoch": step // per_epoch,
        "learning_rate": float(make_schedule(run.config, per_epoch)(step - 1)),
        **{name: float(value) / per_epoch for name, value in state.sums.items()},
    }
    # A running count, of which a mean over the epoch would say little.
    sharp_steps = optax.tree.get(state.opt_state, "sharp_steps")
    if sharp_steps is not None:
        record["sharp_steps"] = int(sharp_steps)
    # Peak of the whole process so far. CPUs report none.
    if memory := jax.local_devices()[0].memory_stats():
        record["peak_memory_mb"] = memory["peak_bytes_in_use"] / 1e6
    return record


def over_epochs(history: Sequence[Record], metric: str) -> Record:
    """Returns the best epoch of a run and its mean over the last five, beside its last epoch.

    They are of the test data, or of the validation data if there are any. The best epoch of the
    test data has been chosen by them.
    """
    names = {name for record in history for name in record}
    name = f"validation_{metric}" if f"validation_{metric}" in names else f"test_{metric}"
    evaluated = [record for record in history if name in record]
    best = max(evaluated, key=lambda record: record[name])
    last = [record[name] for record in evaluated[-5:]]
    return {
        "best_epoch": best["epoch"],
        f"best_{name}": best[name],
        f"last_five_{name}": sum(last) / len(last),
    }


def summary(run: Run, state: State) -> str:
    """Describes the run before the first step compiles."""
    config = run.config
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    step, file = int(state.step), getattr(config, "init", None)
    start = f"the weights of {file}, with a new head," if file and not step else f"step {step},"
    return (
        f"{config.method}, {config.model} ({parameters:,} parameters), {config.data_name()}: "
        f"{config.epochs} epochs of {run.batches.spec.steps_per_epoch} steps, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, from {start} "
        f"in {run.folder.path}\nThe first step compiles."
    )


def evaluate(program: Program, state: State, batches: Batches, split: str) -> Record:
    """Returns the metrics of a split."""
    return mean_metrics(program, state, batches, split) | program.measure(state, batches, split)


def mean_metrics(program: Program, state: State, batches: Batches, split: str) -> Record:
    """Returns the mean loss and accuracy over a split, with the running statistics of BatchNorm."""
    rows = batches.evaluation_rows(batches.split(split))
    sums = jax.device_get([program.evaluate(state, batches.arrays[split], row) for row in rows])
    return {name: float(value) for name, value in mean_over_batches(split, sums).items()}


def mean_over_batches(split: str, sums: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the mean loss and accuracy, given the sums over batches."""
    count = sum(batch["count"] for batch in sums)
    return {
        f"{split}_{name}": sum(batch[name] for batch in sums) / count
        for name in ("loss", "accuracy")
    }
