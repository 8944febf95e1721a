r"""Pictures of the numbers of `xsam_jax.analysis`: column width, one colour per method.

Needs matplotlib. Every function takes numbers and returns the axes that they are drawn on, `ax` or
those of a new figure; none shows or saves. The new figure has the width of a column, 3.3 inches,
and 8 pt text, and becomes higher with a long legend. Labels are drawn as they are given. Their
first word is the method, by which the colour is chosen: "sam", "XSAM, $\rho$ 0.1".

The legend is above the axes, where no curve can be; `axes.legend(loc=...)` puts it elsewhere, and
`figure.suptitle` is above it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from xsam_jax.analysis.ascent_plane import AscentPlane

# Apart for the colour-blind too.
COLORS = {
    "sgd": "#555555",
    "sam": "#0072B2",
    "xsam": "#D55E00",
    "friendly_sam": "#009E73",
    "asam": "#CC79A7",
    "xsam+asam": "#E69F00",
}
FURTHER = ("#56B4E9", "#882255", "#44AA99", "#999933")  # of other methods, in their order
STYLES = ("-", "--", ":", "-.")

_DASHES: tuple[Any, ...] = (*STYLES, (0, (6, 1, 1, 1, 1, 1)), (0, (9, 3)), (0, (1, 3)))
_MARKERS = "osD^v<>"
_SEQUENTIAL = colormaps["viridis"]
_WIDTH = 3.3  # inches, a column
_HEIGHT = 2.3
_SIZE = 8
_SMALL: dict[Any, Any] = {
    "font.size": _SIZE,
    "axes.labelsize": _SIZE,
    "xtick.labelsize": _SIZE,
    "ytick.labelsize": _SIZE,
    "legend.fontsize": _SIZE,
    "legend.frameon": False,
    "lines.markersize": 4,
}
_MANY = 100  # the ratio from which losses are on a logarithmic scale
_LEVELS = 16  # of a surface, at most


def looks(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns color and line style of labels, which begin with a method's name.

    Several of one color differ in their style.

    Args:
      labels: such as "sam" or "SAM, rho 0.1".

    Example:
      >>> looks(["sgd", "sam, rho 0.1", "sam, rho 0.2"])["sam, rho 0.2"]
      ('#0072B2', '--')
    """
    colors, further = dict(COLORS), itertools.cycle(FURTHER)
    chosen: dict[str, tuple[str, str]] = {}
    for label in labels:
        method = re.split("[ ,]", label)[0].lower()
        if method not in colors:
            colors[method] = next(further)
        color = colors[method]
        taken = sum(other == color for other, _ in chosen.values())
        chosen[label] = color, STYLES[taken % len(STYLES)]
    return chosen


def spectral_density(densities: Mapping[str, tuple[Any, Any]], *, ax: Axes | None = None) -> Axes:
    """Draws densities of the Hessian's eigenvalues on a logarithmic axis.

    The axis ends below the lowest peak, since a single eigenvalue among many parameters is a low
    one. What is between the peaks further down are tails of Gaussians.

    Args:
      densities: grid and density of each label, as `analysis.spectral_density` returns them.
      ax: where to draw; None for a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: there are none, or grid and density do not fit, or no density is positive.

    Example:
      >>> grid = np.linspace(-1.0, 3.0, 100)
      >>> axes = spectral_density({"sam": (grid, np.exp(-(grid**2) / 0.02))})
      >>> axes.get_yscale()
      'log'
      >>> plt.close(axes.figure)
    """
    _check_some("densities", densities)
    lines = {
        label: (_line("the grid", grid), _line(f"the density of {label!r}", density, len(grid)))
        for label, (grid, density) in densities.items()
    }
    top = max(density.max() for _, density in lines.values())
    if not top > 0:
        raise ValueError(f"no density is positive, the largest is {top:g}")
    peaks = [_lowest_peak(density) for _, density in lines.values()]
    with _canvas(ax) as axes:
        for label, look in _looks(lines).items():
            axes.plot(*lines[label], label=label, linewidth=1.0, **look)
        axes.set_yscale("log")
        # Below 1e-12 of the largest weights of Lanczos are rounding.
        axes.set_ylim(np.clip(min(peaks) / 10, 1e-12 * top, 1e-4 * top), 3 * top)
        axes.set(xlabel="eigenvalue of the Hessian", ylabel="density")
        axes.margins(x=0.02)
        _legend_above(axes)
    return axes


