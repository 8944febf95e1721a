r"""Compares runs: a table of means over seeds, differences, and figures.

    python -m examples.experiments.compare runs/cifar10_small
    python -m examples.experiments.compare runs/digits/rho --over rho

Reads the run folders of the trainer and all folders below them. Folders named `tuning` are read
only where they are given themselves. Runs that differ only in the seed make a row: accuracies after
the last epoch in percent, or BLEU, mean ± standard deviation over seeds.

Of the settings that a method is tuned by (radii, ascent steps, XSAM's search, arguments of the
method, learning rate, weight decay) the candidate with the best validation accuracy is chosen (*).
Only its test accuracy is shown, and figures show it alone. `--over rho` chooses no rho, draws
test accuracy over it, and lists differences from its first value, too.

With five or more seeds, the same ones, differences are paired by seed and have a 95 % confidence
interval. A tie is an interval that contains zero. With fewer seeds a tie is a difference of at most
two standard errors. A slightly larger one is weak evidence, too.
"""

import itertools
import sys
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tyro.conf import Positional

from examples.experiments import figures
from examples.experiments.command_line import read_options, run_command
from examples.experiments.group_runs import Comparison
from examples.experiments.read_runs import (
    EDGES,
    Runs,
    format_setting,
    read_runs,
    short_name,
)
from examples.experiments.seed_statistics import ENOUGH, difference, paired_difference, spread
from examples.training.check_name import hint

FURTHER = {  # metrics beside those of validation and test data, by their names in the files
    "test_ece": "ECE",
    "noise": "noise",
    "blur": "blur",
    "weather": "weather",
    "digital": "digital",
    "corrupted": "all corruptions",
}
NAMES = {"accuracy": "accuracy (%)", "bleu": "BLEU"}
SYMBOLS = {"rho": "$\\rho$", "rho_max": "$\\rho_m$", "probe_every": "steps between probes"}


@dataclass(frozen=True)
class Options:
    """The command line."""

    folders: Positional[tuple[Path, ...]]
    """Folders of runs, or with runs below."""
    over: str | None = None
    """Show all values of this setting, and draw test accuracy over it."""
    against: str = "sam"
    """The method that others are compared with."""
    out: Path | None = None
    """Folder for the table and figures. None: `comparison` in the first folder."""


# --- The table ---


def tabulate(comparison: Comparison) -> pd.DataFrame:
    """Returns a row a group: its settings, and its metrics as arrays over seeds."""
    table = comparison.describe()
    chosen = table.index.isin(comparison.chosen)
    metrics = {comparison.validation: "validation", comparison.test: "test"} | FURTHER
    for name, title in metrics.items():
        values = comparison.last(name)
        if values.notna().any():
            table[title] = values if name == comparison.validation else values.where(chosen, None)
    seconds = comparison.last("epoch_seconds").map(np.median).astype(float)
    table["epoch (s)"] = seconds
    if (comparison.groups["method"] == comparison.against).any():
        bases = seconds.reindex([comparison.base(group) for group in table.index])
        table[f"epoch / {comparison.against}'s"] = seconds / bases.to_numpy()
    if "peak_memory_mb" in comparison.runs.table["last"]:
        unit = comparison.runs.program.unit
        rates = [comparison.curves(group, f"{unit}_per_second")[1] for group in table.index]
        table[f"{unit}/s"] = [float(np.median(of_group)) for of_group in rates]
        peaks = comparison.last("peak_memory_mb").map(np.max, na_action="ignore")
        table["peak MB of the process"] = peaks.astype(float)
    return table


def markdown(table: pd.DataFrame, digits: int | None = 1) -> str:
    """Returns a table in Markdown, arrays as mean ± standard deviation.

    Args:
      table: the table.
      digits: the decimals of means, None for three significant digits.
    """

    def cell(value: Any) -> str:
        if isinstance(value, np.ndarray):
            size = abs(value.mean())
            decimals = max(0, 2 - int(np.floor(np.log10(size)))) if 0 < size < np.inf else 1
            return spread(value, decimals if digits is None else digits).strip()
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:{',.0f' if value >= 1000 else '.3g'}}"
        return "" if value is None else str(value)

    lines = [list(table), ["---"] * len(table.columns), *table.map(cell).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def count_runs(runs: Sized) -> str:
    """Returns the number of runs as text."""
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''}"


