"""The figure that a run leaves behind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from xsam_jax.analysis.style import COLORS, STYLE, WIDTH, add_legend

plt.style.use(STYLE)

LABELS = {"loss": "loss", "accuracy": "accuracy (%)", "bleu": "BLEU", "alpha": "$\\alpha^*$"}
SPLITS = {"train": COLORS["sgd"], "validation": COLORS["sam"], "test": COLORS["xsam"]}


def save_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the metrics over epochs, and for XSAM alpha* and psi, into a PNG file."""
    rows = ["loss", "accuracy"]
    rows += ["bleu"] if any("bleu" in name for name in history[-1]) else []
    rows += ["alpha"] if "alpha" in history[-1] else []
    figure, grid = plt.subplots(len(rows), figsize=(WIDTH, 1.5 * len(rows)), sharex=True)
    for axes, row in zip(grid, rows, strict=True):
        for split, color in SPLITS.items():
            records = [record for record in history if f"{split}_{row}" in record]
            # A single value, such as the test accuracy after the last epoch, makes no line.
            marker = {"marker": "o", "linestyle": "none"} if len(records) == 1 else {}
            points = zip(*((r["epoch"], r[f"{split}_{row}"]) for r in records), strict=True)
            if records:
                axes.plot(*points, color=color, label=split, **marker)
        axes.set_ylabel(LABELS[row])
    if "alpha" in rows:
        alphas, psis = ([record[name] for record in history] for name in ("alpha", "psi"))
        epochs = [record["epoch"] for record in history]
        marker = {"marker": "o"} if len(history) == 1 else {}
        axes.plot(epochs, alphas, color=COLORS["xsam"], **marker)
        degrees = axes.twinx()
        degrees.plot(epochs, np.degrees(psis), color=COLORS["sam"], linestyle="--", **marker)
        degrees.set_ylabel("$\\psi$ (°), dashed")
    if grid[0].has_data():  # damaged metrics may lack the losses
        add_legend(grid[0])
    grid[-1].set_xlabel("epoch")
    if len(history) == 1:
        grid[-1].set_xticks([history[0]["epoch"]])
    figure.align_ylabels()
    figure.savefig(path, dpi=200, bbox_inches="tight")
    plt.close(figure)
