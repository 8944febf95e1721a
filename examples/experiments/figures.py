"""Figures of the experiments, in the style of `xsam_jax.analysis.plots`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from examples.experiments.seed_statistics import band, name_of_band
from xsam_jax.analysis.style import (
    COLORS,
    STYLE,
    WIDTH,
    add_legend,
    line_styles,
)

FEW = 7  # lines in one figure
SHOWN = 20  # percent below the best, if some are far below

plt.style.use(STYLE)


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG, closes it, and returns the file's path."""
    path = path.with_suffix(".png")
    figure.savefig(path, dpi=200, bbox_inches="tight")
    plt.close(figure)
    return path


# Methods whose names have small letters.
NAMES = {"look_sam": "LookSAM", "momentum_sam": "Momentum-SAM", "async_sam": "AsyncSAM"}


def format_label(label: str) -> str:
    """Formats a label for a figure: the published name of the method, symbols for the radii."""
    method, separator, rest = re.split("([ ,]|$)", label, maxsplit=1)
    rest = rest.replace("_", " ").replace("rho max", "$\\rho_m$").replace("rho ", "$\\rho$ ")
    name = NAMES.get(method, method.upper().replace("FRIENDLY_", "F-").replace("_", "-"))
    return name + separator + rest


Tests = Mapping[str, Mapping[Any, np.ndarray]]  # accuracies of the seeds, by label and setting


def metric_over(
    name: str, metric: str, tests: Tests, chosen: Mapping[str, Any] | None = None
) -> Figure:
    """Draws a metric of test data over a setting, a number or a word.

    Args:
      name: of the setting.
      metric: its name.
      tests: by the label of a line, which begins with its method, and by the setting. A setting
        of None gives a level across the figure.
      chosen: the setting of each line that gets a ring.
    """
    figure, axes = plt.subplots()
    values = list(dict.fromkeys(v for line in tests.values() for v in line if v is not None))
    words = any(isinstance(value, str) for value in values)
    places = {value: place if words else value for place, value in enumerate(values)}
    for label, style in line_styles(tests, markers=True).items():
        line = {places[value]: tests[label][value] for value in tests[label] if value is not None}
        color = style["color"]
        if None in tests[label]:
            level = tests[label][None]
            axes.axhline(level.mean(), color=color, linestyle="--", label=format_label(label))
            axes.axhspan(*band(level), color=color, alpha=0.2, lw=0)
        if line:
            ring = places[chosen[label]] if chosen else None
            bars = words or len(line) == 1
            style |= {"label": format_label(label)} | ({"linestyle": "none"} if words else {})
            _curve(axes, line, ring, bars, **style)
    numbers = {len(of_seeds) for line in tests.values() for of_seeds in line.values()}
    seeds = f"{'bar' if words else 'band'}: {name_of_band(numbers)}"
    axes.set_xlabel(f"{name} ({'ring: chosen on validation; ' if chosen else ''}{seeds})")
    axes.set_ylabel(metric)
    if not words and min(values) > 0 and max(values) >= 4 * min(values):
        axes.set_xscale("log")
    means = [of_seeds.mean() for line in tests.values() for of_seeds in line.values()]
    if max(means) - min(means) > 2 * SHOWN:  # some have learned nothing
        axes.set_ylim(bottom=max(means) - SHOWN)
        axes.set_ylabel(f"{metric}, cut off")
    if words or len(places) <= FEW:
        _ticks(axes, places, **({"rotation": 20} if words else {}))
    add_legend(axes)
    return figure


def _curve(
    axes: Any,
    line: Mapping[Any, np.ndarray],
    ring: float | None = None,
    bars: bool = False,
    **style: Any,
) -> None:
    """Draws the mean and the band of any number of seeds at each place, from left to right."""
    color = style["color"]
    places = sorted(line)
    means = np.array([line[x].mean() for x in places])
    low, high = np.transpose([band(line[x]) for x in places])
    axes.plot(places, means, **style)
    if bars:
        axes.errorbar(places, means, (means - low, high - means), fmt="none", ecolor=color)
    else:
        axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
    if ring is not None:
        axes.plot(ring, line[ring].mean(), "o", ms=8, mfc="none", color=color)


def _ticks(axes: Any, places: Mapping[Any, float], **style: Any) -> None:
    texts = [value if isinstance(value, str) else f"{value:g}" for value in places]
    axes.set_xticks(list(places.values()), texts, **style)
    axes.minorticks_off()


Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]  # epochs and (seeds, epochs), by label


def over_epochs(panels: Mapping[str, Curves]) -> Figure:
    """Draws curves over epochs, in panels with these names of their y axes."""
    height = 2.3 if len(panels) == 1 else 1.5 * len(panels)
    figure, grid = plt.subplots(len(panels), figsize=(WIDTH, height), sharex=True, squeeze=False)
    for (title, curves), axes in zip(panels.items(), grid[:, 0], strict=True):
        for label, style in line_styles(curves).items():
            epochs, values = curves[label]
            line = dict(zip(epochs, values.T, strict=True))
            style |= {"marker": "o" if len(epochs) == 1 else "", "label": format_label(label)}
            _curve(axes, line, **style)
        axes.set_ylabel(title)
    numbers = {len(values) for of_panel in panels.values() for _, values in of_panel.values()}
    several = max(numbers, default=1) > 1
    grid[-1, 0].set_xlabel(f"epoch (band: {name_of_band(numbers)})" if several else "epoch")
    grid[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    add_legend(grid[0, 0])
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
    first.text(1.01, 1, "SAM", transform=beside, color=COLORS["sam"], va="center")
    return figure


def epoch_times(seconds: Mapping[str, np.ndarray], base: str) -> Figure:
    """Draws the time of an epoch by label and seed, divided by the median of the label `base`."""
    figure, axes = plt.subplots(figsize=(WIDTH, 0.8 + 0.25 * len(seconds)))
    for row, (label, style) in enumerate(line_styles(seconds).items()):
        ratios = seconds[label] / np.median(seconds[base])
        axes.barh(row, np.median(ratios), color=style["color"], alpha=0.6)
        axes.plot(ratios, np.full(len(ratios), row), "k.", ms=3)
    axes.axvline(1.0, color="k", linewidth=0.5)
    axes.set_yticks(range(len(seconds)), list(map(format_label, seconds)))
    axes.invert_yaxis()
    axes.set_xlabel(f"time of an epoch / that of {format_label(base)}\n(dots: seeds)")
    return figure
