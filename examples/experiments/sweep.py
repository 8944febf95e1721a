r"""Trains with several settings, chooses among those of each method, and repeats what it chose.

    python -m examples.experiments.sweep --out runs/tiny --tune 0 --seeds 1 2 3 \
        --each "--dataset digits --label-noise 0.4" \
        "--method sgd" "--method sam --rho 0.2" "--method sam --rho 0.4"

Each setting is a string of the trainer's options (`python -m examples.image_classification --help`)
and `--each` are those that all have. With `--tune 0` every setting is trained with seed 0 to
OUT/tuning, and of each method the one with the best validation accuracy after its last epoch is
trained with `--seeds` to OUT; without, every setting is trained with `--seeds`. Test accuracies
are never looked at. Settings that differ in more than a method is tuned by (radii, arguments,
learning rate, weight decay) are not rivals. Goes on where it was interrupted: with other `--seeds`
or settings it adds to what is there. `python -m examples.experiments.compare` makes a table.
"""

import argparse
import dataclasses
import itertools
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from absl import logging
from tqdm import tqdm

from examples.experiments.arguments import Parser
from examples.experiments.records import but, is_tuned, settings_of
from examples.image_classification.command_line import read_config
from examples.image_classification.config import Config, check
from examples.image_classification.devices import cache_compilations
from examples.image_classification.progress import Stopped
from examples.image_classification.run_folder import Diverged, TrainingError
from examples.image_classification.steps import make_optimizer
from examples.image_classification.train import train


class Point(NamedTuple):
    """One setting: its name, which is that of its folder, and how to train with a seed."""

    name: str
    options: Sequence[str]

    def config(self, seed: int, folder: Path) -> Config:
        """Returns the configuration of one run.

        Raises:
          ValueError: an option is wrong.
        """
        out = folder / self.name / f"seed{seed}"
        try:
            return read_config([*self.options, "--seed", str(seed), "--out", str(out)])
        except ValueError as error:
            raise ValueError(f"in {shlex.join(self.options)!r}: {error}") from None
        except SystemExit:
            # What cannot be parsed has just been said at length.
            raise ValueError(f"that was in {shlex.join(self.options)!r}") from None


def make_point(setting: str, each: str) -> Point:
    """Returns the point of a setting; its name leaves out what all have."""
    parts = []
    for option in re.split(r"(?:^|\s)--", setting)[1:]:
        key, *values = shlex.split(option)
        shown = "" if key in ("method", "method-args", "preset") else key.replace("-", "_")
        parts.append(shown + "-".join(values))
    name = "-".join(parts) or "default"
    return Point(name, shlex.split(each) + shlex.split(setting))


def sweep(points: Sequence[Point], seeds: Sequence[int], tune: int | None, out: Path) -> None:
    """Trains with every point and seed, or with those points that are chosen with a seed.

    Raises:
      ValueError: an option is wrong, or the folder holds other runs.
      TrainingError: a checkpoint could not be written; or, after all else was trained, a loss was
        not finite.
      Stopped: SIGTERM or Ctrl-C came; the state is saved.
    """
    check_points(points, seeds, tune)
    choices: dict[object, list[Point]] = {}
    for point in points:
        settings = settings_of(dataclasses.asdict(point.config(0, out)))
        key = but(settings, ["seed", *filter(is_tuned, settings)])
        choices.setdefault(key if tune is not None else point.name, []).append(point)
    total = len(seeds) * len(choices) + (tune is not None) * len(points)
    diverged, count = [], itertools.count(1)
    with tqdm(total=total, unit="run", disable=None) as bar:
        for rivals in choices.values():
            best = rivals[0]
            if tune is not None:
                found = [_train(point.config(tune, out / "tuning"), bar, count) for point in rivals]
                index = max(range(len(found)), key=lambda i: found[i])
                best = rivals[index]
                if found[index] < 0:
                    diverged.append(f"all of {', '.join(point.name for point in rivals)}")
                    bar.update(len(seeds))
                    continue
                end = len(rivals) > 2 and index in (0, len(rivals) - 1)
                edge = ", the first or last of them: a better one may lie beyond" if end else ""
                bar.write(f"{best.name} is best of {len(rivals)}{edge}", sys.stderr)
            for seed in seeds:
                config = best.config(seed, out)
                if _train(config, bar, count) < 0:
                    diverged.append(str(config.out))
    print(f"next: python -m examples.experiments.compare {out}", file=sys.stderr)
    if diverged:
        raise Diverged(f"diverged: {'; '.join(diverged)}")


def check_points(points: Sequence[Point], seeds: Sequence[int], tune: int | None) -> None:
    """Raises ValueError for what can be known to be wrong before hours of training."""
    names = [point.name for point in points]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the setting {repeated[0]!r} is there twice")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ, got {' '.join(map(str, seeds))}")
    for point in points:
        if taken := {"--seed", "--out"}.intersection(point.options):
            raise ValueError(f"{min(taken)} is not for a setting: there are --seeds and --out")
        config = point.config(seeds[0], Path())
        for seed in (*seeds, *([] if tune is None else [tune])):
            check(dataclasses.replace(config, seed=seed))
        make_optimizer(config, 1, jax.random.key(0))
        if tune is not None and not config.validation_size:
            raise ValueError("--tune needs validation images: add --validation-size to --each")


def _train(config: Config, bar: tqdm, count: Iterator[int]) -> float:
    """Trains, and returns the validation accuracy; 0 without such images, -1 if it diverges."""
    name = "/".join(config.out.parts[-2:]) if config.out else ""
    bar.set_description(name)
    try:
        accuracy = train(config, show=False)[-1].get("validation_accuracy", 0.0)
        said = f", validation {accuracy:.2f} %" if config.validation_size else ""
    except Diverged as error:  # the worst of all, and no reason to leave out the rest
        accuracy, said = -1.0, f": {error}"
    bar.update()
    bar.write(f"{next(count)}/{bar.total} {name}{said}", sys.stderr)
    return accuracy


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    hint = "each setting, and --each, is one string in quotes; settings do not follow --seeds"
    parser = Parser("sweep", __doc__ or "", hint)
    add = parser.add_argument
    add("settings", nargs="+", metavar="SETTING", help="options of the trainer, in one string")
    add("--each", default="", metavar="OPTIONS", help="options of all settings")
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds [0]")
    add("--tune", type=int, metavar="N", help="choose with this seed first")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the runs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs a sweep; returns the exit status."""
    args = parse_arguments(argv)
    logging.set_verbosity(logging.FATAL)  # orbax logs tracebacks of what is said in one line
    cache_compilations()
    points = [make_point(setting, args.each) for setting in args.settings]
    try:
        sweep(points, args.seeds, args.tune, args.out)
    except (ValueError, OSError, TrainingError) as error:
        print(f"sweep: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except Stopped as stopped:
        print(f"sweep: {stopped}", file=sys.stderr)
        return 128 + stopped.number
    return 0


if __name__ == "__main__":
    sys.exit(main())