def loss_line(xs: Any, losses: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """Draws losses on a line.

    Args:
      xs: of shape (points,), as for `analysis.loss_line`.
      losses: of each label, of shape (points,). What is not finite leaves a gap.
      ax: where to draw; None for a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: there are none, or shapes do not fit.

    Example:
      >>> axes = loss_line([-1, 0, 1], {"sgd": [4, 0, 4], "sam": [2, 0, 2]})
      >>> axes.get_ylabel()
      'loss'
      >>> plt.close(axes.figure)
    """
    _check_some("losses", losses)
    xs = _line("xs", xs)
    lines = {label: _line(f"losses of {label!r}", of, len(xs)) for label, of in losses.items()}
    with _canvas(ax) as axes:
        for label, look in _looks(lines).items():
            axes.plot(xs, lines[label], label=label, **look)
        axes.set(xlabel="$x$ (unit: length of $d$)", ylabel="loss")
        axes.margins(x=0.02)
        _legend_above(axes)
    return axes


def loss_surface(
    xs: Any, ys: Any, losses: Any, *, levels: Any = None, ax: Axes | None = None
) -> Axes:
    """Draws losses on a plane: filled contours, and a colour bar.

    One colour step is one level, so that surfaces with equal levels have equal colours.

    Args:
      xs: of shape (width,), increasing, as are `ys`.
      ys: of shape (height,).
      losses: of shape (height, width), as `analysis.loss_surface` returns them. What is not finite
        is left white.
      levels: losses where the colour changes, increasing; what is beyond has a colour of its own.
        None for round numbers, on a logarithmic scale where losses differ by a factor of 100.
      ax: where to draw; None for a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: shapes do not fit, or no loss is finite, or coordinates or levels do not increase.

    Example:
      >>> xs, ys = np.linspace(-1, 1, 11), np.linspace(-1, 1, 9)
      >>> axes = loss_surface(xs, ys, 1 + xs**2 + 3 * ys[:, None] ** 2)
      >>> axes.child_axes[0].get_ylabel()  # of the colour bar
      'loss'
      >>> plt.close(axes.figure)
    """
    surface = _surface(xs, ys, losses, levels)
    with _canvas(ax, 2.5) as axes:
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
    ax: Axes | None = None,
) -> Axes:
    r"""Draws an ascent on the loss of its plane, as in figures 1a and 10a of the XSAM paper.

    All gradients are applied at :math:`\theta_0`, as arrows of length :math:`\rho`. Of several
    steps there are the points too; of these, and of all gradients but the last, the plane has
    projections only.

    Args:
      plane: as `analysis.ascent_plane` returns it.
      xs: of shape (width,), increasing: distances from :math:`\theta_0`, as are `ys`.
      ys: of shape (height,).
      losses: of shape (height, width), of `analysis.loss_surface` with the directions of `plane`.
      rho: :math:`\rho`, the length of an ascent step, and the radius of the dashed circle.
      rho_max: :math:`\rho_m`, the radius of a dash-dotted circle; None for no circle.
      alpha: :math:`\alpha^*`, for a star at :math:`\rho_m v(\alpha^*)`; None for none.
      ax: where to draw; None for a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: as `loss_surface`; or a radius is not positive, or there is an `alpha` without
        `rho_max`.

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
    surface = _surface(xs, ys, losses, None)
    path, gradients = np.asarray(plane.path, float), np.asarray(plane.gradients, float)
    last = len(path) - 1
    lengths = np.linalg.norm(gradients, axis=1, keepdims=True)
    # One that is orthogonal to the plane has no direction in it.
    arrows = rho * np.divide(gradients, lengths, out=np.zeros_like(gradients), where=lengths > 0)
    star = None if alpha is None or rho_max is None else plane.point(alpha, rho_max)
    seen = np.concatenate([arrows, path, *([] if star is None else [star[None]])])
    with _canvas(ax, 2.8) as axes:
        _draw_surface(axes, *surface)
        axes.set_aspect("equal")
        axes.set_xlim(min(surface[0][0], *seen[:, 0]), max(surface[0][-1], *seen[:, 0]))
        axes.set_ylim(min(surface[1][0], *seen[:, 1]), max(surface[1][-1], *seen[:, 1]))
        # Names: first those that have the least choice.
        names: dict[str, np.ndarray] = {}
        lines = [np.stack([np.zeros(2), arrow]) for arrow in arrows]
        for name, radius, style, angle in (
            ("$\\rho$", rho, "--", -1.8),
            ("$\\rho_m$", rho_max, "-.", -2.5),
        ):
            if radius is not None:
                look: dict[str, Any] = {"linestyle": style, "fill": False, "linewidth": 0.9}
                axes.add_patch(Circle((0, 0), radius, path_effects=_halo(2), zorder=3, **look))
                names[name] = radius * np.array([math.sin(angle), math.cos(angle)])
        if star is not None:
            color = COLORS["xsam"]
            lines.append(np.stack([np.zeros(2), star]))
            axes.plot(*lines[-1].T, color=color, zorder=4, path_effects=_halo(3))
            axes.plot(*star, "*", color=color, markeredgecolor="white", markersize=10, zorder=6)
            names["$\\alpha^*$"] = star
        for step in range(last, -1, -1):
            if arrows[step].any():
                names[f"$g_{{{step}}}@\\theta_0$" if step else "$g_0$"] = arrows[step]
        names["$\\theta_0$"] = path[0]
        if last > 1:
            lines.append(path)
            axes.plot(*path.T, "k.-", linewidth=0.8, zorder=4, path_effects=_halo(2))
            names[f"$\\theta_{{{last}}}$"] = path[-1]
        axes.quiver(
            *np.zeros_like(arrows.T),
            *arrows.T,
            color=[COLORS["sgd"], *["black"] * (last - 1), COLORS["sam"]],
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
        _write_beside(axes, names, lines)
        of_y = "$g_0$" if last == 1 else f"$\\theta_{{{last}}} - \\theta_0$"
        axes.set_xlabel(f"distance along $g_{{{last}}}$ orthogonal to {of_y}")
        axes.set_ylabel(f"distance along {of_y}")
    return axes


def alpha_profiles(
    alphas: Any, profiles: Mapping[str, Any], *, normalize: bool = True, ax: Axes | None = None
) -> Axes:
    r"""Draws losses over the interpolation factor, as in figures 2 and 13 of the XSAM paper.

    Colours go from dark to light in the order of the profiles; a marker is at each maximum.

    Args:
      alphas: of shape (points,), as for `analysis.alpha_profile`.
      profiles: losses of each time of training, such as "epoch 10", of shape (points,).
      normalize: whether the losses of each are scaled to go from 0 to 1.
      ax: where to draw; None for a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: there are none, or shapes do not fit, or a loss is not finite.

    Example:
      >>> axes = alpha_profiles([0, 1, 2], {"epoch 1": [1, 3, 2], "epoch 2": [1, 2, 3]})
      >>> axes.get_ylabel()
      'loss, each curve from 0 to 1'
      >>> plt.close(axes.figure)
    """
    _check_some("profiles", profiles)
    alphas = _line("alphas", alphas)
    lines = {label: _line(f"profile {label!r}", of, len(alphas)) for label, of in profiles.items()}
    for label, losses in lines.items():
        if not np.isfinite(losses).all():
            raise ValueError(f"profile {label!r} must be finite: it has no maximum")
        if normalize:
            lines[label] = (losses - losses.min()) / (np.ptp(losses) or 1.0)
    with _canvas(ax) as axes:
        axes.axvline(1.0, color=COLORS["sam"], linewidth=0.6)
        for (label, losses), look in zip(lines.items(), _in_order(len(lines)), strict=True):
            maximum = [int(np.argmax(losses))]
            axes.plot(alphas, losses, label=label, markevery=maximum, **look)
        above = axes.get_xaxis_transform() + ScaledTranslation(
            0, 2 / 72, axes.figure.dpi_scale_trans
        )
        axes.text(1.0, 1.0, "SAM", transform=above, color=COLORS["sam"], ha="center")
        axes.set_xlabel("interpolation factor $\\alpha$")
        axes.set_ylabel("loss, each curve from 0 to 1" if normalize else "loss")
        axes.margins(x=0.02)
        _legend_above(axes, lines_below=1)
    return axes


def gradient_gap(rhos: Any, rho_maxs: Any, gaps: Any, *, ax: Axes | None = None) -> Axes:
    r"""Draws by how much the loss is higher along SAM's gradient than along the gradient.

    As in figures 11 and 12 of the XSAM paper: above the line at zero SAM's gradient leads higher.

    Args:
      rhos: the lengths of the ascent, of shape (rows,): a curve each.
      rho_maxs: the distances, of shape (columns,).
      gaps: of shape (rows, columns), as `analysis.gradient_gap` returns them.
      ax: where to draw; None for a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: there are none, or shapes do not fit.

    Example:
      >>> axes = gradient_gap([0.1], [0.1, 0.2, 0.3], [[-0.1, 0.1, 0.4]])
      >>> axes.get_xlabel()
      '$\\rho_m$'
      >>> plt.close(axes.figure)
    """
    rhos, rho_maxs = _line("rhos", rhos), _line("rho_maxs", rho_maxs)
    gaps = _table("gaps", gaps, {"rhos": rhos, "rho_maxs": rho_maxs})
    with _canvas(ax) as axes:
        axes.axhline(0.0, color="black", linewidth=0.6)
        every = -(-len(rho_maxs) // 8)
        for place, look in enumerate(_in_order(len(rhos))):
            # Where curves meet, the marker of one would hide another's.
            look["markevery"] = (place * every // len(rhos), every)
            axes.plot(rho_maxs, gaps[place], label=f"$\\rho$ = {rhos[place]:g}", **look)
        axes.set_xlabel("$\\rho_m$")
        axes.set_ylabel("$L(\\theta + \\rho_m \\hat g_1) - L(\\theta + \\rho_m \\hat g_0)$")
        axes.margins(x=0.02)
        _legend_above(axes)
    return axes


def average_sharpness(
    radii: Any, sharpness: Mapping[str, tuple[Any, Any]], *, ax: Axes | None = None
) -> Axes:
    """Draws average sharpness over the radius, as in figure 16 of the XSAM paper.

    Args:
      radii: of shape (points,).
      sharpness: means and standard errors of each label, of shape (points,) both: at a radius, what
        `analysis.average_sharpness` returns. The band is two standard errors to either side.
      ax: where to draw; None for a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: there are none, or shapes do not fit.

    Example:
      >>> axes = average_sharpness([0.1, 0.2], {"sam": ([0.3, 1.2], [0.01, 0.05])})
      >>> axes.get_xlabel()
      'radius $r$ (band: ± 2 standard errors)'
      >>> plt.close(axes.figure)
    """
    _check_some("sharpness", sharpness)
    radii = _line("radii", radii)
    lines = {
        label: (
            _line(f"the means of {label!r}", means, len(radii)),
            _line(f"the standard errors of {label!r}", errors, len(radii)),
        )
        for label, (means, errors) in sharpness.items()
    }
    with _canvas(ax) as axes:
        for label, look in _looks(lines, markers=True).items():
            means, errors = lines[label]
            axes.plot(radii, means, label=label, **look)
            band = {"color": look["color"], "alpha": 0.2, "linewidth": 0}
            axes.fill_between(radii, means - 2 * errors, means + 2 * errors, **band)
        axes.set(xlabel="radius $r$ (band: ± 2 standard errors)", ylabel="average sharpness")
        _legend_above(axes)
    return axes


def eigenvalues(values: Mapping[str, Any], *, ax: Axes | None = None) -> Axes:
    """Draws the top eigenvalues of the Hessian by their index, from 1.

    The axis is logarithmic where all are positive and differ by a factor of 100.

    Args:
      values: eigenvalues of each label, as `analysis.top_eigenvalues` returns them. There may be
        more of one than of another.
      ax: where to draw; None for a new figure.

    Returns:
      The axes.

    Raises:
      ValueError: there are none, or they are not in a line.

    Example:
      >>> axes = eigenvalues({"sgd": [90.0, 30.0, 20.0], "sam": [20.0, 9.0, 8.0]})
      >>> axes.get_ylabel()
      'eigenvalue of the Hessian'
      >>> plt.close(axes.figure)
    """
    _check_some("values", values)
    lines = {label: _line(f"the eigenvalues of {label!r}", of) for label, of in values.items()}
    together = np.concatenate(list(lines.values()))
    with _canvas(ax) as axes:
        for label, look in _looks(lines, markers=True).items():
            axes.plot(np.arange(1, len(lines[label]) + 1), lines[label], label=label, **look)
        if together.min() > 0 and together.max() >= _MANY * together.min():
            axes.set_yscale("log")
        elif together.min() > 0:
            axes.set_ylim(0, 1.05 * together.max())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel="index", ylabel="eigenvalue of the Hessian")
        _legend_above(axes)
    return axes


def _check_some(name: str, lines: Mapping[str, Any]) -> None:
    if not isinstance(lines, Mapping):
        raise TypeError(f"{name} must be a dict from label to numbers, got {lines!r}")
    if not lines:
        raise ValueError(f"{name} is empty: there is nothing to draw")


def _line(name: str, values: Any, length: int | None = None) -> np.ndarray:
    array = np.asarray(values, float)
    if array.ndim != 1 or not array.size or length not in (None, len(array)):
        expected = "(points,)" if length is None else f"({length},)"
        raise ValueError(f"{name} must be of shape {expected}, got {array.shape}")
    return array


def _table(name: str, values: Any, sides: Mapping[str, np.ndarray]) -> np.ndarray:
    array = np.asarray(values, float)
    shape = tuple(map(len, sides.values()))
    if array.shape != shape:
        expected = ", ".join(f"len({side})" for side in sides)
        raise ValueError(f"{name} must be of shape ({expected}) = {shape}, got {array.shape}")
    return array


Surface = tuple[np.ndarray, np.ndarray, np.ma.MaskedArray, np.ndarray, str]


def _surface(xs: Any, ys: Any, losses: Any, levels: Any) -> Surface:
    """Returns coordinates, losses, levels, and which ends of these losses go beyond."""
    xs, ys = _line("xs", xs), _line("ys", ys)
    table = np.ma.masked_invalid(_table("losses", losses, {"ys": ys, "xs": xs}))
    for name, values in (("xs", xs), ("ys", ys)):
        if len(values) < 2 or not (np.diff(values) > 0).all():
            raise ValueError(f"{name} must be two or more increasing numbers, got {values}")
    if not table.count():
        raise ValueError("no loss is finite: there is nothing to draw")
    if levels is None:
        levels = _levels(table.compressed())
        return xs, ys, table, levels, "min" if table.min() < levels[0] else "neither"
    levels = _line("levels", levels)
    if len(levels) < 2 or not (np.diff(levels) > 0).all():
        raise ValueError(f"levels must be two or more increasing numbers, got {levels}")
    return xs, ys, table, levels, "both"


def _levels(losses: np.ndarray) -> np.ndarray:
    low, high = losses.min(), losses.max()
    if low == high:
        return low + np.array([-0.5, 0.5]) * (abs(low) or 1.0)
    if low >= 0 and high >= _MANY * low:
        # Nearly zero at a single point, such as a minimum, must not have most of the levels.
        low = max(losses[losses > 0].min(), np.quantile(losses[losses > 0], 0.01) / _MANY)
        if high >= _MANY * low:
            return _log_levels(low, high)
    return np.asarray(MaxNLocator(_LEVELS - 4).tick_values(low, high))


def _log_levels(low: float, high: float) -> np.ndarray:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    coarser: Iterable[tuple[int, tuple[float, ...]]] = itertools.chain(
        [(1, (1, 1.5, 2, 3, 5, 7)), (1, (1, 2, 5)), (1, (1, 3))],
        ((step, (1,)) for step in itertools.count(1)),
    )
    for step, mantissas in coarser:
        decades = 10.0 ** np.arange(first, last + step, step)
        levels = np.outer(decades, mantissas).ravel()
        start = max(0, int(np.searchsorted(levels, low, "right")) - 1)
        levels = levels[start : int(np.searchsorted(levels, high)) + 1]
        if len(levels) <= _LEVELS:
            break
    return levels


def _draw_surface(
    axes: Axes,
    xs: np.ndarray,
    ys: np.ndarray,
    losses: np.ma.MaskedArray,
    levels: np.ndarray,
    extend: Any,
) -> None:
    colors: dict[str, Any] = {
        "cmap": _SEQUENTIAL,
        "norm": BoundaryNorm(levels, _SEQUENTIAL.N, extend=extend),
    }
    filled = axes.contourf(xs, ys, losses, levels=levels, extend=extend, **colors)
    within = levels[(losses.min() < levels) & (levels < losses.max())]
    if within.size:
        thin: dict[str, Any] = {
            "colors": "black",
            "linewidths": 0.3,
            "linestyles": "solid",
            "alpha": 0.6,
        }
        axes.contour(xs, ys, losses, levels=within, **thin)
    # As high as the axes, also where these have an aspect.
    beside = axes.inset_axes((1.04, 0.0, 0.06, 1.0))
    axes.figure.colorbar(filled, cax=beside, label="loss", format="%g")


def _write_beside(axes: Axes, names: Mapping[str, np.ndarray], lines: Sequence[np.ndarray]) -> None:
    """Writes names beside their points, where there is neither a line nor another name."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    corners = np.array([(left, low), (right, high)])
    size, box = float(plt.rcParams["font.size"]), axes.get_window_extent()
    # Labels and colour bar will take of the axes.
    scale = 0.8 * min(box.width / (right - left), box.height / (high - low))
    em = size / 72 * axes.figure.dpi / scale
    taken = np.concatenate(
        [
            start + np.linspace(0, 1, 40)[:, None] * (end - start)
            for whole in lines
            for start, end in itertools.pairwise(whole)
        ]
    )
    leader: dict[str, Any] = {"arrowstyle": "-", "linewidth": 0.5, "path_effects": _halo(1.5)}
    leader |= {"shrinkA": 0, "shrinkB": 3}
    boxes: list[tuple[np.ndarray, np.ndarray]] = []
    for name, point in names.items():
        half = em * np.array([0.3 * len(_letters(name)) + 0.25, 0.7])
        outwards = math.atan2(*point) if point.any() else -2.4
        best: tuple[float, tuple[float, float]] = math.inf, (point[0], point[1])
        for far, turn in itertools.product((0.3, 0.8, 1.5, 2.5, 4.0), np.linspace(-3, 3, 31)):
            direction = np.array([math.sin(outwards + turn), math.cos(outwards + turn)])
            center = point + direction * (far * em + half @ np.abs(direction))
            bad = (np.abs(taken - center) < half).all(axis=1).sum()
            bad += sum((np.abs(center - other) < half + width).all() for other, width in boxes)
            bad += (
                np.abs(center - corners.mean(axis=0)) + half > np.ptp(corners, axis=0) / 2
            ).any()
            best = min(best, (far + 0.5 * abs(turn) + 10 * bad, (center[0], center[1])))
        boxes.append((np.array(best[1]), half))
        axes.annotate(
            name,
            tuple(point),
            best[1],
            ha="center",
            va="center",
            arrowprops=leader,
            path_effects=_halo(2),
            zorder=7,
        )


