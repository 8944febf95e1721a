r"""Trains with several settings, and repeats the best setting of each method with further seeds.

    python -m examples.experiments.sweep --out runs/tiny --tune 0 --seeds 1 2 3 \
        --each "--dataset digits --validation-size 297 --label-noise 0.4" \
        "--method sgd" "--method sam --rho 0.2" "--method sam --rho 0.4"

A setting is a string of options of the trainer (`python -m examples.image_classification --help`),
or with `--program translation` of `python -m examples.translation`.
`--each` has the options that all settings share. Settings do not follow `--seeds` directly.

With `--tune 0` every setting is trained with seed 0 to OUT/tuning. The setting of each method with
the best validation accuracy after its last epoch is then trained with `--seeds` to OUT. With more
seeds, as in `--tune 100:108`, the mean accuracy counts. Without `--tune` every setting is trained
with `--seeds`. Test accuracies are not used. Settings compete if they differ only in settings that
a method is tuned by: radii, arguments, learning rate, weight decay.

Models of matrix products, and on GPU and TPU all, train the seeds of a setting in one program.

An interrupted sweep continues. Further seeds or settings add to the folder.
`python -m examples.experiments.compare` makes a table.
"""

import dataclasses
import itertools
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pandas as pd
from tqdm import tqdm
from tyro.conf import Positional

from examples.experiments.command_line import read_options, run_command
from examples.experiments.read_runs import (
    EDGES,
    is_tuned,
    number_groups,
    tabulate_settings,
    used_settings,
)
from examples.experiments.training_programs import PROGRAMS
from examples.image_classification.many_runs import train_together
from examples.training.check_name import check_name
from examples.training.command_line import parse_seeds
from examples.training.optimizer import make_optimizer
from examples.training.run_folder import Diverged
from examples.training.settings import check, format_metric
from examples.training.train import Record, train

# Settings that do not change the result beyond rounding, but what is measured.
DIFFERENT_PROGRAM = ("probe_batch_size", "fsdp", "steps_per_dispatch")


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    settings: Positional[tuple[str, ...]]
    """Options of the trainer, each setting in one string in quotes."""
    out: Path
    """Folder of the runs."""
    each: str = ""
    """Options that all settings share, in one string in quotes."""
    seeds: tuple[str, ...] = ("0",)
    """Seeds to train with: numbers, or a range such as 0:32."""
    tune: tuple[str, ...] = ()
    """Train with these seeds first, and choose."""
    program: str = "image_classification"
    """The training program, or translation."""


class Point(NamedTuple):
    """A setting: the name of its folder, and its options of the trainer."""

    name: str
    options: Sequence[str]
    program: str

    def config(self, seed: int, folder: Path) -> Any:
        """Returns the configuration of one run, or raises ValueError if an option is wrong."""
        out = folder / self.name / f"seed{seed}"
        try:
            read_config = PROGRAMS[self.program].read_config
            return read_config([*self.options, "--seed", str(seed), "--out", str(out)])
        except ValueError as error:
            raise ValueError(f"in {shlex.join(self.options)!r}: {error}") from None
        except SystemExit:  # the message is on stderr already
            raise ValueError(f"that was in {shlex.join(self.options)!r}") from None


def make_point(setting: str, each: str, program: str = "image_classification") -> Point:
    """Returns a setting of a program, named by the options that not all settings share."""
    parts = []
    options = split(each) + split(setting)
    for option in re.split(r"(?:^|\s)--", setting)[1:]:
        key, *values = split(option)
        shown = "" if key in ("method", "method-args", "preset") else key.replace("-", "_")
        parts.append(shown + "-".join(values))
    # The name is a folder, and a value may be a path.
    name = re.sub(r"[^\w.,=+-]", "_", "-".join(parts)) or "default"
    return Point(name, options, program)


def split(text: str) -> list[str]:
    """Returns the words of a string, as a shell would.

    Raises:
      ValueError: a quote is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ValueError(f"in {text.strip()!r}: {error}") from None


def sweep(options: Options) -> None:
    """Trains every setting with all seeds, or the best of each choice.

    Raises:
      ValueError: an option is wrong, or the folder holds other runs.
      TrainingError: a checkpoint could not be written, or, after all else was trained, a loss was
        not finite.
      Stopped: SIGTERM or Ctrl-C came. The state is saved.
    """
    seeds, tune = read_seeds(options)
    out = options.out
    check_name("program", options.program, PROGRAMS)
    points = [make_point(text, options.each, options.program) for text in options.settings]
    check_points(points, seeds, tune)
    settings = tabulate_settings(
        [used_settings(dataclasses.asdict(point.config(0, out))) for point in points],
        range(len(points)),
    )
    differ = ["seed", *filter(is_tuned, settings)]
    choices = number_groups(settings, differ) if tune else settings.index
    groups = list(settings.groupby(choices).groups.values())
    total = len(seeds) * len(groups) + len(tune) * len(points)
    diverged, count = [], itertools.count(1)
    with tqdm(total=total, unit="run", disable=None) as bar:
        for group in groups:
            rivals = [points[i] for i in group]
            best = rivals[0]
            if tune:
                found = [_train(point, tune, out / "tuning", bar, count)[0] for point in rivals]
                index = max(range(len(found)), key=lambda i: found[i])
                best = rivals[index]
                if found[index] < 0:
                    diverged.append(f"all of {', '.join(point.name for point in rivals)}")
                    bar.update(len(seeds))
                    continue
                edges = at_edge(settings.loc[group], group[index])
                beyond = f": a better {' or '.join(edges)} may lie beyond" if edges else ""
                bar.write(f"{best.name} is best of {len(rivals)}{beyond}", sys.stderr)
            diverged += _train(best, seeds, out, bar, count)[1]
    print(f"next: python -m examples.experiments.compare {out}", file=sys.stderr)
    if diverged:
        raise Diverged(f"diverged: {'; '.join(diverged)}")


def read_seeds(options: Options) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the seeds to train with, and those to choose by.

    Raises:
      ValueError: they are no seeds.
    """
    for word in (*options.seeds, *options.tune):
        if "--" in word:
            raise ValueError(
                f"the setting {word.strip()!r} follows the seeds directly: put the settings first, "
                "or another option between"
            )
    seeds = parse_seeds(options.seeds)
    tune = parse_seeds(options.tune) if options.tune else ()
    return seeds, tune


