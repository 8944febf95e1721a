r"""Compares runs: a table of means over seeds, what differs by more than chance, and figures.

    python -m examples.compare runs/cifar10_small
    python -m examples.compare runs/digits/rho --over rho

Reads the folders that the trainer has left, and those below them (but for folders named `tuning`,
which are read where they are given themselves). Runs that differ in the seed alone make a row. Of
the settings that one method was tuned by (radii, ascent steps, XSAM's search, arguments of the
method, learning rate, weight decay) the one with the best validation accuracy is chosen (*), and
only its test accuracy is shown; `--over rho` makes no choice of rho, and draws accuracy over it.
Accuracies are those after the last epoch, in percent, mean ± standard deviation over seeds.
"""

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples import figures
from examples.names import hint
from examples.records import BASE, Comparison, Group, group, read_runs, short, show
from examples.statistics import difference, spread

METRICS = {  # what a run ends with, and how the table calls it
    "validation_accuracy": "validation",
    "test_accuracy": "test",
    "test_ece": "ECE",
    "noise": "noise",
    "blur": "blur",
    "weather": "weather",
    "digital": "digital",
    "corrupted": "all corruptions",
}
Row = dict[str, Any]


# --- The table ---


def rows(comparison: Comparison) -> list[Row]:
    """Returns a row a group: its settings, and the metrics of its runs as arrays."""
    groups, chosen = comparison.groups, comparison.chosen
    metrics = [name for name in METRICS if any(member.has(name) for member in groups)]
    made = []
    for member in groups:
        star = " *" if member in chosen and len(chosen) < len(groups) else ""
        row: Row = {"method": member.method + star}
        row |= {short(name): member.settings.get(name) for name in comparison.names}
        row["seeds"] = len(member.runs)
        for name in metrics:
            shown = member.has(name) and (member in chosen or name.startswith("validation"))
            row[METRICS[name]] = member.last(name) if shown else None
        row["gradients"] = float(member.last("gradients").mean())
        base = comparison.base(member)
        time = np.median(member.epoch_seconds())
        row[f"epoch / {BASE}'s"] = float(time / np.median(base.epoch_seconds())) if base else None
        if any("peak_memory_mb" in g.runs[0].metrics[-1] for g in groups):
            row["images/s"] = float(np.median(member.curves("images_per_second")[1]))
            row["peak MB"] = float(member.last("peak_memory_mb").max())
        made.append(row)
    return made


def markdown(table: Sequence[Row]) -> str:
    """Returns the table in Markdown."""
    lines = [list(table[0]), ["---"] * len(table[0])]
    lines += [[_cell(value) for value in row.values()] for row in table]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, np.ndarray):
        return spread(value).strip()
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return show(value)


def write_csv(table: Sequence[Row], path: Path) -> None:
    """Writes the table, each metric as mean and standard deviation."""
    flat = []
    for row in table:
        cells: Row = {}
        for name, value in row.items():
            if name in METRICS.values():
                several = value is not None and len(value) > 1
                cells[f"{name} mean"] = None if value is None else value.mean()
                cells[f"{name} std"] = value.std(ddof=1) if several else None
            else:
                cells[name] = show(value) if isinstance(value, list) else value
        flat.append(cells)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)


# --- What it says ---


def differences(comparison: Comparison) -> list[str]:
    """Says of each chosen group by how much its test accuracy differs from SAM's."""
    lines = []
    for member in comparison.chosen:
        base = comparison.base(member)
        if base is None or base is member or not (member.has(TEST) and base.has(TEST)):
            continue
        by = difference(member.last(TEST), base.last(TEST))
        lines.append(f"{comparison.label(member)} - {comparison.label(base)}: {by}")
    return lines


def searches(comparison: Comparison) -> list[str]:
    """Says of each chosen group of XSAM where alpha was, and whether its grid ended there."""
    lines = []
    for member in comparison.chosen:
        if not member.method.startswith("xsam"):
            continue
        alphas, psis = (member.curves(name)[1] for name in ("alpha", "psi"))
        half = alphas.shape[1] // 2
        parts = [f"alpha {alphas.mean():.2f} ({alphas[:, half:].mean():.2f} in the second half)"]
        parts += [f"psi {np.degrees(psis.mean()):.0f}°"]
        for end, name in ((member.settings["alpha_max"], "alpha_max"), (0.0, "0")):
            share = np.mean(np.abs(alphas - end) < 1e-6)
            parts += [f"at {name} in {100 * share:.0f} % of the epochs"]
        lines.append(f"{comparison.label(member)}: {', '.join(parts)}")
    return lines


