r"""Trains with several settings, chooses among those of each method, and repeats what it chose.

    python -m examples.sweep --out runs/tiny --tune 0 --seeds 1 2 3 \
        --each "--dataset digits --label-noise 0.4" \
        "--method sgd" "--method sam --rho 0.2" "--method sam --rho 0.4"

Each setting is a string of the trainer's options (`python -m examples.image_classification --help`)
and `--each` are those that all have. With `--tune 0` every setting is trained with seed 0 to
OUT/tuning, and of each method the one with the best validation accuracy after its last epoch is
trained with `--seeds` to OUT; without, every setting is trained with `--seeds`. Test accuracies
are never looked at. Goes on where it was interrupted. `python -m examples.compare` makes a table.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import logging
from tqdm import tqdm

from examples.image_classification.command_line import read_config
from examples.image_classification.config import Config, check
from examples.image_classification.devices import cache_compilations
from examples.image_classification.progress import Stopped
from examples.image_classification.run_folder import Diverged, TrainingError
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
        return read_config([*self.options, "--seed", str(seed), "--out", str(out)])


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
      TrainingError: a checkpoint could not be written.
      Stopped: SIGTERM or Ctrl-C came; the state is saved.
    """
    names = [point.name for point in points]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the setting {repeated[0]!r} is there twice")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ, got {' '.join(map(str, seeds))}")
    for point in points:  # what is wrong is said before hours of training
        config = point.config(seeds[0], out)
        check(config)
        if tune is not None and not config.validation_size:
            raise ValueError("--tune needs validation images: add --validation-size to --each")
    methods = {point.config(seeds[0], out).method for point in points}
    chosen = list(points)
    runs = len(seeds) * (len(points) if tune is None else len(methods))
    with tqdm(total=runs + (tune is not None) * len(points), unit="run", disable=None) as bar:
        if tune is not None:
            best: dict[str, tuple[float, Point]] = {}
            for point in points:
                config = point.config(tune, out / "tuning")
                accuracy = _train(config, bar)
                if config.method not in best or accuracy > best[config.method][0]:
                    best[config.method] = accuracy, point
            for method, (accuracy, point) in best.items():
                bar.write(f"{method}: {point.name} is best, with {accuracy:.2f} %", sys.stderr)
            chosen = [point for _, point in best.values()]
        for point in chosen:
            for seed in seeds:
                _train(point.config(seed, out), bar)


def _train(config: Config, bar: tqdm) -> float:
    """Trains, and returns the validation accuracy; 0 without such images, -1 if it diverges."""
    name = "/".join(config.out.parts[-2:]) if config.out else ""
    bar.set_description(name)
    try:
        accuracy = train(config, show=False)[-1].get("validation_accuracy", 0.0)
        said = f", validation {accuracy:.2f} %" if config.validation_size else ""
    except Diverged as error:  # the worst of all, and no reason to leave out the rest
        accuracy, said = -1.0, f": {error}"
    bar.update()
    bar.write(f"{name}{said}", sys.stderr)
    return accuracy


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    description, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "sweep",
        description=description,
        epilog=more,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("settings", nargs="+", metavar="SETTING", help="a string of options of the trainer")
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
