"""Compares methods at equal numbers of gradients: test accuracy over gradients and over seconds.

    python -m examples.experiments.equal_gradients runs/digits_equal_gradients

The folder holds a folder of runs for each number of gradients per image, which is its name: `60`
has 60 epochs of SGD and 30 of SAM. In each folder, the settings of a method compete by their mean
validation accuracy. Differences to SAM are paired by seed and have a 95 % confidence interval.
The seconds are those of one run, all its epochs at the median time of an epoch.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tyro.conf import Positional

from examples.experiments import figures
from examples.experiments.command_line import read_options, run_command
from examples.experiments.compare import NAMES, markdown, write_table
from examples.experiments.group_runs import Comparison
from examples.experiments.read_runs import read_runs
from examples.experiments.seed_statistics import paired_difference

BASE = "sam"


@dataclass(frozen=True)
class Options:
    """The command line."""

    folder: Positional[Path]
    """Folder with a folder of runs for each number of gradients."""
    out: Path | None = None
    """Folder for the table and figures. None: `comparison` in the folder of the runs."""


def read_budget(folder: Path) -> pd.DataFrame:
    """Returns test accuracies over seeds and seconds of the chosen settings, a row a method."""
    comparison = Comparison(read_runs([folder]))
    rows = {}
    for group in comparison.chosen:
        settings = comparison.settings(group)
        every = settings.get("sharp_every", 1)
        label = settings["method"] + (f", every {every} steps" if every > 1 else "")
        if label in rows:
            raise ValueError(f"{folder} has several settings of {label} between which none chose")
        seconds = settings["epochs"] * np.median(comparison.last("epoch_seconds")[group])
        rows[label] = {
            "test": comparison.last(comparison.test)[group],
            "seconds": seconds,
            "seeds": tuple(comparison.seeds(group)),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def run(options: Options) -> None:
    """Prints and writes the table, and draws.

    Raises:
      ValueError: a folder of runs is missing, or its runs cannot be compared.
      OSError: nothing can be written.
    """
    numbers = [p for p in options.folder.glob("*") if p.name.isdigit()]
    if not numbers:
        raise ValueError(f"{options.folder} has no folder that is named by a number of gradients")
    budgets = {int(p.name): read_budget(p) for p in sorted(numbers, key=lambda p: int(p.name))}
    columns: dict[str, pd.Series] = {}
    lines: list[str] = []
    over: dict[str, dict[str, dict[float, np.ndarray]]] = {"gradients": {}, "seconds": {}}
    for number, budget in budgets.items():
        columns |= {f"test, {number}": budget["test"], f"seconds, {number}": budget["seconds"]}
        for label, row in budget.iterrows():
            over["gradients"].setdefault(str(label), {})[number] = row["test"]
            over["seconds"].setdefault(str(label), {})[row["seconds"]] = row["test"]
            if label != BASE and BASE in budget.index:
                by = "not compared, as they have other seeds"
                if row["seeds"] == budget["seeds"][BASE]:
                    by = paired_difference(row["test"], budget["test"][BASE], digits=2)
                lines.append(f"* {number} gradients, {label} - {BASE}: {by}")
    table = pd.DataFrame(columns).loc[list(over["gradients"])].reset_index(names="method")
    text = "\n".join([markdown(table.where(table.notna(), None)), "", *lines])
    print(text)
    out = options.out or options.folder / "comparison"
    paths = write_table(table, text, out)
    for name, tests in over.items():
        title = "gradients per image" if name == "gradients" else "seconds of a run"
        paths += [
            figures.save(
                figures.metric_over(title, f"test {NAMES['accuracy']}", tests),
                out / f"accuracy_over_{name}",
            )
        ]
    print("\nwrote", *paths, sep="\n  ")


def main(arguments: list[str] | None = None) -> int:
    """Compares the runs and returns the exit status."""
    return run_command(run, read_options(Options, arguments))


if __name__ == "__main__":
    sys.exit(main())
