r"""Compares runs: a table of means over seeds, what differs by more than chance, and figures.

    python -m examples.experiments.compare runs/cifar10_small
    python -m examples.experiments.compare runs/digits/rho --over rho

Reads the folders that the trainer has left, and those below them (but for folders named `tuning`,
which are read where they are given themselves). Runs that differ in the seed alone make a row. Of
the settings that one method was tuned by (radii, ascent steps, XSAM's search, arguments of the
method, learning rate, weight decay) the one with the best validation accuracy is chosen (*), and
only its test accuracy is shown; `--over rho` makes no choice of rho, and draws accuracy over it.
Other figures are of the choice alone. A tie is a difference of at most two standard errors; with
two or three seeds a slightly larger one is weak evidence, too.
Accuracies are those after the last epoch, in percent, mean ± standard deviation over seeds.
"""

import argparse
import csv
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.experiments import figures
from examples.experiments.arguments import Parser
from examples.experiments.records import Comparison, Run, Settings, group, read_runs, short, show
from examples.experiments.seeds import difference, spread
from examples.image_classification.names import hint

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
VALIDATION, TEST = "validation_accuracy", "test_accuracy"
NAMES = {"rho": "$\\rho$", "rho_max": "$\\rho_m$", "probe_every": "steps between probes"}
EDGES = ("rho", "rho_max", "learning_rate", "weight_decay")
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
        row |= {short(n): _setting(member.settings, n) for n in comparison.names}
        row["seeds"] = len(member.runs)
        for name in metrics:
            shown = member.has(name) and (member in chosen or name.startswith("validation"))
            row[METRICS[name]] = member.last(name) if shown else None
        row["gradients"] = float(member.last("gradients").mean())
        base = comparison.base(member)
        time = float(np.median(member.epoch_seconds()))
        row["epoch (s)"] = time
        if any(g.method == comparison.against for g in groups):
            ratio = time / float(np.median(base.epoch_seconds())) if base else None
            row[f"epoch / {comparison.against}'s"] = ratio
        if any("peak_memory_mb" in g.runs[0].metrics[-1] for g in groups):
            row["images/s"] = float(np.median(member.curves("images_per_second")[1]))
            row["peak MB of the process"] = float(member.last("peak_memory_mb").max())
        made.append(row)
    return made


def _setting(settings: Settings, name: str) -> Any:
    """Returns a number, a text, or None where the method has no such setting."""
    value = settings.get(name)
    return show(value) if name in settings and not isinstance(value, int | float) else value


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
                cells[name] = value
        flat.append(cells)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)


# --- What it says ---


def differences(comparison: Comparison) -> list[str]:
    """Says of each chosen group by how much its test accuracy differs from that of its base."""
    lines: list[str] = []
    against = comparison.against
    if not any(member.method == against for member in comparison.chosen):
        return lines
    for member in comparison.chosen:
        base = comparison.base(member)
        if base is None:
            lines.append(f"{comparison.label(member)}: no single {against} was trained alike")
        elif base is not member and member.has(TEST) and base.has(TEST):
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
        half, end = alphas.shape[1] // 2, member.settings["alpha_max"]
        parts = [f"alpha {alphas.mean():.2f} ({alphas[:, half:].mean():.2f} in the second half)"]
        parts += [f"psi {np.degrees(psis.mean()):.0f}°"]
        for place, name in ((end, "alpha_max"), (0.0, "0")):
            # The mean over an epoch is a sum of float32, divided.
            share = np.mean(np.abs(alphas - place) < 1e-3 * end)
            parts += [f"throughout at {name} in {100 * share:.0f} % of the epochs"]
        lines.append(f"{comparison.label(member)}: {', '.join(parts)}")
    return lines


def edges(comparison: Comparison) -> list[str]:
    """Says which chosen radius or learning rate is the smallest or largest that was tried."""
    lines = []
    for member in comparison.chosen:
        rivals = comparison.candidates(member)
        if sum(rival in comparison.chosen for rival in rivals) > 1:
            continue  # none was chosen
        for name in set(EDGES) & member.settings.keys() - {comparison.over}:
            tried = sorted({rival.settings[name] for rival in rivals})
            if len(tried) > 2 and member.settings[name] in (tried[0], tried[-1]):
                lines.append(f"{comparison.label(member)}: {name} is at the edge of what was tried")
    return sorted(lines)


def corrupted(comparison: Comparison) -> list[str]:
    """Says on how many images the accuracies under corruption are."""
    counts = {n for g in comparison.groups for n in g.last("corrupted_images") if n > 0}
    text = " or ".join(f"{count:g}" for count in sorted(counts))
    return [f"corruptions of the first {text} test images"] if counts else []