def at_edge(rivals: pd.DataFrame, best: int) -> list[str]:
    """Returns the settings whose best value is the smallest or largest of three or more."""
    names = [name for name in EDGES if name in rivals and rivals[name].nunique() > 2]
    ends = {name: (rivals[name].min(), rivals[name].max()) for name in names}
    return [name for name, end in ends.items() if rivals.loc[best, name] in end]


def check_points(points: Sequence[Point], seeds: Sequence[int], tune: Sequence[int]) -> None:
    """Raises ValueError for mistakes that can be found before hours of training."""
    if not points:
        raise ValueError("give a setting: options of the trainer in one string in quotes")
    names = [point.name for point in points]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"the setting {repeated[0]!r} is there twice")
    equal: dict[str, str] = {}
    for point in points:
        given = {option.partition("=")[0] for option in point.options}
        if taken := {"--seed", "--out"} & given:
            raise ValueError(f"{min(taken)} is not for a setting: there are --seeds and --out")
        config = point.config(seeds[0], Path())
        options = dataclasses.asdict(config)
        values = used_settings(options) | {name: options[name] for name in DIFFERENT_PROGRAM}
        if (other := equal.setdefault(str(values), point.name)) != point.name:
            raise ValueError(f"the settings {other!r} and {point.name!r} are the same")
        for seed in (*seeds, *tune):
            check(dataclasses.replace(config, seed=seed))
        make_optimizer(config, 1, jax.random.key(0))
        if tune and not config.has_validation():
            raise ValueError("--tune needs validation images: add --validation-size to --each")
    if both := sorted({*seeds} & {*tune}):
        raise ValueError(
            f"seed {both[0]} is in --seeds and in --tune: choose by other seeds than those of the "
            "results"
        )


def _train(
    point: Point, seeds: Sequence[int], out: Path, bar: tqdm, count: Iterator[int]
) -> tuple[float, list[str]]:
    """Trains all seeds of a setting.

    Returns:
      The mean validation accuracy or BLEU, 0 without validation data and -1 if a run diverges, and
      the folders of runs that diverge.
    """
    first = point.config(seeds[0], out)
    folders = [out / point.name / f"seed{seed}" for seed in seeds]
    configs = [
        dataclasses.replace(first, seed=seed, out=folder)
        for seed, folder in zip(seeds, folders, strict=True)
    ]
    together = len(configs) > 1 and configs[0].trains_together()
    bar.set_description(point.name)
    accuracies, diverged = [], []
    for batch in [configs] if together else [[config] for config in configs]:
        # A run that diverges is the worst of all, and no reason to leave out the rest.
        results = train_together(batch, show=False) if together else [_train_alone(batch[0])]
        for config, result in zip(batch, results, strict=True):
            accuracy, text = -1.0, f": {result}"
            if not isinstance(result, Diverged):
                accuracy = result[-1].get(f"validation_{config.metric}", 0.0)
                shown = format_metric(config.metric, "validation", accuracy)
                text = f", {shown}" if config.has_validation() else ""
            else:
                diverged.append(str(config.out))
            accuracies.append(accuracy)
            bar.update()
            name = f"{point.name}/seed{config.seed}"
            bar.write(f"{next(count)}/{bar.total} {name}{text}", sys.stderr)
    return (-1.0 if diverged else sum(accuracies) / len(accuracies)), diverged


def _train_alone(config: Any) -> list[Record] | Diverged:
    try:
        return train(config, show=False)
    except Diverged as error:
        return error


def read_arguments(arguments: list[str] | None = None) -> Options:
    """Reads the command line."""
    given = sys.argv[1:] if arguments is None else arguments
    # Tyro would take a setting for an option.
    return read_options(Options, [re.sub(r"^(?=--[\w-]+\s)", " ", text) for text in given])


def main(arguments: list[str] | None = None) -> int:
    """Runs a sweep and returns the exit status."""
    return run_command(sweep, read_arguments(arguments))


if __name__ == "__main__":
    sys.exit(main())
