"""Figures of losses on a plane, which `xsam_jax.analysis.plots` exports."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from adjustText import adjust_text
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.colors import BoundaryNorm
from matplotlib.patches import Circle
from matplotlib.ticker import LogLocator, MaxNLocator

from xsam_jax.analysis.ascent_plane import AscentPlane
from xsam_jax.analysis.style import COLORS, LOG_RATIO, SEQUENTIAL, canvas

_LEVELS = 16  # at most


def loss_surface(
    xs: Any, ys: Any, losses: Any, *, levels: Any = None, ax: plt.Axes | None = None
) -> plt.Axes:
    """Draws losses on a plane: filled contours, and a color bar.

    One color step is one level, so that surfaces with equal levels have equal colors.

    Args:
      xs: of shape (width,), increasing, as are `ys`.
      ys: of shape (height,).
      losses: of shape (height, width), as `analysis.loss_surface` returns them. Losses that are
        not finite are left white.
      levels: losses where the color changes, increasing. Losses below and above have a color of
        their own. None for round numbers, on a logarithmic scale if losses differ by a factor of
        100.
      ax: where to draw, or None for a new figure.

    Example:
      >>> xs, ys = np.linspace(-1, 1, 11), np.linspace(-1, 1, 9)
      >>> axes = loss_surface(xs, ys, 1 + xs**2 + 3 * ys[:, None] ** 2)
      >>> axes.child_axes[0].get_ylabel()  # of the color bar
      'loss'
      >>> plt.close(axes.figure)
    """
    surface = _check_surface(xs, ys, losses, levels)
    with canvas(ax, 2.5, legend=False) as axes:
        _draw_surface(axes, *surface)
        axes.set(xlabel="$x$ (unit: length of $d_x$)", ylabel="$y$ (unit: length of $d_y$)")
    return axes


def ascent_plane(
    plane: AscentPlane,
    xs: Any,
    ys: Any,
    losses: Any,
    *,
    rho: float,
    rho_max: float | None = None,
    alpha: float | None = None,
    ax: plt.Axes | None = None,
) -> plt.Axes:
    r"""Draws an ascent on the loss of its plane, as in figures 1a and 10a of the XSAM paper.

    All gradients are applied at :math:`\theta_0`, as arrows of length :math:`\rho`. Of several
    steps the points are drawn too. The plane contains only projections of these points, and of all
    gradients but the last.

    Args:
      plane: as `analysis.ascent_plane` returns it.
      xs: of shape (width,), increasing: distances from :math:`\theta_0`, as are `ys`.
      ys: of shape (height,).
      losses: of shape (height, width), of `analysis.loss_surface` with the directions of `plane`.
      rho: :math:`\rho`, the length of an ascent step, and the radius of the dashed circle.
      rho_max: :math:`\rho_m`, the radius of a dash-dotted circle, or None for no circle.
      alpha: :math:`\alpha^*`, for a star at :math:`\rho_m v(\alpha^*)`, which needs `rho_max`, or
        None for no star.
      ax: where to draw, or None for a new figure.

    Example:
      >>> path, gradients = np.array([[0, 0], [0, 0.1]]), np.array([[0, 1], [0.6, 0.8]])
      >>> plane = AscentPlane(None, None, path, gradients, psi=np.arctan2(0.6, 0.8))
      >>> xs = ys = np.linspace(-0.4, 0.4, 9)
      >>> losses = 1 + xs + ys[:, None]
      >>> axes = ascent_plane(plane, xs, ys, losses, rho=0.1, rho_max=0.3, alpha=1.2)
      >>> axes.get_ylabel()
      'distance along $g_0$'
      >>> plt.close(axes.figure)
    """
    for name, radius in (("rho", rho), ("rho_max", rho_max)):
        if radius is not None and not 0 < radius < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {radius}")
    if alpha is not None and rho_max is None:
        raise ValueError("alpha needs rho_max, the distance of its point from the origin")
    surface = _check_surface(xs, ys, losses, None)
    path, gradients = np.asarray(plane.path, float), np.asarray(plane.gradients, float)
    lengths = np.linalg.norm(gradients, axis=1, keepdims=True)
    # A gradient orthogonal to the plane has no direction in it.
    arrows = rho * np.divide(gradients, lengths, out=np.zeros_like(gradients), where=lengths > 0)
    stars = [] if alpha is None or rho_max is None else [plane.point(alpha, rho_max)]
    seen = np.concatenate([arrows, path, *(star[None] for star in stars)])
    last = len(path) - 1
    along_y = "$g_0$" if last == 1 else f"$\\theta_{{{last}}} - \\theta_0$"
    with canvas(ax, 2.8, legend=False) as axes:
        _draw_surface(axes, *surface)
        axes.set_aspect("equal")
        axes.set_xlim(min(surface[0][0], *seen[:, 0]), max(surface[0][-1], *seen[:, 0]))
        axes.set_ylim(min(surface[1][0], *seen[:, 1]), max(surface[1][-1], *seen[:, 1]))
        axes.set_xlabel(f"distance along $g_{{{last}}}$ orthogonal to {along_y}")
        axes.set_ylabel(f"distance along {along_y}")
        points = _draw_circles(axes, rho, rho_max) | _draw_ascent(axes, path, arrows)
        for star in stars:
            points["$\\alpha^*$"] = star
            line = np.stack([np.zeros(2), star])
            axes.plot(*line.T, color=COLORS["xsam"], zorder=4, path_effects=_halo(3))
            marker: dict[str, Any] = {"color": COLORS["xsam"], "markeredgecolor": "white"}
            axes.plot(*star, "*", markersize=10, zorder=6, **marker)
        lines = [np.stack([np.zeros(2), end]) for end in (*arrows, *stars)]
        _label_points(axes, points, [*lines, path] if last > 1 else lines)
    return axes


Surface = tuple[np.ndarray, np.ndarray, np.ma.MaskedArray, np.ndarray, str]


def _check_surface(xs: Any, ys: Any, losses: Any, levels: Any) -> Surface:
    """Returns coordinates, losses, levels, and the `extend` argument of `contourf`."""
    xs, ys = _increasing("xs", xs), _increasing("ys", ys)
    table, shape = np.ma.masked_invalid(np.asarray(losses, float)), (len(ys), len(xs))
    if table.shape != shape:
        expected = f"(len(ys), len(xs)) = {shape}"
        raise ValueError(f"losses must be of shape {expected}, got {table.shape}")
    if not table.count():
        raise ValueError("no loss is finite: there is nothing to draw")
    if levels is not None:
        return xs, ys, table, _increasing("levels", levels), "both"
    levels = _choose_levels(table.compressed())
    return xs, ys, table, levels, "min" if table.min() < levels[0] else "neither"


def _increasing(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, float)
    if array.ndim != 1 or len(array) < 2 or not (np.diff(array) > 0).all():
        raise ValueError(f"{name} must be two or more increasing numbers, got {values}")
    return array


def _choose_levels(losses: np.ndarray) -> np.ndarray:
    low, high = losses.min(), losses.max()
    if low == high:
        return low + np.array([-0.5, 0.5]) * (abs(low) or 1.0)
    if low >= 0:
        # A loss near zero at a single point, such as a minimum, must not take most of the levels.
        positive = losses[losses > 0]
        start = max(positive.min(), np.quantile(positive, 0.01) / LOG_RATIO)
        if high >= LOG_RATIO * start:
            return _log_levels(start, high)
    return np.asarray(MaxNLocator(_LEVELS - 4).tick_values(low, high))


def _log_levels(low: float, high: float) -> np.ndarray:
    for subs in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        # The locator may end below `high`, but not below a tenth of its argument.
        ticks = LogLocator(subs=subs, numticks=_LEVELS - 2).tick_values(low, 10 * high)
        levels = np.array(ticks)
        first = max(0, int(np.searchsorted(levels, low, "right")) - 1)
        levels = levels[first : int(np.searchsorted(levels, high)) + 1]
        if 0 < len(levels) <= _LEVELS:
            break
    return levels


def _draw_surface(
    axes: plt.Axes,
    xs: np.ndarray,
    ys: np.ndarray,
    losses: np.ma.MaskedArray,
    levels: np.ndarray,
    extend: Any,
) -> None:
    norm = BoundaryNorm(levels, SEQUENTIAL.N, extend=extend)
    colors: dict[str, Any] = {"cmap": SEQUENTIAL, "norm": norm}
    filled = axes.contourf(xs, ys, losses, levels=levels, extend=extend, **colors)
    inner = levels[(losses.min() < levels) & (levels < losses.max())]
    if inner.size:
        thin: dict[str, Any] = {"colors": "black", "linewidths": 0.3, "linestyles": "solid"}
        axes.contour(xs, ys, losses, levels=inner, alpha=0.6, **thin)
    # As high as the axes, also where these have a fixed aspect.
    beside = axes.inset_axes((1.04, 0.0, 0.06, 1.0))
    axes.figure.colorbar(filled, cax=beside, label="loss", format="%g")


def _draw_circles(axes: plt.Axes, rho: float, rho_max: float | None) -> dict[str, np.ndarray]:
    """Draws the radii around the origin, and returns the points to label."""
    points = {}
    for name, radius, dash, angle in (
        ("$\\rho$", rho, "--", -1.8),
        ("$\\rho_m$", rho_max, "-.", -2.5),
    ):
        if radius is not None:
            look: dict[str, Any] = {"linestyle": dash, "linewidth": 0.9, "fill": False}
            axes.add_patch(Circle((0, 0), radius, path_effects=_halo(2), zorder=3, **look))
            points[name] = radius * np.array([math.sin(angle), math.cos(angle)])
    return points


def _draw_ascent(axes: plt.Axes, path: np.ndarray, arrows: np.ndarray) -> dict[str, np.ndarray]:
    """Draws gradients, and the points of several steps, and returns the points to label."""
    names = ["$g_0$", *(f"$g_{{{step}}}@\\theta_0$" for step in range(1, len(arrows)))]
    points = {name: arrow for name, arrow in zip(names, arrows, strict=True) if arrow.any()}
    points["$\\theta_0$"] = path[0]
    if len(path) > 2:
        axes.plot(*path.T, "k.-", linewidth=0.8, zorder=4, path_effects=_halo(2))
        points[f"$\\theta_{{{len(path) - 1}}}$"] = path[-1]
    axes.quiver(
        *np.zeros_like(arrows.T),
        *arrows.T,
        color=[COLORS["sgd"], *["black"] * (len(arrows) - 2), COLORS["sam"]],
        edgecolor="white",
        linewidth=0.6,
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.014,
        headwidth=4,
        headlength=4,
        headaxislength=4,
        zorder=5,
    )
    return points


def _label_points(
    axes: plt.Axes, points: Mapping[str, np.ndarray], lines: Sequence[np.ndarray]
) -> None:
    """Writes names beside their points, away from the lines and from other names."""
    texts = []
    for name, point in points.items():
        x, y = point
        outwards = point / np.linalg.norm(point) if point.any() else np.array([-0.5, -0.9])
        start = point + 0.1 * np.ptp(axes.get_xlim()) * outwards
        place: dict[str, Any] = {"ha": "center", "va": "center", "zorder": 7}
        texts.append(axes.annotate(name, (x, y), start, path_effects=_halo(2), **place))
    parts = [part for line in lines for part in itertools.pairwise(line)]
    x, y = np.concatenate([np.linspace(start, end, 5) for start, end in parts]).T
    adjust_text(
        texts,
        x,
        y,
        target_x=[x for x, _ in points.values()],
        target_y=[y for _, y in points.values()],
        ax=axes,
        expand=(1.2, 1.5),
        force_explode=0.0,
        force_static=0.4,
        force_text=0.6,
        prevent_crossings=False,
        iter_lim=40,
        arrowprops={"arrowstyle": "-", "linewidth": 0.5, "path_effects": _halo(1.5), "zorder": 6},
    )


def _halo(width: float) -> list[patheffects.AbstractPathEffect]:
    return [patheffects.withStroke(linewidth=width, foreground="white")]
