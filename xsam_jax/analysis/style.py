"""Colors, line styles, page format and legends shared by all figures. Needs matplotlib.

`plt.style.use(STYLE)` gives other figures the same look.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# Distinct for color-blind readers too.
COLORS = {
    "sgd": "#555555",
    "sam": "#0072B2",
    "xsam": "#D55E00",
    "friendly_sam": "#009E73",
    "asam": "#CC79A7",
    "xsam+asam": "#E69F00",
}
FURTHER = ("#56B4E9", "#882255", "#44AA99", "#999933")  # other methods, in order of appearance
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (9, 3)), (0, (1, 3)))
MARKERS = "osD^v<>"
SEQUENTIAL = colormaps["viridis"]
LOG_RATIO = 100  # losses and eigenvalues that differ by this factor are on a logarithmic scale
WIDTH = 3.3  # inches, one column of a paper
SIZE = 8  # points
STYLE: dict[Any, Any] = {
    "figure.figsize": (WIDTH, 2.3),
    "figure.constrained_layout.use": True,
    "figure.labelsize": SIZE,
    "font.size": SIZE,
    "axes.labelsize": SIZE,
    "axes.titlesize": SIZE,
    "xtick.labelsize": SIZE,
    "ytick.labelsize": SIZE,
    "legend.fontsize": SIZE,
    "legend.frameon": False,
    "legend.columnspacing": 1.2,
    "legend.labelspacing": 0.3,
    "lines.markersize": 4,
}


def line_styles(labels: Iterable[str], *, markers: bool = False) -> dict[str, dict[str, Any]]:
    """Chooses a color by the method of each label, and a line style that differs from the others.

    The method is the first word. With more labels than line styles, a style is first used again
    with another color.

    Args:
      labels: such as "sam" or "SAM, rho 0.1".
      markers: whether the lines have markers, which differ too.

    Returns:
      Keyword arguments of `Axes.plot` by label.

    Example:
      >>> line_styles(["sgd", "sam, rho 0.1", "sam, rho 0.2"])["sam, rho 0.2"]
      {'color': '#0072B2', 'linestyle': ':', 'marker': ''}
    """
    colors, further = dict(COLORS), itertools.cycle(FURTHER)
    used: Counter[Any] = Counter()
    styles = {}
    for place, label in enumerate(labels):
        method = re.split("[ ,]", label)[0].lower()
        color = colors[method] if method in colors else colors.setdefault(method, next(further))
        dash = min(DASHES, key=lambda dash: (used[color, dash], used[dash]))
        used.update([(color, dash), dash])
        marker = MARKERS[place % len(MARKERS)] if markers else ""
        styles[label] = {"color": color, "linestyle": dash, "marker": marker}
    return styles


@contextlib.contextmanager
def canvas(ax: Axes | None, height: float = 2.3, *, legend: bool = True) -> Iterator[Axes]:
    """Yields the axes to draw on, `ax` or those of a new figure, and adds the legend at the end.

    Args:
      ax: the axes, whose figure keeps its style and layout, or None for a new figure.
      height: inches, of a new figure without its legend.
      legend: whether to add one.
    """
    if ax is not None:
        yield ax
        if legend:
            add_legend(ax, outside=False)
        return
    with plt.rc_context(STYLE):
        # Constrained layout that also fits axes with a fixed aspect.
        _, axes = plt.subplots(figsize=(WIDTH, height), layout="compressed")
        # The number of ticks is chosen at drawing time, outside of this context.
        axes.tick_params(labelsize=SIZE)
        yield axes
        if legend:
            add_legend(axes)


def add_legend(axes: Axes, *, outside: bool = True) -> None:
    """Adds a legend above the axes, where it covers no curve.

    Args:
      axes: labelled lines are on these.
      outside: whether the legend belongs to the figure, which becomes higher. Needs constrained
        layout. Otherwise the legend belongs to the axes, and the figure stays as it is.
    """
    handles, labels = axes.get_legend_handles_labels()
    figure: Any = axes.figure
    width = (figure if outside else axes).get_window_extent().width / figure.dpi
    letters = int(width * 72 / (0.55 * plt.rcParams["font.size"]))
    handle = 7  # letters
    if outside:
        labels = [textwrap.fill(label, letters - handle) for label in labels]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    ncols = min(len(labels), max(1, letters // (longest + handle)))
    if not outside:
        axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=ncols)
        return
    legend = figure.legend(handles, labels, loc="outside upper left", ncols=ncols)
    height = legend.get_window_extent().height / figure.dpi
    figure.set_figheight(figure.get_figheight() + height)
