"""The pictures of the examples: column width, one colour per method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

# Apart for the colour-blind too.
COLORS = {"sgd": "#555555", "sam": "#0072B2", "xsam": "#D55E00"}
FURTHER = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # of other methods, in their order
MARKERS = "osD^v<>"
WIDTH = 3.3  # inches, a column

plt.rcParams.update({"font.size": 8, "legend.frameon": False, "lines.markersize": 4})


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG, closes it, and returns the file's path."""
    path = path.with_suffix(".png")
    figure.savefig(path, dpi=200, bbox_inches="tight")
    plt.close(figure)
    return path


def band(axes: Any, x: Any, values: np.ndarray, color: str, **style: Any) -> None:
    """Plots the mean over seeds, the first axis, and the range from the lowest to the highest."""
    axes.plot(x, values.mean(axis=0), color=color, **style)
    low, high = values.min(axis=0), values.max(axis=0)
    axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


Tests = Mapping[str, Mapping[Any, np.ndarray]]  # accuracies of the seeds, by method and rho


def accuracy_over_rho(tests: Tests, chosen: Mapping[str, float | None]) -> Figure:
    """Draws test accuracies over rho: in one picture, or of many methods in a panel each."""
    others = [method for method in tests if method not in COLORS]
    if len(others) > len(FURTHER):
        return _accuracy_in_panels(tests, chosen)
    colors = COLORS | dict(zip(others, FURTHER, strict=False))
    figure, axes = plt.subplots(figsize=(WIDTH, 2.4))
    for method, marker in zip(tests, MARKERS, strict=False):
        if method == "sgd":
            values = tests[method][None]
            axes.axhline(values.mean(), color=colors[method], linestyle="--", label="SGD")
            axes.axhspan(values.min(), values.max(), color=colors[method], alpha=0.2, lw=0)
        else:
            _curve(axes, tests[method], chosen[method], colors[method], marker)
            axes.lines[-2].set_label(method.upper())
    grids = {tuple(of_rho) for method, of_rho in tests.items() if method != "sgd"}
    axes.set(xlabel="$\\rho$ (ring: chosen on validation; band: all seeds)")
    axes.set(ylabel="test accuracy (%)", xscale="log", ylim=(_lowest(tests) - 3, 100))
    if len(grids) == 1:
        _ticks(axes, *grids)
    axes.legend(loc="lower left")
    return figure


def _accuracy_in_panels(tests: Tests, chosen: Mapping[str, float | None]) -> Figure:
    """Draws each method over its own rho, beside what SGD and SAM reach at their best."""
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
        _curve(axes, tests[method], chosen[method], COLORS.get(method, FURTHER[0]), "o")
        axes.set_title(method, fontsize=8, pad=3)
        axes.set(xscale="log", ylim=(max(_lowest(tests), 60) - 3, 100))
        _ticks(axes, list(tests[method]), fontsize=6)
    figure.supxlabel(
        "$\\rho$ (ring: chosen on validation; band: all seeds; dashed: SGD, dotted: SAM, chosen)",
        fontsize=8,
    )
    figure.supylabel("test accuracy (%)", fontsize=8)
    figure.tight_layout(h_pad=0.3, w_pad=0.3)
    return figure


def _curve(
    axes: Any, of_rho: Mapping[Any, np.ndarray], chosen: float | None, color: str, marker: str
) -> None:
    band(axes, list(of_rho), np.stack(list(of_rho.values()), axis=1), color, marker=marker)
    axes.plot(chosen, of_rho[chosen].mean(), "o", ms=8, mfc="none", color=color)


def _ticks(axes: Any, rhos: Sequence[float], **style: Any) -> None:
    axes.set_xticks(rhos, [f"{rho:g}" for rho in rhos], **style)
    axes.minorticks_off()


def _lowest(tests: Tests) -> float:
    return min(values.mean() for of_rho in tests.values() for values in of_rho.values())


def alpha_and_psi(alphas: np.ndarray, psis: np.ndarray, title: str) -> Figure:
    """Draws alpha* and the angle psi, of shape (seeds, epochs), over training."""
    figure, (upper, lower) = plt.subplots(2, figsize=(WIDTH, 3.2), sharex=True)
    epochs = np.arange(1, alphas.shape[1] + 1)
    band(upper, epochs, alphas, COLORS["xsam"])
    band(lower, epochs, np.degrees(psis), COLORS["xsam"])
    upper.axhline(1.0, color=COLORS["sam"], linestyle="--", label="$\\alpha$ = 1 is SAM")
    upper.legend(loc="upper right")
    upper.set_title(title, fontsize=8)
    upper.set_ylabel("direction $\\alpha^*$")
    lower.set(xlabel="epoch", ylabel="angle $\\psi$ between\\nascent and gradient (°)")
    figure.align_ylabels()
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
