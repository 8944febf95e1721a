"""Trains several runs at once, in one program under `jax.vmap`.

The runs may differ in seed, radii, learning rate and weight decay, which the program takes as
arguments, and in label noise. Each has its folder, with the results that it would have alone up to
rounding. Use it for small models of matrix products, where a single run leaves the device idle.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from examples.image_classification.batches import Images
from examples.image_classification.config import Config
from examples.image_classification.data import load
from examples.image_classification.models import MATRIX_PRODUCTS
from examples.training.program import Program, State, TracedSettings
from examples.training.progress import StopRequest
from examples.training.run_folder import Diverged
from examples.training.settings import check
from examples.training.train import (
    Record,
    Run,
    check_kept,
    diverged,
    is_saved,
    mean_over_batches,
    open_folder,
    over_epochs,
    prepare,
    restore,
    stopped,
    summarize_epoch,
)

# Settings in which the runs may differ.
VARIED = ("seed", "rho", "rho_max", "learning_rate", "weight_decay", "label_noise", "out")


def is_worthwhile(config: Config) -> bool:
    """Returns whether runs are faster together: vmapped convolutions are slow on CPU."""
    return config.model in MATRIX_PRODUCTS or jax.default_backend() != "cpu"


def train_together(configs: Sequence[Config], show: bool = True) -> list[list[Record] | Diverged]:
    """Trains runs, or resumes them. Finished runs take no part.

    Runs that resume from different steps are trained apart, those of one step together.

    Args:
      configs: The settings of the runs.
      show: Whether to show a progress bar.

    Returns:
      For each run its metrics, as `train` does, or the error of a run that diverged. The others go
      on. `seconds` and `images_per_second` are a run's share.

    Raises:
      ValueError: A setting is wrong, the runs differ in others than `VARIED`, or a folder holds
        another run.
      OSError: The data are missing, or a folder cannot be written.
      TrainingError: A checkpoint could not be written.
      Stopped: SIGTERM, SIGHUP or Ctrl-C arrived. All states are saved.
    """
    runs = prepare_all(configs)
    with contextlib.ExitStack() as stack:
        for run in runs:
            stack.enter_context(run.folder)
        stop = stack.enter_context(StopRequest())
        states = [restore(run) for run in runs]
        steps = [int(state.step) for state in states]
        for run, step in zip(runs, steps, strict=True):
            check_kept(run, step)
        histories = [run.folder.history(step) for run, step in zip(runs, steps, strict=True)]
        results: list[list[Record] | Diverged] = [*histories]
        total = configs[0].epochs * runs[0].batches.spec.steps_per_epoch
        for step in sorted({*steps} - {total}):
            chosen = [i for i, own in enumerate(steps) if own == step]
            own = [runs[i] for i in chosen], [states[i] for i in chosen]
            together = Together(*own, [histories[i] for i in chosen])
            with tqdm(total=total, initial=step, unit="step", disable=not show or None) as bar:
                together.train(stop, bar)
            for i, error in zip(chosen, together.errors, strict=True):
                results[i] = error or histories[i]
    return results


def prepare_all(configs: Sequence[Config]) -> list[Run]:
    """Checks the settings of all runs, loads the data once, and opens the folders."""
    first = configs[0]
    same = {name: getattr(first, name) for name in VARIED}
    for config in configs:
        check(config)
        if dataclasses.replace(config, **same) != first:
            raise ValueError(f"runs in one program may differ in {', '.join(VARIED)} alone")
    if first.distributed:
        raise ValueError(
            "several seeds in one program are for one process: leave --distributed out"
        )
    run = prepare(first)
    if not isinstance(run.batches.split("train"), Images):
        raise ValueError(f"{first.dataset} does not fit into memory: train one seed at a time")
    folders = [open_folder(config, run.batches) for config in configs[1:]]
    others = [
        Run(config, run.batches, run.program, TracedSettings.of(config), folder)
        for config, folder in zip(configs[1:], folders, strict=True)
    ]
    return [run, *others]


class Axes(NamedTuple):
    """The axes of `jax.vmap`: runs share counters, so that `lax.cond` stays a conditional."""

    state: State
    arrays: Images

    @classmethod
    def of(cls, state: State) -> "Axes":
        """Returns the axes for states like this one."""

        def axis(leaf: Any) -> int | None:
            is_counter = leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.integer)
            return None if is_counter else 0

        return cls(jax.tree.map(axis, state), Images(pixels=None, labels=0))

    def stack(self, states: Sequence[State]) -> State:
        """Returns the states of all runs in one."""

        def join(axis: int | None, *leaves: Any) -> Any:
            return leaves[0] if axis is None else jnp.stack(leaves)

        return jax.tree.map(join, self.state, *states, is_leaf=lambda axis: axis is None)

    def select(self, state: State, run: int) -> State:
        """Returns the state of one run."""

        def part(axis: int | None, leaf: Any) -> Any:
            return leaf if axis is None else leaf[run]

        return jax.tree.map(part, self.state, state, is_leaf=lambda axis: axis is None)


class VmappedProgram(NamedTuple):
    """The compiled functions of `Program` for several runs."""

    axes: Axes
    train_steps: Callable[..., Any]
    evaluate: Callable[..., Any]


@functools.lru_cache(maxsize=4)
def vmapped(program: Program) -> VmappedProgram:
    """Returns the functions of a program under `jax.vmap`. A sweep compiles them once."""
    axes = Axes.of(program.abstract_state)
    train_steps = jax.vmap(
        lambda *arguments: program.train_steps(*arguments),
        in_axes=(axes.state, axes.arrays, 0, 0),
        out_axes=(axes.state, 0),
    )
    evaluate = jax.vmap(program.evaluate, in_axes=(axes.state, None, None), out_axes=0)
    return VmappedProgram(axes, jax.jit(train_steps, donate_argnums=0), jax.jit(evaluate))


class Together:
    """Runs at the same step, with their programs under `jax.vmap`.

    Attributes:
      errors: For each run None, or the reason why it takes no further part.
    """

    def __init__(
        self, runs: Sequence[Run], states: Sequence[State], histories: Sequence[list[Record]]
    ) -> None:
        self._runs, self._histories = runs, histories
        self._batches, self._program = runs[0].batches, vmapped(runs[0].program)
        self._state = self._program.axes.stack(states)
        self._traced = jax.tree.map(lambda *values: jnp.stack(values), *[r.traced for r in runs])
        images = self._batches.arrays["train"]
        assert images is not None
        # Runs share the images, but not wrong labels.
        labels = np.stack([load(run.config).train.labels for run in runs])
        self._arrays = Images(images.pixels, jnp.asarray(labels))
        self.errors: list[Diverged | None] = [None] * len(runs)

    def train(self, stop: StopRequest, bar: tqdm) -> None:
        """Trains to the end, and adds the metrics of each epoch to the histories of the runs."""
        config, per_epoch = self._runs[0].config, self._batches.spec.steps_per_epoch
        for epoch in range(int(self._state.step) // per_epoch, config.epochs):
            seconds = self._train_epoch(epoch, stop, bar)
            step, is_last = int(self._state.step), epoch + 1 == config.epochs
            if step % per_epoch == 0:
                self._log(seconds, is_last)
            # A signal may also have come while the epoch was evaluated.
            is_stopped = stop.requested() and step < config.epochs * per_epoch
            if is_stopped or is_saved(config, epoch + 1):
                self._save(step, wait=is_stopped or is_last)
            if is_stopped:
                raise stopped(step, self._runs[0].folder.path.parent, stop)
            if all(self.errors):
                return

    def _train_epoch(self, epoch: int, stop: StopRequest, bar: tqdm) -> float:
        """Trains until the end of an epoch or a stop, and returns the seconds."""
        start_step = int(self._state.step) % self._batches.spec.steps_per_epoch
        start_time = time.perf_counter()
        orders = [
            self._batches.training_rows(epoch, start_step, seed=run.config.seed)
            for run in self._runs
        ]
        step = int(self._state.step)
        for rows in zip(*orders, strict=True):
            self._state, metrics = self._program.train_steps(
                self._state, self._arrays, jnp.stack(rows), self._traced
            )
            bar.update(rows[0].shape[0])
            finite = np.isfinite(metrics["train_loss"]) & np.isfinite(metrics["update_norm"])
            for i in map(int, np.flatnonzero(~finite.all(axis=1))):
                if self.errors[i] is None:
                    run = self._runs[i]
                    self.errors[i] = diverged(run, step + int(finite[i].argmin()))
            step += rows[0].shape[0]
            if stop.requested():
                break
        return time.perf_counter() - start_time

    def _log(self, seconds: float, is_last: bool) -> None:
        config, count = self._runs[0].config, len(self._runs)
        steps = self._batches.spec.steps_per_epoch
        own = {
            "images_per_second": steps * config.batch_size * count / seconds,
            "seconds": seconds / count,
        }
        sums = jax.device_get(self._state.sums)
        evaluated: dict[str, Any] = {}
        if is_last or int(self._state.step) // steps % config.evaluate_every == 0:
            for split in self._batches.evaluated_splits(is_last):
                evaluated |= self._evaluate_split(split)
        for i, (run, history) in enumerate(zip(self._runs, self._histories, strict=True)):
            if self.errors[i] is None:
                of_run = self._state._replace(sums={name: value[i] for name, value in sums.items()})
                found = {name: float(values[i]) for name, values in evaluated.items()}
                history.append(summarize_epoch(run, of_run) | own | found)
                if is_last:
                    history[-1] |= over_epochs(history, config.metric)
                run.folder.log(history[-1])
        self._state = self._state._replace(sums=jax.tree.map(jnp.zeros_like, self._state.sums))

    def _evaluate_split(self, split: str) -> dict[str, Any]:
        arrays = self._batches.arrays[split]
        rows = self._batches.evaluation_rows(self._batches.split(split))
        parts = jax.device_get([self._program.evaluate(self._state, arrays, row) for row in rows])
        return mean_over_batches(split, parts)

    def _save(self, step: int, wait: bool) -> None:
        for i, (run, error) in enumerate(zip(self._runs, self.errors, strict=True)):
            if error is None:
                run.folder.save(self._program.axes.select(self._state, i), step, wait=wait)