def split_arrays(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a table with the means and the standard deviations of arrays in own columns."""
    columns: dict[str, pd.Series] = {}
    for name, cells in table.items():
        if cells.map(lambda cell: isinstance(cell, np.ndarray)).any():
            columns[f"{name} mean"] = cells.map(np.mean, na_action="ignore")
            columns[f"{name} std"] = cells.map(lambda x: pd.Series(x).std(), na_action="ignore")
        else:
            columns[str(name)] = cells
    return pd.DataFrame(columns)


def write_table(table: pd.DataFrame, text: str, out: Path) -> list[Path]:
    """Writes a table as CSV, and its text in Markdown, and returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "table.md", out / "table.csv"]
    paths[0].write_text(text + "\n")
    split_arrays(table).to_csv(paths[1], index=False)
    return paths


# --- Statements ---


def differences(comparison: Comparison) -> list[str]:
    """Lists by how much the test metric of each chosen group differs from that of its base."""
    lines: list[str] = []
    tests, label, against = comparison.last(comparison.test), comparison.label, comparison.against
    if not (comparison.groups.loc[comparison.chosen, "method"] == against).any():
        return lines
    for group in comparison.chosen:
        base = comparison.base(group)
        if base is None:
            lines.append(f"{label(group)}: not compared, as no or several rows of {against} fit")
        elif base != group and tests[[group, base]].notna().all():
            lines.append(f"{label(group)} - {label(base)}: {_difference(comparison, group, base)}")
    return lines


def differences_along(comparison: Comparison) -> list[str]:
    """Lists by how much each chosen group differs from that with the first value of `over`."""
    lines: list[str] = []
    firsts: dict[str, int] = {}
    if comparison.over is None:
        return lines
    for group in comparison.last(comparison.test)[comparison.chosen].dropna().index:
        line = comparison.label(group, [comparison.over, *comparison.tuned])
        first = firsts.setdefault(line, group)
        if first != group:
            by = _difference(comparison, group, first)
            lines.append(f"{comparison.label(group)} - {comparison.label(first)}: {by}")
    return lines


def _difference(comparison: Comparison, group: int, base: int) -> str:
    """Returns the difference of the test metrics of two groups, paired by seed if it can be."""
    tests, seeds = comparison.last(comparison.test), comparison.seeds(group)
    if len(seeds) >= ENOUGH and np.array_equal(seeds, comparison.seeds(base)):
        return paired_difference(tests[group], tests[base], digits=2)
    return difference(tests[group], tests[base])


def searches(comparison: Comparison) -> list[str]:
    """Lists the alpha that each chosen group of XSAM found, and how often its grid ended there."""
    lines = []
    for group in comparison.chosen:
        settings = comparison.settings(group)
        if not settings["method"].startswith("xsam"):
            continue
        alphas, psis = (comparison.curves(group, name)[1] for name in ("alpha", "psi"))
        half, end = alphas.shape[1] // 2, settings["alpha_max"]
        parts = [f"alpha {alphas.mean():.2f} ({alphas[:, half:].mean():.2f} in the second half)"]
        parts += [f"psi {np.degrees(psis.mean()):.0f}°"]
        for place, name in ((end, "alpha_max"), (0.0, "0")):
            # The mean over an epoch is a sum of float32, divided.
            share = np.mean(np.abs(alphas - place) < 1e-3 * end)
            parts += [f"throughout at {name} in {100 * share:.0f} % of the epochs"]
        lines.append(f"{comparison.label(group)}: {', '.join(parts)}")
    return lines


def edges(comparison: Comparison) -> list[str]:
    """Lists the chosen radii and learning rates that are the smallest or largest tried."""
    lines = []
    for group in comparison.chosen:
        rivals = comparison.candidates(group)
        if len(set(rivals).intersection(comparison.chosen)) > 1:
            continue  # none was chosen
        settings = comparison.settings(group)
        for name in set(EDGES) & settings.keys() - {comparison.over}:
            tried = sorted(comparison.groups.loc[rivals, name].unique())
            if len(tried) > 2 and settings[name] in (tried[0], tried[-1]):
                lines.append(f"{comparison.label(group)}: {name} is at the edge of what was tried")
    return sorted(lines)


def corrupted(comparison: Comparison) -> list[str]:
    """Returns the number of images behind the accuracies under corruption."""
    counts = comparison.last("corrupted_images").dropna().map(np.unique)
    text = " or ".join(f"{count:g}" for count in sorted(set(itertools.chain(*counts))))
    return [f"corruptions of the first {text} test images"] if text else []


def shared(comparison: Comparison) -> str:
    """Returns the settings that all runs share, then those that the runs of some methods share."""
    parts = []
    methods = set(comparison.groups["method"])
    for having, settings in sorted(comparison.shared.items(), key=lambda item: -len(item[0])):
        owner = "All" if set(having) == methods else ", ".join(having)
        values = (f"{short_name(name)} {format_setting(v)}" for name, v in settings.items())
        parts.append(f"{owner}: {', '.join(values)}.")
    return " ".join(parts)