def edges(comparison: Comparison) -> list[str]:
    """Says which chosen radius or learning rate is the smallest or largest that was tried."""
    lines = []
    for member in comparison.chosen:
        for name in ("rho", "learning_rate"):
            if name == comparison.over:
                continue
            alike = [g for g in comparison.groups if g.method == member.method]
            tried = sorted({g.settings[name] for g in alike if g.settings[name] is not None})
            if len(tried) > 2 and member.settings[name] in (tried[0], tried[-1]):
                lines.append(f"{comparison.label(member)}: {name} is at the edge of what was tried")
    return lines


# --- Figures ---


def draw(comparison: Comparison, out: Path) -> list[Path]:
    """Writes the figures for which there are numbers, of the chosen groups alone."""
    best = Comparison(comparison.chosen)  # of all values of `over`, the best
    groups = {best.label(member): member for member in best.chosen}

    def curves(name: str) -> figures.Curves:
        return {label: g.curves(name) for label, g in groups.items() if len(g.curves(name)[0])}

    split = "validation" if all(g.has(VALIDATION) for g in best.chosen) else "test"
    pictures = {
        "accuracy_over_epochs": figures.over_epochs(
            {f"{split} accuracy (%)": curves(f"{split}_accuracy")}
        ),
        "gradient_norms": figures.over_epochs(
            {
                "gradient, $\\|g_0\\|$": curves("gradient_norm"),
                "gradient used": curves("sharp_gradient_norm"),
            }
        ),
    }
    if alphas := curves("alpha"):
        pictures["alpha_and_psi"] = figures.alpha_and_psi(alphas, curves("psi"))
    base = next((label for label, g in groups.items() if g.method == BASE), None)
    if base and len(groups) > 1:
        seconds = {label: member.epoch_seconds() for label, member in groups.items()}
        pictures["time_per_epoch"] = figures.epoch_times(seconds, base)
    if over := comparison.over:
        lines: dict[str, dict[Any, np.ndarray]] = {}
        for member in comparison.chosen:
            # A line has one value of `over` beside the next, each with what was chosen there.
            label = comparison.label(member, but=[over, *comparison.tuned])
            lines.setdefault(label, {})[member.settings.get(over)] = member.last(TEST)
        name = {"rho": "$\\rho$", "rho_max": "$\\rho_m$"}.get(over, short(over))
        pictures[f"accuracy_over_{short(over)}"] = figures.accuracy_over(name, lines)
    return [figures.save(picture, out / name) for name, picture in pictures.items()]


VALIDATION, TEST = "validation_accuracy", "test_accuracy"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    description, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        "compare",
        description=description,
        epilog=more,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="of runs, or with runs below")
    add("--over", metavar="SETTING", help="show all values of this setting, and draw over it")
    add("--out", type=Path, metavar="DIR", help="for table and figures [FOLDER/comparison]")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Compares runs; returns the exit status."""
    args = parse_arguments(argv)
    try:
        compare(args.folders, args.over, args.out or _common(args.folders) / "comparison")
    except (ValueError, OSError) as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(folders: Sequence[Path], over: str | None, out: Path) -> None:
    """Prints and writes the table and the figures.

    Raises:
      ValueError: a folder holds no finished run, or no runs differ in `over`.
      OSError: nothing can be written to `out`.
    """
    runs, unfinished = read_runs(folders)
    for line in unfinished:
        print(f"left out: {line}", file=sys.stderr)
    if not runs:
        raise ValueError("none of the runs is finished")
    groups = group(runs)
    names = Comparison(groups).names
    if over is not None and over not in names:
        over = next((name for name in names if short(name) == over), over)
        if over not in names:
            differ = hint(over, names) if names else "in nothing but the method"
            raise ValueError(f"the runs do not differ in {over!r}; {differ}")
    comparison = Comparison(groups, over)
    out.mkdir(parents=True, exist_ok=True)
    table = rows(comparison)
    lines = [markdown(table), ""]
    lines += [f"* {line}" for line in differences(comparison)]
    lines += [f"* {line}" for line in (*searches(comparison), *edges(comparison))]
    hours = sum(sum(r["seconds"] for r in run.metrics) for run in runs) / 3600
    lines += ["", f"{len(runs)} runs, {hours:.2f} hours of training. {_common_settings(groups)}"]
    text = "\n".join(lines)
    print(text)
    (out / "table.md").write_text(text + "\n")
    write_csv(table, out / "table.csv")
    pictures = draw(comparison, out)
    print("\nwrote", out / "table.md", out / "table.csv", *pictures, sep="\n  ")


def _common_settings(groups: Sequence[Group]) -> str:
    """Says what all runs share."""
    differ = Comparison(groups).names
    shared = {name: groups[0].settings[name] for name in groups[0].settings if name not in differ}
    if len({member.method for member in groups}) > 1:
        del shared["method"]
    shown = {name: value for name, value in shared.items() if value is not None}
    return "All have " + ", ".join(f"{short(n)} {show(value)}" for n, value in shown.items()) + "."


def _common(folders: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([folder.absolute() for folder in folders]))


if __name__ == "__main__":
    sys.exit(main())
