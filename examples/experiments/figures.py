"""The pictures of the examples: column width, one colour per method."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from xsam_jax.analysis.plots import COLORS, FURTHER, looks

FEW = 7  # lines in one picture
SHOWN = 20  # percent below the best, where some are far below
FEW_LETTERS = 22  # of labels side by side
MARKERS = "osD^v<>"
WIDTH = 3.3  # inches, a column

plt.rcParams.update({"font.size": 8, "legend.frameon": False, "lines.markersize": 4})


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG, closes it, and returns the file's path."""
    path = path.with_suffix(".png")
    figure.savefig(path, dpi=200, bbox_inches="tight")
    plt.close(figure)
    return path


def said(label: str) -> str:
    """Returns a label as pictures have it: the method in capitals, symbols for the radii."""
    method, separator, rest = re.split("([ ,]|$)", label, maxsplit=1)
    rest = rest.replace("_", " ").replace("rho max", "$\\rho_m$").replace("rho ", "$\\rho$ ")
    return method.upper().replace("FRIENDLY_", "F-") + separator + rest


Tests = Mapping[str, Mapping[Any, np.ndarray]]  # accuracies of the seeds, by label and setting


def accuracy_over(name: str, tests: Tests, chosen: Mapping[str, Any] | None = None) -> Figure:
    """Draws test accuracies over a setting, a number or a word.

    Args:
      name: of the setting.
      tests: by the label of a line, which begins with its method, and by the setting; one whose
        setting is None is a level across the picture.
      chosen: which setting of a line gets a ring.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 2.4))
    values = list(dict.fromkeys(v for line in tests.values() for v in line if v is not None))
    words = any(isinstance(value, str) for value in values)
    places = {value: place if words else value for place, value in enumerate(values)}
    markers = iter(MARKERS * len(tests))
    for label, (color, style) in looks(tests).items():
        line = {places[value]: tests[label][value] for value in tests[label] if value is not None}
        look = {"linestyle": "none" if words else style, "marker": next(markers)}
        if None in tests[label]:
            level = tests[label][None]
            axes.axhline(level.mean(), color=color, linestyle="--", label=said(label))
            axes.axhspan(level.min(), level.max(), color=color, alpha=0.2, lw=0)
        if line:
            ring = places[chosen[label]] if chosen else None
            bars = words or len(line) == 1
            _curve(axes, line, ring, color, bars, label=said(label), **look)
    seeds = "bar: all seeds" if words else "band: all seeds"
    axes.set_xlabel(f"{name} ({'ring: chosen on validation; ' if chosen else ''}{seeds})")
    axes.set_ylabel("test accuracy (%)")
    if not words and min(values) > 0 and max(values) >= 4 * min(values):
        axes.set_xscale("log")
    means = [of_seeds.mean() for line in tests.values() for of_seeds in line.values()]
    if max(means) - min(means) > 2 * SHOWN:  # some have learnt nothing
        axes.set_ylim(bottom=max(means) - SHOWN)
        axes.set_ylabel("test accuracy (%), lower ones cut off")
    if words or len(places) <= FEW:
        _ticks(axes, places, **({"rotation": 20} if words else {}))
    _legend_above(axes)
    return figure


def accuracy_in_panels(tests: Tests, chosen: Mapping[str, float | None]) -> Figure:
    """Draws each of many methods over its own rho, beside what SGD and SAM reach at their best."""
    methods = [method for method in tests if method != "sgd"]
    columns = 4
    rows = -(-len(methods) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(2 * WIDTH, 1.3 * rows), sharey=True)
    for axes in grid.flat[len(methods) :]:
        axes.axis("off")
    for method, axes in zip(methods, grid.flat, strict=False):
        for base, style in (("sgd", "--"), ("sam", ":")):
            if base in tests:
                level = tests[base][chosen[base]].mean()
                axes.axhline(level, color=COLORS[base], linestyle=style, linewidth=1)
        _curve(axes, tests[method], chosen[method], COLORS.get(method, FURTHER[0]), marker="o")
        axes.set_title(method, fontsize=8, pad=3)
        axes.set(xscale="log", ylim=(max(_lowest(tests), 60) - 3, 100))
        _ticks(axes, {rho: rho for rho in tests[method]}, fontsize=6)
    figure.supxlabel(
        "$\\rho$ (ring: chosen on validation; band: all seeds; dashed: SGD, dotted: SAM, chosen)",
        fontsize=8,
    )
    figure.supylabel("test accuracy (%)", fontsize=8)
    figure.tight_layout(h_pad=0.3, w_pad=0.3)
    return figure


def _curve(
    axes: Any,
    line: Mapping[Any, np.ndarray],
    ring: float | None,
    color: str,
    bars: bool = False,
    **style: Any,
) -> None:
    """Plots mean and range over any number of seeds at each place, from left to right."""
    places = sorted(line)
    means, low, high = (np.array([f(line[x]) for x in places]) for f in (np.mean, np.min, np.max))
    axes.plot(places, means, color=color, **style)
    if bars:
        axes.errorbar(places, means, (means - low, high - means), fmt="none", ecolor=color)
    else:
        axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
    if ring is not None:
        axes.plot(ring, line[ring].mean(), "o", ms=8, mfc="none", color=color)


def _legend_above(axes: Any) -> None:
    """Puts the legend where no curve can be."""
    longest = max(map(len, axes.get_legend_handles_labels()[1]))
    columns = 1 if longest > FEW_LETTERS else 2 if longest > FEW_LETTERS // 3 else 3
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=7)


def _ticks(axes: Any, places: Mapping[Any, float], **style: Any) -> None:
    texts = [value if isinstance(value, str) else f"{value:g}" for value in places]
    axes.set_xticks(list(places.values()), texts, **style)
    axes.minorticks_off()


def _lowest(tests: Tests) -> float:
    return min(values.mean() for of_rho in tests.values() for values in of_rho.values())


Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]  # epochs and (seeds, epochs), by label


def over_epochs(panels: Mapping[str, Curves]) -> Figure:
    """Draws curves over epochs, in panels with these names of their y axes."""
    height = 2.4 if len(panels) == 1 else 1.5 * len(panels)
    figure, grid = plt.subplots(len(panels), figsize=(WIDTH, height), sharex=True, squeeze=False)
    for (title, curves), axes in zip(panels.items(), grid[:, 0], strict=True):
        for label, (color, style) in looks(curves).items():
            epochs, values = curves[label]
            marker = "o" if len(epochs) == 1 else ""
            line = dict(zip(epochs, values.T, strict=True))
            _curve(axes, line, None, color, linestyle=style, label=said(label), marker=marker)
        axes.set_ylabel(title)
        axes.margins(x=0.02)
    several = any(
        len(values) > 1 for of_panel in panels.values() for _, values in of_panel.values()
    )
    grid[-1, 0].set_xlabel("epoch (band: all seeds)" if several else "epoch")
    _legend_above(grid[0, 0])
    figure.align_ylabels()
    return figure


def alpha_and_psi(alphas: Curves, psis: Curves) -> Figure:
    """Draws alpha*, the angle psi (given in radians), and the angle of the direction alpha* psi."""
    degrees = {label: (epochs, np.degrees(values)) for label, (epochs, values) in psis.items()}
    turned = {
        label: (epochs, alphas[label][1] * values) for label, (epochs, values) in degrees.items()
    }
    figure = over_epochs(
        {"$\\alpha^*$": alphas, "$\\psi$ (°)": degrees, "$\\alpha^* \\psi$ (°)": turned}
    )
    first = figure.axes[0]
    first.axhline(1.0, color=COLORS["sam"], linestyle="--", linewidth=1)
    beside = first.get_yaxis_transform()
    first.text(1.01, 1, "SAM", transform=beside, color=COLORS["sam"], va="center", fontsize=7)
    return figure


def epoch_times(seconds: Mapping[str, np.ndarray], base: str) -> Figure:
    """Draws the time of an epoch by label, of each seed, divided by the median of one label's."""
    figure, axes = plt.subplots(figsize=(WIDTH, 0.5 + 0.25 * len(seconds)))
    for row, (label, (color, _)) in enumerate(looks(seconds).items()):
        ratios = seconds[label] / np.median(seconds[base])
        axes.barh(row, np.median(ratios), color=color, alpha=0.6)
        axes.plot(ratios, np.full(len(ratios), row), "k.", ms=3)
    axes.axvline(1.0, color="k", linewidth=0.5)
    axes.set_yticks(range(len(seconds)), list(map(said, seconds)), fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(f"time of an epoch / that of {said(base)}\n(dots: seeds)", fontsize=7)
    return figure


SPLITS = {"train": ("#555555", "-"), "validation": ("#0072B2", "-"), "test": ("#D55E00", "-")}


def training_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws the metrics of one run over epochs: losses, accuracies, and of XSAM alpha* and psi."""
    rows = ["loss", "accuracy"] + (["alpha"] if "alpha" in history[-1] else [])
    figure, grid = plt.subplots(len(rows), figsize=(WIDTH, 1.5 * len(rows)), sharex=True)
    for axes, row in zip(grid, rows, strict=True):
        for split, (color, style) in SPLITS.items():
            records = [record for record in history if f"{split}_{row}" in record]
            # A single value, such as the test's after the last epoch, would be no line.
            marker = {"marker": "o"} if len(records) == 1 else {}
            points = zip(*((r["epoch"], r[f"{split}_{row}"]) for r in records), strict=True)
            if records:
                axes.plot(*points, color=color, linestyle=style, label=split, **marker)
        axes.set_ylabel({"loss": "loss", "accuracy": "accuracy (%)", "alpha": "$\\alpha^*$"}[row])
        axes.margins(x=0.02)
    if "alpha" in rows:
        alphas, psis = ([record[name] for record in history] for name in ("alpha", "psi"))
        epochs = [record["epoch"] for record in history]
        marker = {"marker": "o"} if len(history) == 1 else {}
        axes.plot(epochs, alphas, color=COLORS["xsam"], **marker)
        degrees = axes.twinx()
        degrees.plot(epochs, np.degrees(psis), color=COLORS["sam"], linestyle="--", **marker)
        degrees.set_ylabel("$\\psi$ (°), dashed")
    grid[0].legend()
    grid[-1].set_xlabel("epoch")
    if len(history) == 1:
        grid[-1].set_xticks([history[0]["epoch"]])
    figure.align_ylabels()
    return figure
