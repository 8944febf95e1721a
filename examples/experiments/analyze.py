r"""Measures how flat the minima of trained networks are: curvature, sharpness, landscapes.

    python -m examples.experiments.analyze runs/noisy_digits
    python -m examples.experiments.analyze runs/cifar10_small --images 500 --points 0

Restores the last checkpoints of the finished runs in these folders and all folders below, except
folders named `tuning`. Prints a table with a row for the seeds of each setting:

* the loss, since a minimum with a high loss is often flat,
* λ1 and λ1/λ5, from the largest eigenvalues of the Hessian,
* the trace of the Hessian, from random probes,
* the average sharpness: the mean rise of the loss in random directions, in which each filter moves
  by `--radius` times its norm, or each weight by a random multiple of its size (element-wise).

The loss is the mean cross-entropy of the first `--images` training images of a run with the labels
that it was trained on, wrong ones (`label_noise`) included, or that of as many sentences. It is
computed in float32 without augmentation, label smoothing, dropout and weight decay, with BatchNorm
in evaluation mode. All runs use the same random directions. Numbers are mean ± standard deviation
over seeds.

Figures show the choice by validation accuracy (*), as in `python -m examples.experiments.compare`:
eigenvalues, both kinds of sharpness over radii, and for the first seed the density of eigenvalues
and the loss on a plane of two orthogonal directions that are normalized by filters. `--plane`,
`--profile` and `--gap` add figures of the XSAM paper for the first seed: 5 to 9, 13, 11 and 12.
`--epoch 10` is for the checkpoint of that epoch, which the trainer keeps with `--keep-epochs 10`.
`analysis.json` beside each run keeps the measurements. They are used again for the same parameters
and settings.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import jax
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm
from tyro.conf import Positional

from examples.experiments import figures
from examples.experiments.command_line import read_options, run_command
from examples.experiments.compare import count_runs, markdown, shared, write_table
from examples.experiments.evaluate import restore_all
from examples.experiments.group_runs import Comparison
from examples.experiments.measure_flatness import (
    ALPHAS,
    FACTORS,
    GAP_FACTORS,
    GAP_POINTS,
    KINDS,
    MeasurementOptions,
    Network,
    make_network,
    measure,
    read_analysis,
    requested,
    sharpness,
)
from examples.experiments.read_runs import read_runs
from examples.image_classification.batches import check_batch_size
from xsam_jax import analysis
from xsam_jax.analysis import plots

LEVELS = 15  # of the landscapes
COLUMNS = 4
Measured = Mapping[Path, Mapping[str, np.ndarray]]  # by the folder of a run and the name of a part


@dataclass(frozen=True, kw_only=True)
class Options(MeasurementOptions):
    """The command line."""

    folders: Positional[tuple[Path, ...]]
    """Folders of runs, or with runs below."""
    epoch: int | None = None
    """Epoch of the checkpoint. None: the last one."""
    out: Path | None = None
    """Folder for the table and figures. None: `analysis` or `analysis_epoch10` in the first one."""


def measure_all(
    comparison: Comparison, networks: Mapping[Path, Network], options: Options
) -> tuple[Measured, list[str]]:
    """Returns the measurements of the runs, and descriptions of the runs that failed."""
    found: dict[Path, Mapping[str, np.ndarray]] = {}
    failed: list[str] = []
    runs = comparison.members.loc[comparison.groups.index].explode()
    with tqdm(runs.items(), "analyzing", len(runs), unit="run", miniters=0, disable=None) as bar:
        for group, path in bar:
            bar.set_description("/".join(path.parts[-2:]))
            first = path == comparison.members[group][0]
            parts = requested(options, group in comparison.chosen, first)
            try:
                found[path] = measure(path, networks[path], parts, options, bar)
            except (ValueError, FloatingPointError, RuntimeError) as error:
                failed.append(f"{path}: {str(error).splitlines()[0]}")
    return found, failed


# --- Table and figures ---


def over_seeds(comparison: Comparison, found: Measured, name: str) -> pd.Series:
    """Returns a measurement by group, as arrays with the seeds along the first axis."""
    members = comparison.members.loc[comparison.groups.index]
    return members.map(lambda paths: np.stack([found[path][name] for path in paths]))


def tabulate(comparison: Comparison, found: Measured, radius: float) -> pd.DataFrame:
    """Returns a row a group: its settings, and its measurements as arrays over seeds."""
    table = comparison.describe()
    eigenvalues = over_seeds(comparison, found, "eigenvalues")
    table["loss"] = over_seeds(comparison, found, "loss")
    table["λ1"] = eigenvalues.map(lambda values: values[:, 0])
    table["λ1/λ5"] = eigenvalues.map(lambda values: values[:, 0] / values[:, 4])
    table["trace"] = over_seeds(comparison, found, "trace").map(lambda values: values[:, 0])
    rises = over_seeds(comparison, found, sharpness(radius)).map(lambda values: values[:, 0])
    table[f"average sharpness (filter-wise, radius {radius:g})"] = rises
    by_element = over_seeds(comparison, found, sharpness(radius, "element"))
    table["element-wise"] = by_element.map(lambda values: values[:, 0])
    return table


def standard_errors(found: Measured, radius: float) -> str:
    """Returns a statement on the error of the random estimates of one run."""
    worst = []
    for name in ("trace", sharpness(radius)):
        means, of_means = np.transpose([of_run[name] for of_run in found.values()])
        worst.append(f"{100 * np.max(np.abs(of_means / means)):.1f} % of the {name.split()[0]}")
    return f"standard error of one run: at most {', '.join(worst)}"


def draw(comparison: Comparison, found: Measured, options: Options) -> dict[str, Axes]:
    """Returns figures of the chosen groups by name, each as one of its axes."""
    best = comparison.choice()
    labels = {group: figures.format_label(best.label(group)) for group in best.chosen}

    def by_label(name: str) -> dict[str, np.ndarray]:
        return over_seeds(best, found, name)[best.chosen].rename(labels).to_dict()

    top = {label: values.mean(axis=0) for label, values in by_label("eigenvalues").items()}
    drawn: dict[str, Axes] = {"eigenvalues": plots.eigenvalues(top)}
    radii = [factor * options.radius for factor in FACTORS]
    for kind in KINDS:
        of_radii = [by_label(sharpness(radius, kind)) for radius in radii]
        rises = {}
        for label in labels.values():
            # Of shape (seeds, radii). The errors are those of the directions of each seed.
            means, errors = np.transpose([values[label] for values in of_radii])
            if len(means) > 1:
                errors = means.std(axis=0, ddof=1, keepdims=True) / math.sqrt(len(means))
            rises[label] = means.mean(axis=0), errors[0]
        axes = plots.average_sharpness(radii, rises)
        axes.set_xticks(radii, [f"{radius:g}" for radius in radii])
        drawn["average_sharpness" + ("" if kind == "filter" else f"_{kind}")] = axes
    firsts = {label: found[best.members[group][0]] for group, label in labels.items()}
    if options.steps:
        densities = {label: tuple(first["density"]) for label, first in firsts.items()}
        drawn["spectral_density"] = plots.spectral_density(densities)
    if options.points:
        losses = {label: first["landscape"] for label, first in firsts.items()}
        drawn["landscapes"] = draw_landscapes(losses)
    drawn |= draw_ascents(firsts, options)
    return drawn


def draw_ascents(
    firsts: Mapping[str, Mapping[str, np.ndarray]], options: Options
) -> dict[str, Axes]:
    """Draws the planes, profiles and gaps that were asked for."""
    drawn = {}
    rho, rho_max = options.rho, options.rho_max
    if options.plane and options.points:
        titles, grid = make_grid(list(firsts), 3.0)
        places = np.linspace(-rho_max, rho_max, options.points)
        for title, first, axes in zip(titles, firsts.values(), grid.flat, strict=False):
            psi = float(first["angle"])
            gradients = np.array([[0.0, 1.0], [math.sin(psi), math.cos(psi)]])
            path = np.array([[0.0, 0.0], [0.0, rho]])
            found = analysis.AscentPlane(None, None, path, gradients, psi)
            plots.ascent_plane(found, places, places, first["plane"], rho=rho, ax=axes)
            axes.set_title(title, fontsize=8)
        drawn["planes"] = grid[0, 0]
    if options.profile:
        profiles = {label: first["profile"] for label, first in firsts.items()}
        drawn["loss_over_alpha"] = plots.alpha_profiles(ALPHAS, profiles)
    if options.gap:
        titles, grid = make_grid(list(firsts), 2.5)
        rhos, distances = [f * rho for f in GAP_FACTORS], np.linspace(0, rho_max, GAP_POINTS)
        for title, first, axes in zip(titles, firsts.values(), grid.flat, strict=False):
            plots.gradient_gap(rhos, distances, first["gap"], ax=axes)
            axes.set_title(title, fontsize=8, loc="right")  # the legend is on the left
            if axes is not grid[0, 0]:  # all have the same
                axes.get_legend().remove()
                axes.set_ylabel("")
        drawn["gradient_gap"] = grid[0, 0]
    return drawn


def make_grid(labels: Sequence[str], side: float) -> tuple[list[str], np.ndarray]:
    """Returns titles, and a grid of axes of that side for them."""
    columns = min(len(labels), COLUMNS)
    lines = -(-len(labels) // columns)
    titles = [label.replace(", ", "\n") for label in labels]
    highest = max(title.count("\n") for title in titles)
    size = (1 + side * columns, 0.4 + (side + 0.1 + 0.15 * highest) * lines)
    _, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat[len(labels) :]:
        axes.axis("off")
    return titles, grid


def draw_landscapes(losses: Mapping[str, np.ndarray]) -> Axes:
    """Draws the loss around each of several networks, with the same levels."""
    titles, grid = make_grid(list(losses), 1.5)
    columns = grid.shape[1]
    finite = np.concatenate([values[np.isfinite(values)] for values in losses.values()])
    between = np.geomspace(max(finite.min(), 1e-3 * finite.max()), finite.max(), LEVELS)
    levels = np.unique([float(f"{level:.2g}") for level in between])
    for title, values, axes in zip(titles, losses.values(), grid.flat, strict=False):
        places = np.linspace(-1.0, 1.0, len(values))
        plots.loss_surface(places, places, values, levels=levels, ax=axes)
        axes.set_title(title, fontsize=8)
        axes.set(xlabel="$x$", ylabel="$y$")
        axes.label_outer()
        if axes is not grid.flat[columns - 1]:
            axes.collections[0].colorbar.remove()
    return grid[0, 0]


# --- The command ---


def run(options: Options) -> None:
    """Measures all finished runs, prints and writes a table, and draws.

    Raises:
      ValueError: there is no finished run, or its images or files are not usable.
      OSError: the data are not there, or nothing can be written.
    """
    runs = read_runs(options.folders)
    for path in runs.table.index:
        read_analysis(path)  # before hours of measuring
    check_batch_size(options.batch_size, options.images, jax.device_count())
    trained, left_out = restore_all(runs, options.data_dir, "restoring", options.epoch)
    networks = {path: make_network(path, one, options) for path, one in trained.items()}
    while networks:
        comparison = Comparison(runs.select(list(networks)))
        found, failed = measure_all(comparison, networks, options)
        left_out += failed
        if not failed:
            break
        # Others may be chosen now, or be the first seed.
        networks = {path: networks[path] for path in found}
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    if not networks:
        raise ValueError("none of the runs could be analyzed")
    table = tabulate(comparison, found, options.radius)
    statements = [standard_errors(found, options.radius), *(f"left out: {x}" for x in left_out)]
    epoch = f", after epoch {options.epoch}" if options.epoch else ""
    images = f"{count_runs(networks)}{epoch}, the first {options.images} training images of each."
    if options.plane or options.profile or options.gap:
        images += f" Ascents of length {options.rho:g}, distances up to {options.rho_max:g}."
    lines = [markdown(table, digits=None), "", *(f"- {line}" for line in statements), ""]
    text = "\n".join([*lines, f"{images} {shared(comparison)}"])
    print(text)
    name = "analysis" if options.epoch is None else f"analysis_epoch{options.epoch}"
    out = options.out or options.folders[0] / name
    paths = write_table(table, text, out)
    for name, axes in draw(comparison, found, options).items():
        paths.append(figures.save(cast(Figure, axes.figure), out / name))
    print("\nwrote", *paths, sep="\n  ")


def main(arguments: list[str] | None = None) -> int:
    """Measures runs and returns the exit status."""
    return run_command(run, read_options(Options, arguments))


if __name__ == "__main__":
    sys.exit(main())
