r"""Evaluates trained networks: accuracy, loss and calibration, and accuracy on corrupted images.

    python -m examples.experiments.evaluate runs/cifar10_small/sam-rho0.1/seed1
    python -m examples.experiments.evaluate runs/cifar10_small --corruptions --images 2000
    python -m examples.experiments.evaluate runs/cifar10_small --renew-statistics

Restores the last checkpoint of every finished run in these folders and all folders below, except
folders named `tuning`, and writes `evaluation.json` beside it.
`python -m examples.experiments.compare` shows the numbers. Runs of `python -m examples.translation`
get BLEU, and the translations of the test sentences in `test.translations`.

The expected calibration error (ECE) is that of Guo et al., https://arxiv.org/abs/1706.04599, with
15 bins. Corrupted images are those of CIFAR-10-C at all severities: the published ones, where
TensorFlow Datasets has prepared `cifar10_corrupted` in the data folder, and else our own, without
`frost` (`examples/image_classification/corruptions`). Each corruption has the same weight in its
group and in the mean of all.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from scipy.special import log_softmax
from tqdm import tqdm
from tyro.conf import Positional

from examples.experiments.command_line import read_options, run_command
from examples.experiments.read_runs import Runs, read_evaluation, read_runs
from examples.experiments.training_programs import read_config_file
from examples.image_classification.batches import Images, Stream
from examples.image_classification.config import Config
from examples.image_classification.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from examples.image_classification.data import read_corrupted
from examples.training.checkpoints import Checkpoints, TrainingError
from examples.training.program import State
from examples.training.run_folder import (
    EVALUATION,
    write_atomically,
)
from examples.training.settings import Settings
from examples.training.train import mean_metrics
from examples.translation.program import TranslationProgram

BINS = 15
TRANSLATIONS = "test.translations"
SEED = 0  # of the corruptions, which are the same for all networks


@dataclass(frozen=True)
class Options:
    """The command line."""

    folders: Positional[tuple[Path, ...]]
    """Folders of runs, or with runs below."""
    corruptions: bool = False
    """Evaluate on corrupted images, too, which takes minutes."""
    images: int | None = None
    """Corrupt only the first test images, so many."""
    renew_statistics: bool = False
    """Also evaluate with running statistics of BatchNorm collected at the last parameters."""
    data_dir: Path | None = None
    """Where the data lie. None: where they were during training."""

    def __post_init__(self) -> None:
        """Checks the number of images."""
        if self.images is not None and self.images < 1:
            raise ValueError(f"--images must be at least 1, not {self.images}")


# --- Trained networks ---


class Trained(NamedTuple):
    """A network after training.

    Attributes:
      batches: the data set, split into batches.
      program: its compiled parts, `ImageProgram` or `TranslationProgram`.
      state: the state of the last checkpoint, without that of the optimizer.
    """

    batches: Any
    program: Any
    state: State

    def logits(self, images: Images | Stream) -> tuple[np.ndarray, np.ndarray]:
        """Returns the logits of images, and their labels."""
        placed = self.batches.place(images)
        rows = self.batches.evaluation_rows(images)
        parts = [self.program.predict(self.state, placed, row) for row in rows]
        logits, labels = map(np.concatenate, zip(*jax.device_get(parts), strict=True))
        return logits[labels >= 0], labels[labels >= 0]

    def renew_statistics(self) -> "Trained":
        """Returns the network with running statistics that were collected at its parameters.

        Methods with one gradient a step collect them at perturbed parameters. It takes whole
        epochs, at least 50 steps, since the momentum of the statistics is 0.9.
        """
        state, steps = self.state, self.batches.spec.steps_per_epoch
        for epoch in range(math.ceil(50 / steps)):
            for rows in self.batches.training_rows(epoch, start_step=0):
                for i in range(jax.tree.leaves(rows)[0].shape[0]):
                    row = jax.tree.map(lambda leaf, i=i: leaf[i], rows)
                    statistics = self.program.pass_over(state, self.batches.arrays["train"], row)
                    state = state._replace(step=state.step + 1, statistics=statistics)
        return self._replace(state=state._replace(step=self.state.step))


def restore(
    folder: Path, data_dir: Path | None = None, epoch: int | None = None, batches: Any = None
) -> Trained:
    """Returns the network in a run's folder.

    Args:
      folder: the folder.
      data_dir: where the data lie, None for where they were during training.
      epoch: the epoch of the checkpoint, None for the last one.
      batches: other data, so that those of training are not needed.

    Raises:
      ValueError: there is no run, or no checkpoint.
      OSError: the data are not there.
      TrainingError: the checkpoint cannot be read.
    """
    config = read_config_file(folder)
    if not (folder / "checkpoints").is_dir():
        raise ValueError(f"{folder} has no checkpoint")
    if batches is None:
        clean = config.for_evaluation()
        batches = _load_batches(dataclasses.replace(clean, data_dir=data_dir or config.data_dir))
    program = config.make_program(batches.spec)
    with contextlib.closing(Checkpoints(folder / "checkpoints", read_only=True)) as checkpoints:
        step = None if epoch is None else epoch * batches.spec.steps_per_epoch
        if step is not None and step not in checkpoints.steps:
            raise ValueError(f"{folder} has no checkpoint of epoch {epoch}: see --keep-epochs")
        state = checkpoints.restore(program.abstract_state, step)
    if state is program.abstract_state:
        raise ValueError(f"{folder} has no checkpoint")
    return Trained(batches, program, state._replace(opt_state=None))


@functools.lru_cache(maxsize=2)
def _load_batches(config: Settings) -> Any:
    return config.load()


def restore_all(
    runs: Runs, data_dir: Path | None, label: str, epoch: int | None = None
) -> tuple[dict[Path, Trained], list[str]]:
    """Returns the networks of runs after an epoch, and descriptions of runs without one.

    Args:
      runs: the runs.
      data_dir: where the data lie, None for where they were during training.
      label: the text of the progress bar.
      epoch: the epoch, None for the last one.
    """
    networks, left_out = {}, list(runs.unfinished)
    for path in tqdm(runs.table.index, label, unit="run", disable=None):
        try:
            network = restore(path, data_dir, epoch)
            if epoch is None and int(network.state.step) != runs.table.at[path, ("last", "step")]:
                raise ValueError(f"the checkpoint of {path} is not that of its last epoch")
            networks[path] = network
        except (ValueError, TrainingError) as error:
            left_out.append(str(error))
    return networks, left_out


# --- Evaluations ---


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    r"""Returns the expected calibration error in percent.

    With :math:`B_i` the images whose highest probability is in :math:`((i - 1) / n, i / n]`, it is
    :math:`\sum_i |B_i| / N \cdot |\mathrm{accuracy}(B_i) - \mathrm{confidence}(B_i)|`.

    Args:
      logits: of shape (images, classes).
      labels: of shape (images,).
      bins: their number n.
    """
    log_probabilities = log_softmax(logits.astype(np.float64), axis=1)
    confidence = np.exp(log_probabilities.max(axis=1))
    correct = logits.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, correct - confidence, minlength=bins)
    return 100.0 * float(np.abs(gaps).sum()) / len(labels)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the accuracy in percent."""
    return 100.0 * float(np.mean(logits.argmax(axis=1) == labels))