def shared(comparison: Comparison) -> list[str]:
    """Says what all runs have in common, then what those of some methods have."""
    lines = []
    methods = tuple(dict.fromkeys(member.method for member in comparison.groups))
    for having, settings in sorted(comparison.shared.items(), key=lambda item: -len(item[0])):
        who = "All" if set(having) == set(methods) else ", ".join(having)
        values = (f"{short(name)} {show(value)}" for name, value in settings.items())
        lines.append(f"{who}: {', '.join(values)}.")
    return lines


# --- Figures ---


def lines_over(comparison: Comparison, over: str) -> dict[str, dict[Any, np.ndarray]]:
    """Returns the test accuracies by what else sets a line apart, and by the setting.

    The setting is None of a method that does not have it.
    """
    members = [member for member in comparison.chosen if member.has(TEST)]
    # At each place is what was chosen there; where nothing was, each candidate is a line.
    for without in ([over, *comparison.tuned], [over]):
        places = [(comparison.label(m, without), _setting(m.settings, over)) for m in members]
        if len(set(places)) == len(places):
            break
    lines: dict[str, dict[Any, np.ndarray]] = {}
    for (label, place), member in zip(places, members, strict=True):
        lines.setdefault(label, {})[place] = member.last(TEST)
    return lines


def draw(comparison: Comparison, out: Path) -> list[Path]:
    """Writes the figures for which there are numbers, of the chosen groups alone."""
    # Of all values of `over`, the best.
    best = Comparison(comparison.chosen, against=comparison.against)
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
                "norm of the\ngradient, $\\|g_0\\|$": curves("gradient_norm"),
                "norm of the\ngradient used": curves("sharp_gradient_norm"),
            }
        ),
    }
    if alphas := curves("alpha"):
        pictures["alpha_and_psi"] = figures.alpha_and_psi(alphas, curves("psi"))
    base = next((label for label, g in groups.items() if g.method == comparison.against), None)
    if base and len(groups) > 1:
        seconds = {label: member.epoch_seconds() for label, member in groups.items()}
        pictures["time_per_epoch"] = figures.epoch_times(seconds, base)
    if over := comparison.over:
        name = NAMES.get(over, short(over).replace("_", " "))
        lines = lines_over(comparison, over)
        pictures[f"accuracy_over_{short(over)}"] = figures.accuracy_over(name, lines)
    return [figures.save(picture, out / name) for name, picture in pictures.items()]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser("compare", __doc__ or "")
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="of runs, or with runs below")
    add("--over", metavar="SETTING", help="show all values of this setting, and draw over it")
    add("--against", default="sam", metavar="METHOD", help="what others are compared to [sam]")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="for table and figures [comparison in the first of them]",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Compares runs; returns the exit status."""
    args = parse_arguments(argv)
    try:
        runs, unfinished = read_runs(args.folders)
        comparison = _comparison(runs, args.over, args.against)
    except ValueError as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 2
    table = rows(comparison)
    said = [f(comparison) for f in (differences, searches, edges, corrupted)]
    said.append([f"left out: {line}" for line in unfinished])
    hours = sum(sum(r["seconds"] for r in run.metrics) for run in runs) / 3600
    lines = [markdown(table), "", *(f"* {line}" for line in itertools.chain(*said)), ""]
    lines += [f"{len(runs)} runs, {hours:.2g} hours of training. {' '.join(shared(comparison))}"]
    text = "\n".join(lines)
    print(text)
    out = args.out or args.folders[0] / "comparison"
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text(text + "\n")
        write_csv(table, out / "table.csv")
        pictures = draw(comparison, out)
    except OSError as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 1
    print("\nwrote", out / "table.md", out / "table.csv", *pictures, sep="\n  ")
    return 0


def _comparison(runs: Sequence[Run], over: str | None, against: str) -> Comparison:
    if not runs:
        raise ValueError("none of the runs is finished")
    groups = group(runs)
    methods = list(dict.fromkeys(member.method for member in groups))
    if against not in methods and against != "sam":
        raise ValueError(f"there is no run of {against!r}; {hint(against, methods)}")
    plain = Comparison(groups, None, against)
    if over is None:
        return plain
    over = over.replace("-", "_")
    for name in plain.names:
        if over in (name, short(name)):
            return Comparison(groups, name, against)
    names = list(map(short, plain.names))
    differ = hint(over, names) if names else "they differ in nothing but the method and the seed"
    raise ValueError(f"the runs do not differ in {over!r}; {differ}")


if __name__ == "__main__":
    sys.exit(main())
