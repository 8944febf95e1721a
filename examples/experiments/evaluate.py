r"""Evaluates trained networks: accuracy, loss and calibration, and accuracy on corrupted images.

    python -m examples.experiments.evaluate runs/cifar10_small/sam-rho0.1/seed1
    python -m examples.experiments.evaluate runs/cifar10_small --corruptions --images 2000

Restores the last checkpoint of every finished run in these folders and below (but for folders named
`tuning`), and writes `evaluation.json` beside it, which `python -m examples.experiments.compare`
shows. The expected calibration error (ECE) is that of Guo et al.,
https://arxiv.org/abs/1706.04599, with 15 bins. Corrupted images are those of CIFAR-10-C (examples/image_classification/corruptions), all
severities, each corruption weighing the same in its group and in the mean of all.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from scipy.special import log_softmax
from tqdm import tqdm

from examples.experiments.arguments import Parser
from examples.experiments.records import Run, read_json, read_runs
from examples.image_classification.batches import Batches, Images, Stream
from examples.image_classification.config import Config
from examples.image_classification.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from examples.image_classification.data import load
from examples.image_classification.devices import cache_compilations
from examples.image_classification.run_folder import (
    EVALUATION,
    RunFolder,
    TrainingError,
    read_config_file,
    write_atomically,
)
from examples.image_classification.steps import Program, State, make_program

BINS = 15
SEED = 0  # of the corruptions, which are the same for all networks


class Trained(NamedTuple):
    """A network after training.

    Attributes:
      feed: the data set, and the way to the devices.
      program: its compiled parts.
      state: as of the last checkpoint, without that of the optimizer.
    """

    feed: Batches
    program: Program
    state: State

    def logits(self, images: Images | Stream) -> tuple[np.ndarray, np.ndarray]:
        """Returns the logits of images, and their labels."""
        placed = self.feed.place(images)
        rows = self.feed.evaluation_rows(images)
        parts = [self.program.predict(self.state, placed, row) for row in rows]
        logits, labels = map(np.concatenate, zip(*jax.device_get(parts), strict=True))
        return logits[labels >= 0], labels[labels >= 0]


def restore(folder: Path, data_dir: Path | None = None) -> Trained:
    """Returns the network in a run's folder.

    Args:
      folder: of the run.
      data_dir: where the data lie, if no longer where they were.

    Raises:
      ValueError: there is no run, or no checkpoint.
      OSError: the data are not there.
      TrainingError: the checkpoint cannot be read.
    """
    config = read_config_file(folder)
    if not (folder / "checkpoints").is_dir():
        raise ValueError(f"{folder} has no checkpoint")
    names = ("dataset", "data_dir", "train_size", "validation_size", "batch_size")
    of_data = {name: getattr(config, name) for name in names}
    feed = _feed(**of_data | {"data_dir": data_dir or config.data_dir})
    program = make_program(config, feed.spec)
    with RunFolder(folder, config) as opened:
        state = opened.restore(program.abstract_state)
    if state is program.abstract_state:
        raise ValueError(f"{folder} has no checkpoint")
    return Trained(feed, program, state._replace(opt_state=None))


def restore_last(run: Run, data_dir: Path | None = None) -> Trained:
    """Returns the network of a finished run, as it was after the last epoch.

    Raises:
      ValueError: there is no checkpoint, or not of that epoch.
      OSError: the data are not there.
      TrainingError: the checkpoint cannot be read.
    """
    network = restore(run.path, data_dir)
    if int(network.state.step) != run.metrics[-1]["step"]:
        raise ValueError(f"the checkpoint of {run.path} is not that of its last epoch")
    return network


@functools.lru_cache(maxsize=2)
def _feed(**of_data: Any) -> Batches:
    config = Config(**of_data)
    return Batches(load(config), config)


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


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of right answers in percent."""
    return 100.0 * float(np.mean(logits.argmax(axis=1) == labels))


