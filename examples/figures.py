"""The pictures of the examples: column width, one colour per method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

COLORS = {"sgd": "#555555", "sam": "#0072B2", "xsam": "#D55E00"}  # apart for the colour-blind too
WIDTH = 3.3  # inches, a column

plt.rcParams.update({"font.size": 8, "legend.frameon": False, "lines.markersize": 4})


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG, closes it, and returns the file's path."""
    path = path.with_suffix(".png")
    figure.savefig(path, dpi=200, bbox_inches="tight")
    plt.close(figure)
    return path


def band(axes: Any, x: Any, values: np.ndarray, method: str, **style: Any) -> None:
    """Plots the mean over seeds, the first axis, and the range from the lowest to the highest."""
    axes.plot(x, values.mean(axis=0), color=COLORS[method], **style)
    low, high = values.min(axis=0), values.max(axis=0)
    axes.fill_between(x, low, high, color=COLORS[method], alpha=0.2, linewidth=0)


def accuracy_over_rho(
    rhos: Sequence[float], accuracies: Mapping[str, np.ndarray], chosen: Mapping[str, float | None]
) -> Figure:
    """Draws test accuracies of shape (rhos, seeds) by method; SGD has a single row."""
    figure, axes = plt.subplots(figsize=(WIDTH, 2.4))
    for method, tests in accuracies.items():
        color = COLORS[method]
        if method == "sgd":
            axes.axhline(tests.mean(), color=color, linestyle="--", label="SGD")
            axes.axhspan(tests.min(), tests.max(), color=color, alpha=0.2, lw=0)
        else:
            band(axes, rhos, tests.T, method, marker="o", label=method.upper())
            ring = [rho == chosen[method] for rho in rhos].index(True)
            axes.plot(rhos[ring], tests[ring].mean(), "o", ms=8, mfc="none", color=color)
    lowest = min(tests.mean(axis=1).min() for tests in accuracies.values())
    axes.set(xlabel="$\\rho$ (ring: chosen on validation; band: all seeds)")
    axes.set(ylabel="test accuracy (%)")
    axes.set(xscale="log", ylim=(lowest - 3, 100))
    axes.set_xticks(rhos, [f"{rho:g}" for rho in rhos])
    axes.minorticks_off()
    axes.legend(loc="lower left")
    return figure


def alpha_and_psi(alphas: np.ndarray, psis: np.ndarray, title: str) -> Figure:
    """Draws alpha* and the angle psi, of shape (seeds, epochs), over training."""
    figure, (upper, lower) = plt.subplots(2, figsize=(WIDTH, 3.2), sharex=True)
    epochs = np.arange(1, alphas.shape[1] + 1)
    band(upper, epochs, alphas, "xsam")
    band(lower, epochs, np.degrees(psis), "xsam")
    upper.axhline(1.0, color=COLORS["sam"], linestyle="--", label="$\\alpha$ = 1 is SAM")
    upper.legend(loc="upper right")
    upper.set_title(title, fontsize=8)
    upper.set_ylabel("direction $\\alpha^*$")
    lower.set(xlabel="epoch", ylabel="angle $\\psi$ between\\nascent and gradient (°)")
    figure.align_ylabels()
    return figure


def probed_loss(alphas: np.ndarray, losses: np.ndarray, found: np.ndarray, title: str) -> Figure:
    """Draws losses of shape (epochs, alphas) over alpha at a few epochs, and what was found."""
    figure, axes = plt.subplots(figsize=(WIDTH, 2.4))
    for epoch in np.unique(np.linspace(0, len(losses) - 1, 4).astype(int)):
        color = plt.get_cmap("viridis")(0.85 * epoch / len(losses))
        below = losses[epoch] - losses[epoch].max()
        axes.plot(alphas, below, color=color, label=f"{epoch + 1}")
        axes.plot(found[epoch], np.interp(found[epoch], alphas, below), "o", color=color)
    axes.axvline(1.0, color=COLORS["sam"], linestyle="--", linewidth=1)
    axes.set_title(title, fontsize=8)
    axes.set(xlabel="$\\alpha$ (dot: $\\alpha^*$; dashed: SAM)", ylabel="probed loss - its maximum")
    axes.legend(title="epoch", loc="lower left")
    return figure
