r"""Figures of the numbers of `xsam_jax.analysis`: column width, one color per method.

Needs the extra `analysis` (matplotlib and adjustText). Every function takes numbers and returns the
axes that it has drawn on: `ax`, or those of a new figure. None of them shows or saves a figure.
Arguments without numbers, or with shapes that do not fit, raise a `ValueError`.

A new figure is 3.3 inches wide, has 8 pt text, and becomes higher with a long legend. Labels are
drawn as given. Their first word is the method, which decides the color: "sam",
"XSAM, $\rho$ 0.1". The legend is above the axes. In a new figure it is `axes.figure.legends[0]`.
On a given `ax`, `ax.legend(loc=...)` moves it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from xsam_jax.analysis.style import (
    COLORS,
    FURTHER,
    LOG_RATIO,
    MARKERS,
    SEQUENTIAL,
    STYLE,
    canvas,
    line_styles,
)
from xsam_jax.analysis.surface_plots import ascent_plane, loss_surface

__all__ = [
    "spectral_density",
    "eigenvalues",
    "average_sharpness",
    "loss_line",
    "loss_surface",
    "ascent_plane",
    "alpha_profiles",
    "gradient_gap",
    # Shared with other figures
    "line_styles",
    "COLORS",
    "FURTHER",
    "STYLE",
]


def spectral_density(
    densities: Mapping[str, tuple[Any, Any]], *, ax: plt.Axes | None = None
) -> plt.Axes:
    """Draws densities of the Hessian's eigenvalues on a logarithmic axis.

    The axis ends below the lowest peak, since a single eigenvalue among many parameters has a low
    one. The valleys between peaks further down are tails of Gaussians.

    Args:
      densities: grid and density of each label, as `analysis.spectral_density` returns them.
      ax: where to draw, or None for a new figure.

    Example:
      >>> grid = np.linspace(-1.0, 3.0, 100)
      >>> axes = spectral_density({"sam": (grid, np.exp(-(grid**2) / 0.02))})
      >>> axes.get_yscale()
      'log'
      >>> plt.close(axes.figure)
    """
    _check_labels("densities", densities)
    lines = {
        label: (_line("the grid", grid), _line(f"the density of {label!r}", density, len(grid)))
        for label, (grid, density) in densities.items()
    }
    top = max(density.max() for _, density in lines.values())
    if not top > 0:
        raise ValueError(f"no density is positive, the largest is {top:g}")
    peaks = [_lowest_peak(density) for _, density in lines.values()]
    with canvas(ax) as axes:
        for label, style in line_styles(lines).items():
            axes.plot(*lines[label], label=label, linewidth=1.0, **style)
        axes.set(xlabel="eigenvalue of the Hessian", ylabel="density", yscale="log")
        # Below 1e-12 of the largest, weights of Lanczos are rounding errors.
        axes.set_ylim(np.clip(min(peaks) / 10, 1e-12 * top, 1e-4 * top), 3 * top)
    return axes


def eigenvalues(values: Mapping[str, Any], *, ax: plt.Axes | None = None) -> plt.Axes:
    """Draws the top eigenvalues of the Hessian by their index, from 1.

    The axis is logarithmic if all are positive and differ by a factor of 100.

    Args:
      values: eigenvalues of each label, as `analysis.top_eigenvalues` returns them. Their number
        may differ.
      ax: where to draw, or None for a new figure.

    Example:
      >>> axes = eigenvalues({"sgd": [90.0, 30.0, 20.0], "sam": [20.0, 9.0, 8.0]})
      >>> axes.get_ylabel()
      'eigenvalue of the Hessian'
      >>> plt.close(axes.figure)
    """
    _check_labels("values", values)
    lines = {label: _line(f"the eigenvalues of {label!r}", of) for label, of in values.items()}
    together = np.concatenate(list(lines.values()))
    with canvas(ax) as axes:
        for label, style in line_styles(lines, markers=True).items():
            axes.plot(np.arange(1, len(lines[label]) + 1), lines[label], label=label, **style)
        if together.min() > 0 and together.max() >= LOG_RATIO * together.min():
            axes.set_yscale("log")
        elif together.min() > 0:
            axes.set_ylim(0, 1.05 * together.max())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set(xlabel="index", ylabel="eigenvalue of the Hessian")
    return axes


def average_sharpness(
    radii: Any, sharpness: Mapping[str, tuple[Any, Any]], *, ax: plt.Axes | None = None
) -> plt.Axes:
    """Draws average sharpness over the radius, as in figure 16 of the XSAM paper.

    Args:
      radii: of shape (points,).
      sharpness: means and standard errors of each label, both of shape (points,), as
        `analysis.average_sharpness` returns them for one radius. The band is two standard errors
        to either side.
      ax: where to draw, or None for a new figure.

    Example:
      >>> axes = average_sharpness([0.1, 0.2], {"sam": ([0.3, 1.2], [0.01, 0.05])})
      >>> axes.get_xlabel()
      'radius $r$ (band: ± 2 standard errors)'
      >>> plt.close(axes.figure)
    """
    _check_labels("sharpness", sharpness)
    radii = _line("radii", radii)
    lines = {
        label: (
            _line(f"the means of {label!r}", means, len(radii)),
            _line(f"the standard errors of {label!r}", errors, len(radii)),
        )
        for label, (means, errors) in sharpness.items()
    }
    with canvas(ax) as axes:
        for label, style in line_styles(lines, markers=True).items():
            means, errors = lines[label]
            axes.plot(radii, means, label=label, **style)
            band = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
            axes.fill_between(radii, means - 2 * errors, means + 2 * errors, **band)
        axes.set(xlabel="radius $r$ (band: ± 2 standard errors)", ylabel="average sharpness")
    return axes


def loss_line(xs: Any, losses: Mapping[str, Any], *, ax: plt.Axes | None = None) -> plt.Axes:
    """Draws losses on a line.

    Args:
      xs: of shape (points,), as for `analysis.loss_line`.
      losses: of each label, of shape (points,). Losses that are not finite leave a gap.
      ax: where to draw, or None for a new figure.

    Example:
      >>> axes = loss_line([-1, 0, 1], {"sgd": [4, 0, 4], "sam": [2, 0, 2]})
      >>> axes.get_ylabel()
      'loss'
      >>> plt.close(axes.figure)
    """
    _check_labels("losses", losses)
    xs = _line("xs", xs)
    lines = {label: _line(f"losses of {label!r}", of, len(xs)) for label, of in losses.items()}
    with canvas(ax) as axes:
        for label, style in line_styles(lines).items():
            axes.plot(xs, lines[label], label=label, **style)
        axes.set(xlabel="$x$ (unit: length of $d$)", ylabel="loss")
    return axes


def alpha_profiles(
    alphas: Any, profiles: Mapping[str, Any], *, normalize: bool = True, ax: plt.Axes | None = None
) -> plt.Axes:
    r"""Draws losses over the interpolation factor, as in figures 2 and 13 of the XSAM paper.

    Colors go from dark to light in the order of the profiles. A marker is at each maximum, a
    vertical line at SAM's direction, :math:`\alpha = 1`.

    Args:
      alphas: of shape (points,), as for `analysis.alpha_profile`.
      profiles: losses of shape (points,) by time of training, such as "epoch 10".
      normalize: whether each profile is scaled to go from 0 to 1.
      ax: where to draw, or None for a new figure.

    Example:
      >>> axes = alpha_profiles([0, 1, 2], {"epoch 1": [1, 3, 2], "epoch 2": [1, 2, 3]})
      >>> axes.get_ylabel()
      'loss, each curve from 0 to 1'
      >>> plt.close(axes.figure)
    """
    _check_labels("profiles", profiles)
    alphas = _line("alphas", alphas)
    lines = {label: _line(f"profile {label!r}", of, len(alphas)) for label, of in profiles.items()}
    for label, losses in lines.items():
        if not np.isfinite(losses).all():
            raise ValueError(f"profile {label!r} must be finite: it has no maximum")
        if normalize:
            lines[label] = (losses - losses.min()) / (np.ptp(losses) or 1.0)
    with canvas(ax) as axes:
        for (label, losses), style in zip(lines.items(), _shades(len(lines)), strict=True):
            maximum = [int(np.argmax(losses))]
            axes.plot(alphas, losses, label=label, markevery=maximum, **style)
        axes.axvline(1.0, color=COLORS["sam"], linewidth=0.6, label="SAM's direction")
        axes.set_xlabel("interpolation factor $\\alpha$")
        axes.set_ylabel("loss, each curve from 0 to 1" if normalize else "loss")
    return axes


def gradient_gap(rhos: Any, rho_maxs: Any, gaps: Any, *, ax: plt.Axes | None = None) -> plt.Axes:
    r"""Draws by how much the loss is higher along SAM's gradient than along the gradient.

    As in figures 11 and 12 of the XSAM paper: above zero, SAM's gradient leads higher.

    Args:
      rhos: the lengths of the ascent, of shape (rows,): one curve each.
      rho_maxs: the distances, of shape (columns,).
      gaps: of shape (rows, columns), as `analysis.gradient_gap` returns them.
      ax: where to draw, or None for a new figure.

    Example:
      >>> axes = gradient_gap([0.1], [0.1, 0.2, 0.3], [[-0.1, 0.1, 0.4]])
      >>> axes.get_xlabel()
      '$\\rho_m$'
      >>> plt.close(axes.figure)
    """
    rhos, rho_maxs = _line("rhos", rhos), _line("rho_maxs", rho_maxs)
    gaps, shape = np.asarray(gaps, float), (len(rhos), len(rho_maxs))
    if gaps.shape != shape:
        expected = f"(len(rhos), len(rho_maxs)) = {shape}"
        raise ValueError(f"gaps must be of shape {expected}, got {gaps.shape}")
    with canvas(ax) as axes:
        axes.axhline(0.0, color="black", linewidth=0.6)
        every = -(-len(rho_maxs) // 8)
        for place, style in enumerate(_shades(len(rhos))):
            # Markers of curves that meet must not hide each other.
            markevery = (place * every // len(rhos), every)
            label = f"$\\rho$ = {rhos[place]:g}"
            axes.plot(rho_maxs, gaps[place], label=label, markevery=markevery, **style)
        axes.set_xlabel("$\\rho_m$")
        axes.set_ylabel("$L(\\theta + \\rho_m \\hat g_1) - L(\\theta + \\rho_m \\hat g_0)$")
    return axes


def _check_labels(name: str, values: Mapping[str, Any]) -> None:
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a dict from label to numbers, got {values!r}")
    if not values:
        raise ValueError(f"{name} is empty: there is nothing to draw")


def _line(name: str, values: Any, length: int | None = None) -> np.ndarray:
    array = np.asarray(values, float)
    if array.ndim != 1 or not array.size or length not in (None, len(array)):
        expected = "(points,)" if length is None else f"({length},)"
        raise ValueError(f"{name} must be of shape {expected}, got {array.shape}")
    return array


def _lowest_peak(density: np.ndarray) -> float:
    inner = density[1:-1]
    peaks = inner[(inner > density[:-2]) & (inner >= density[2:])]
    return float(peaks.min(initial=density.max()))


def _shades(number: int) -> list[dict[str, Any]]:
    # The lightest shades are invisible on white.
    colors = zip(SEQUENTIAL(np.linspace(0.0, 0.85, number)), itertools.cycle(MARKERS), strict=False)
    return [{"color": color, "marker": marker, "linewidth": 1.2} for color, marker in colors]