# --- Figures ---


def lines_over(comparison: Comparison, over: str) -> dict[str, dict[Any, np.ndarray]]:
    """Returns test metrics by the label of a line, and by the value of a setting.

    The value is None for a method that does not have the setting.
    """
    tests = comparison.last(comparison.test)[comparison.chosen].dropna()
    places = [comparison.settings(group).get(over) for group in tests.index]
    # A line has the chosen group at each place. Without a choice each candidate is a line.
    for without in ([over, *comparison.tuned], [over]):
        labels = [comparison.label(group, without) for group in tests.index]
        if len(set(zip(labels, places, strict=True))) == len(tests):
            break
    lines: dict[str, dict[Any, np.ndarray]] = {}
    for label, place, values in zip(labels, places, tests, strict=True):
        lines.setdefault(label, {})[place] = values
    return lines


def draw(comparison: Comparison, out: Path) -> list[Path]:
    """Writes figures of the chosen groups, those for which there are numbers."""
    best = comparison.choice()  # of all values of `over`
    labels = {group: best.label(group) for group in best.chosen}

    def curves(name: str) -> figures.Curves:
        found = {label: best.curves(group, name) for group, label in labels.items()}
        return {label: curve for label, curve in found.items() if len(curve[0])}

    metric = comparison.runs.program.metric
    split = "validation" if best.last(best.validation)[best.chosen].notna().all() else "test"
    pictures = {
        f"{metric}_over_epochs": figures.over_epochs(
            {f"{split} {NAMES[metric]}": curves(f"{split}_{metric}")}
        ),
        "gradient_norms": figures.over_epochs(
            {
                "norm of the\ngradient, $\\|g_0\\|$": curves("gradient_norm"),
                "norm of the\ngradient used": curves("sharp_gradient_norm"),
            }
        ),
    }
    if alphas := curves("alpha"):
        pictures["alpha_and_psi"] = figures.alpha_and_psi(alphas, curves("psi"))
    methods = best.groups.loc[best.chosen, "method"]
    if len(labels) > 1 and (methods == best.against).any():
        seconds = best.last("epoch_seconds")[best.chosen].rename(labels).to_dict()
        base = labels[(methods == best.against).idxmax()]
        pictures["time_per_epoch"] = figures.epoch_times(seconds, base)
    if over := comparison.over:
        name = SYMBOLS.get(over, short_name(over).replace("_", " "))
        lines = lines_over(comparison, over)
        picture = figures.metric_over(name, f"test {NAMES[metric]}", lines)
        pictures[f"{metric}_over_{short_name(over)}"] = picture
    return [figures.save(picture, out / name) for name, picture in pictures.items()]


# --- The command ---


def make_comparison(runs: Runs, over: str | None, against: str) -> Comparison:
    """Groups the runs by options of the command line.

    Raises:
      ValueError: the runs do not differ in the setting `over`, or have no method `against`.
    """
    plain = Comparison(runs, None, against)
    methods = list(plain.groups["method"].unique())
    if against not in methods and against != "sam":
        raise ValueError(f"there is no run of {against!r}; {hint(against, methods)}")
    if over is None:
        return plain
    names = {short_name(name): name for name in plain.names}
    name = over.replace("-", "_")
    if name in names or name in plain.names:
        return Comparison(runs, names.get(name, name), against)
    differ = hint(name, names) if names else "they differ only in the method and the seed"
    raise ValueError(f"the runs do not differ in {name!r}; {differ}")


def run(options: Options) -> None:
    """Compares the runs, prints and writes a table, and draws.

    Raises:
      ValueError: there is no finished run, or the runs cannot be compared.
      OSError: nothing can be written.
    """
    runs = read_runs(options.folders)
    comparison = make_comparison(runs, options.over, options.against)
    table = tabulate(comparison)
    makers = (differences, differences_along, searches, edges, corrupted)
    statements = [make(comparison) for make in makers]
    statements.append([f"left out: {line}" for line in runs.unfinished])
    hours = runs.table["last", "total_seconds"].sum() / 3600
    lines = [markdown(table), "", *(f"* {line}" for line in itertools.chain(*statements)), ""]
    lines += [f"{count_runs(runs.table)}, {hours:.2g} hours of training. {shared(comparison)}"]
    text = "\n".join(lines)
    print(text)
    out = options.out or options.folders[0] / "comparison"
    paths = write_table(table, text, out) + draw(comparison, out)
    print("\nwrote", *paths, sep="\n  ")


def main(arguments: list[str] | None = None) -> int:
    """Compares runs and returns the exit status."""
    return run_command(run, read_options(Options, arguments))


if __name__ == "__main__":
    sys.exit(main())