def _lowest_peak(density: np.ndarray) -> float:
    inner = density[1:-1]
    peaks = inner[(inner > density[:-2]) & (inner >= density[2:])]
    return float(peaks.min(initial=density.max()))


def _looks(labels: Iterable[str], *, markers: bool = False) -> dict[str, dict[str, Any]]:
    """Returns colours as in `looks`, and styles that differ from line to line, for grey."""
    chosen: dict[str, dict[str, Any]] = {}
    colors = {label: color for label, (color, _) in looks(labels).items()}
    for place, (label, color) in enumerate(colors.items()):
        taken = [(look["color"], look["linestyle"]) for look in chosen.values()]
        style = min(
            _DASHES,
            key=lambda style: (
                taken.count((color, style)),
                sum(other == style for _, other in taken),
            ),
        )
        marker = _MARKERS[place % len(_MARKERS)] if markers else ""
        chosen[label] = {"color": color, "linestyle": style, "marker": marker}
    return chosen


def _in_order(number: int) -> list[dict[str, Any]]:
    # The lightest would be lost on white.
    shades = _SEQUENTIAL(np.linspace(0.0, 0.85, number))
    return [
        {"color": shade, "marker": marker, "linewidth": 1.2}
        for shade, marker in zip(shades, itertools.cycle(_MARKERS), strict=False)
    ]