def evaluate(trained: Trained, images: Images | Stream) -> dict[str, float]:
    """Returns accuracy and calibration error in percent, and the mean loss."""
    logits, labels = trained.logits(images)
    losses = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return {
        "test_accuracy": accuracy(logits, labels),
        "test_loss": float(losses.mean()),
        "test_ece": calibration_error(logits, labels),
        "images": len(labels),
    }


def evaluate_translation(trained: Trained, file: Path) -> dict[str, float]:
    """Returns BLEU, accuracy in percent and mean loss, and writes the translations to a file."""
    program, state, batches = trained.program, trained.state, trained.batches
    corpus = batches.split("test")
    found = program.translate(state, batches, corpus)
    write_atomically(file, "".join(f"{line}\n" for line in found))
    return mean_metrics(program, state, batches, "test") | {
        "test_bleu": program.bleu(found, corpus.references),
        "sentences": len(found),
    }


def evaluate_corrupted(
    networks: Sequence[Trained], images: Images, config: Config
) -> list[dict[str, float]]:
    """Returns for each network the accuracy in percent by corruption, by group, and of all.

    Args:
      networks: the networks, of one data set.
      images: the test images.
      config: names the data set and its folder, where published corrupted images may lie.
    """
    groups = {name: group for group, names in CORRUPTIONS.items() for name in names}
    groups["frost"] = "weather"
    table = {}
    cases = list(itertools.product(groups, SEVERITIES))
    with tqdm(cases, "evaluating corrupted images", disable=None) as bar:
        for name, severity in bar:
            bar.set_postfix_str(f"{name} {severity}", refresh=False)
            found = read_corrupted(config, name, severity)
            if found is not None:
                corrupted = found.select(np.arange(images.size))
            elif name == "frost":
                continue  # it needs pictures of frost, which only the published images have
            else:
                corrupted = images._replace(pixels=corrupt(images.pixels, name, severity, SEED))
            table[name, severity] = [accuracy(*one.logits(corrupted)) for one in networks]
    by_name = pd.DataFrame(table).T.groupby(level=0, sort=False).mean()
    by_group = by_name.groupby(groups, sort=False).mean()
    everything = pd.concat([by_name, by_group])
    everything.loc["corrupted"] = by_name.mean()
    return [everything[network].to_dict() for network in everything]