def evaluate_corrupted(
    networks: Sequence[Trained], images: Images, advance: Callable[[str], Any]
) -> list[dict[str, float]]:
    """Returns for each network the accuracy in percent by corruption, by group, and of all.

    Args:
      networks: which have the same test images.
      images: these.
      advance: called with the name of each corruption and severity that is done.
    """
    found: list[dict[str, list[float]]] = [{} for _ in networks]
    for names in CORRUPTIONS.values():
        for name in names:
            for severity in SEVERITIES:
                pixels = corrupt(images.pixels, name, severity, SEED)
                for of_network, network in zip(found, networks, strict=True):
                    result = accuracy(*network.logits(images._replace(pixels=pixels)))
                    of_network.setdefault(name, []).append(result)
                advance(f"{name} {severity}")
    return [_grouped({name: float(np.mean(v)) for name, v in one.items()}) for one in found]


def _grouped(by_name: dict[str, float]) -> dict[str, float]:
    groups = {
        group: float(np.mean([by_name[name] for name in names]))
        for group, names in CORRUPTIONS.items()
    }
    return by_name | groups | {"corrupted": float(np.mean(list(by_name.values())))}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser("evaluate", __doc__ or "")
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="of runs, or with runs below")
    add("--corruptions", action="store_true", help="also on corrupted images, which takes minutes")
    add("--images", type=_count, metavar="N", help="corrupt only the first so many test images")
    add("--data-dir", type=Path, metavar="DIR", help="where the data lie [where they were]")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Evaluates; returns the exit status."""
    args = parse_arguments(argv)
    logging.set_verbosity(logging.FATAL)  # orbax logs tracebacks of what is said in one line
    cache_compilations()
    try:
        run(args.folders, args.corruptions, args.images, args.data_dir)
    except (ValueError, OSError, TrainingError) as error:
        print(f"evaluate: error: {error}", file=sys.stderr)
        return 2
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, not {text!r}")
    return int(text)


def run(
    folders: Sequence[Path], corruptions: bool, limit: int | None, data_dir: Path | None
) -> None:
    """Evaluates all finished runs in these folders, and writes and prints what it finds.

    Raises:
      ValueError: there is no finished run, or the images cannot be corrupted.
      OSError: the data are not there.
      TrainingError: a checkpoint cannot be read.
    """
    runs, left_out = read_runs(folders)
    if not runs:
        raise ValueError("none of the runs is finished")
    networks: list[tuple[Run, Trained]] = []
    with tqdm(runs, "evaluating", unit="run", disable=None) as bar:
        for one in bar:
            try:
                network = restore_last(one, data_dir)
            except (ValueError, TrainingError) as error:
                left_out.append(str(error))
                continue
            if corruptions and isinstance(network.feed.images("test"), Stream):
                raise ValueError(
                    f"{one.path}: its images, decoded as they are read, stay as they are"
                )
            networks.append((one, network))
            _write(one, evaluate(network, network.feed.images("test")))
    for dataset in dict.fromkeys(one.settings["dataset"] for one, _ in networks if corruptions):
        alike = [pair for pair in networks if pair[0].settings["dataset"] == dataset]
        images = alike[0][1].feed.images("test")
        assert isinstance(images, Images)
        images = Images(images.pixels[:limit], images.labels[:limit])
        total = len(SEVERITIES) * sum(map(len, CORRUPTIONS.values()))
        with tqdm(total=total, desc=f"{dataset}, corrupted", disable=None) as bar:

            def advance(name: str, bar: Any = bar) -> None:
                bar.set_postfix_str(name, refresh=False)
                bar.update()

            found = evaluate_corrupted([network for _, network in alike], images, advance)
        for (one, _), result in zip(alike, found, strict=True):
            _write(one, result | {"corrupted_images": len(images.labels)})
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    if not networks:
        raise ValueError("none of the runs could be evaluated")
    for one, _ in networks:
        result = read_json(one.path / EVALUATION)
        shown = [n for n in ("test_accuracy", "test_ece", *CORRUPTIONS) if n in result]
        numbers = ", ".join(f"{name.removeprefix('test_')} {result[name]:.1f} %" for name in shown)
        print(f"{one.path}: {numbers}")


def _write(run: Run, result: dict[str, float]) -> None:
    """Adds to what was found before."""
    path = run.path / EVALUATION
    write_atomically(path, json.dumps(read_json(path) | result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