def _letters(label: str) -> str:
    """About what is seen of a label with formulas."""
    return re.sub(r"[${}^_]", "", re.sub(r"\\[A-Za-z]+", "x", label))


def _halo(width: float) -> list[patheffects.AbstractPathEffect]:
    return [patheffects.withStroke(linewidth=width, foreground="white")]


@contextlib.contextmanager
def _canvas(ax: Axes | None, height: float = _HEIGHT) -> Iterator[Axes]:
    """The axes, or those of a new figure, with small text."""
    if ax is not None:
        yield ax
        return
    with plt.rc_context(_SMALL):
        # As "constrained", and right at once where the axes have an aspect.
        figure = plt.figure(figsize=(_WIDTH, height), layout="compressed")
        axes = figure.subplots()
        # How many ticks there are is decided when they are drawn, which knows of no context.
        axes.tick_params(labelsize=_SIZE)
        yield axes
        if legend := axes.get_legend():
            above = legend.get_window_extent().y1 - axes.get_window_extent().y1
            figure.set_figheight(height + above / figure.dpi)


def _legend_above(axes: Axes, *, lines_below: int = 0) -> None:
    """Puts the legend where no curve can be, and makes the figure higher by as much."""
    size = float(plt.rcParams["font.size"])
    handles, labels = axes.get_legend_handles_labels()
    longest = max(len(_letters(label)) for label in labels)
    ems = axes.get_window_extent().width / axes.figure.dpi * 72 / size
    columns = int(np.clip(ems // (0.55 * longest + 4), 1, len(labels)))
    lift = ScaledTranslation(0, 1.4 * lines_below * size / 72, axes.figure.dpi_scale_trans)
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        bbox_transform=axes.transAxes + lift,
        ncols=columns,
        borderaxespad=0.2,
        columnspacing=1.2,
        labelspacing=0.3,
    )