# --- The command ---


def run(options: Options) -> None:
    """Evaluates all finished runs, writes and prints the results.

    Raises:
      ValueError: there is no finished run, or the images cannot be corrupted.
      OSError: the data are not there.
    """
    runs = read_runs(options.folders)
    networks, left_out = restore_all(runs, options.data_dir, "evaluating")
    for path, network in networks.items():
        if isinstance(network.program, TranslationProgram):
            if options.corruptions or options.renew_statistics:
                raise ValueError(f"{path}: translation has neither corruptions nor BatchNorm")
            _write(path, evaluate_translation(network, path / TRANSLATIONS))
            continue
        images = network.batches.split("test")
        if options.corruptions and isinstance(images, Stream):
            raise ValueError(f"{path}: images that are decoded as they are read are not corrupted")
        result = evaluate(network, images)
        if options.renew_statistics:
            renewed = evaluate(network.renew_statistics(), images)
            result["renewed_accuracy"] = renewed["test_accuracy"]
        _write(path, result)
    if options.corruptions:
        datasets = runs.table["settings"].loc[list(networks), "dataset"]
        for paths in datasets.groupby(datasets, sort=False).groups.values():
            alike = [networks[path] for path in paths]
            images = alike[0].batches.split("test")
            assert isinstance(images, Images)
            images = Images(images.pixels[: options.images], images.labels[: options.images])
            config = read_config_file(paths[0])
            config = dataclasses.replace(config, data_dir=options.data_dir or config.data_dir)
            results = evaluate_corrupted(alike, images, config)
            for path, result in zip(paths, results, strict=True):
                _write(path, result | {"corrupted_images": len(images.labels)})
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    if not networks:
        raise ValueError("none of the runs could be evaluated")
    for path in networks:
        result = read_evaluation(path)
        shown = [
            n
            for n in ("test_accuracy", "test_ece", "renewed_accuracy", *CORRUPTIONS)
            if n in result
        ]
        numbers = [f"{name.removeprefix('test_')} {result[name]:.1f} %" for name in shown]
        numbers += [f"BLEU {result[name]:.2f}" for name in ("test_bleu",) if name in result]
        print(f"{path}: {', '.join(numbers)}")


def _write(path: Path, result: dict[str, float]) -> None:
    """Adds results to those of earlier evaluations."""
    text = json.dumps(read_evaluation(path) | result, indent=1)
    write_atomically(path / EVALUATION, text + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Evaluates runs and returns the exit status."""
    return run_command(run, read_options(Options, arguments))


if __name__ == "__main__":
    sys.exit(main())
