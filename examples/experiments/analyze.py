r"""Tells how flat the minima of trained networks are: curvature, sharpness, landscapes.

    python -m examples.experiments.analyze runs/noisy_digits
    python -m examples.experiments.analyze runs/cifar10_small --images 500 --points 0

Reads the finished runs in these folders and below (but for folders named `tuning`) with what their
last checkpoints hold, and prints a table with a row a group of seeds:

* the loss, since one that is high is flat as well;
* λ1 and λ1/λ5, of the largest eigenvalues of the loss's Hessian;
* its trace, from random probes;
* the average sharpness: how much the loss rises on average in random directions, by a step of
  `--radius` times the norm of each filter.

The loss is the mean cross-entropy of the first `--images` training images of a run, with the labels
that it was trained on, wrong ones (`label_noise`) included; without augmentation, label smoothing
and weight decay, in float32, with BatchNorm in evaluation mode. The same random directions are used
for all runs. Numbers are mean ± standard deviation over seeds.

Figures are of what validation chose (*), as in `python -m examples.experiments.compare`:
eigenvalues, sharpness over radii, and of the first seed the density of eigenvalues and the loss on
a plane of two directions normalized by filters. What was measured stays in `analysis.json` beside each run, and is
used again where it is of the same parameters and settings.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from absl import logging
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from examples.experiments import figures
from examples.experiments.arguments import Parser
from examples.experiments.compare import Row, markdown, shared, write_csv
from examples.experiments.evaluate import Trained, restore_last
from examples.experiments.records import (
    Comparison,
    Group,
    Run,
    group,
    read_json,
    read_runs,
    short,
    show,
)
from examples.experiments.seeds import spread
from examples.image_classification.batches import Images, Stream, check_batch_size
from examples.image_classification.config import Config
from examples.image_classification.data import load
from examples.image_classification.devices import cache_compilations
from examples.image_classification.run_folder import (
    TrainingError,
    read_config_file,
    write_atomically,
)
from examples.image_classification.steps import make_program
from xsam_jax import analysis
from xsam_jax.analysis import plots

ANALYSIS = "analysis.json"
FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0)  # of the radius, in the figure
DENSITY = {"num_probes": 2, "num_points": 500}
LEVELS = 15  # of the landscapes
COLUMNS = 4
Wanted = Mapping[str, tuple[Callable[..., Any], dict[str, Any]]]
Found = Mapping[str, np.ndarray]  # by the names in `Wanted`


# --- What is measured ---


class Network(NamedTuple):
    """A trained network and its loss.

    Attributes:
      loss: `loss(params, batch)`; one function for all networks of an architecture, so that what
        is compiled for one serves the others.
      params: its parameters.
      batches: statistics of BatchNorm and images, of equal size.
      digest: tells these parameters, statistics and images from others.
    """

    loss: Callable[..., jax.Array]
    params: Any
    batches: Sequence[tuple[Any, Images]]
    digest: str


def network_of(run: Run, trained: Trained, args: argparse.Namespace) -> Network:
    """Returns a trained network with the first images that it was trained on.

    Raises:
      ValueError: there are not as many, or they are decoded as they are read.
    """
    config = read_config_file(run.path)
    # The images of `trained` have no label noise.
    train = load(dataclasses.replace(config, data_dir=args.data_dir or config.data_dir)).train
    if isinstance(train, Stream):
        raise ValueError(f"{run.path}: images that are decoded as they are read take too long")
    if args.images > len(train.labels):
        raise ValueError(f"{run.path} was trained on {len(train.labels)} images: lower --images")
    # Neither the method nor bfloat16 nor the batch size make another program.
    plain = Config(dataset=config.dataset, model=config.model, method="sgd")
    program = make_program(plain, trained.feed.spec._replace(steps_per_epoch=1))
    params, statistics = trained.state.params, trained.state.statistics
    images = train.select(slice(args.images))
    leaves = jax.device_get(jax.tree.leaves((params, statistics, images)))
    digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()
    rows = [slice(i, i + args.batch_size) for i in range(0, args.images, args.batch_size)]
    batches = [(statistics, jax.device_put(train.select(row))) for row in rows]
    return Network(program.loss, params, batches, digest)


def center(loss: Any, params: Any, *, key: jax.Array, **options: Any) -> float:
    """Returns the loss itself."""
    direction = analysis.random_direction(params, normalization="global", key=key)
    return analysis.loss_line(loss, params, direction, [0.0], **options)[0]


def landscape(loss: Any, params: Any, *, points: int, key: jax.Array, **options: Any) -> np.ndarray:
    """Returns the loss on a plane of two random directions, normalized by filters."""
    one, other = (analysis.random_direction(params, key=k) for k in jax.random.split(key))
    places = np.linspace(-1.0, 1.0, points)
    return analysis.loss_surface(loss, params, one, other, places, places, **options)


def sharpness(radius: float) -> str:
    """Returns the name of what is measured at a radius."""
    return f"sharpness {radius:g}"


def wanted(args: argparse.Namespace, chosen: bool, first: bool) -> Wanted:
    """Returns what to measure of a run by name: a function, and its arguments.

    Args:
      args: of the command line.
      chosen: whether its group is in the figures.
      first: whether it has the first seed of its group.
    """
    parts: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "loss": (center, {}),
        "eigenvalues": (analysis.top_eigenvalues, {"num": 5}),
        "trace": (analysis.hessian_trace, {"num_probes": args.probes}),
    }
    for radius in {args.radius, *(f * args.radius for f in FACTORS if chosen)}:
        settings = {"radius": radius, "num_directions": args.directions}
        parts[sharpness(radius)] = analysis.average_sharpness, settings
    if chosen and first and args.steps:
        parts["density"] = analysis.spectral_density, DENSITY | {"num_steps": args.steps}
    if chosen and first and args.points:
        parts["landscape"] = landscape, {"points": args.points}
    return parts


def measure(
    path: Path, network: Network, parts: Wanted, args: argparse.Namespace, say: Callable[[str], Any]
) -> Found:
    """Returns what is wanted of a network, and keeps it in a file.

    Args:
      path: of the file. What it already has, of the same parameters and settings, is not measured.
      network: the network.
      parts: what is wanted.
      args: of the command line.
      say: called with the name of a part and how far it is, over and over.
    """
    common = {"parameters": network.digest, "images": args.images, "seed": args.seed}
    known = {  # the rest was measured before the run went on
        name: part
        for name, part in read_json(path).items()
        if part["settings"]["parameters"] == network.digest
    }
    for name, (function, settings) in parts.items():
        if known.get(name, {}).get("settings") == common | settings:
            continue
        calls = itertools.count(1)
        with jax.default_matmul_precision("float32"):  # GPUs and TPUs take less by themselves
            result = function(
                network.loss,
                network.params,
                **settings,
                key=jax.random.key(args.seed),
                batches=network.batches,
                progress=lambda _, name=name, calls=calls: say(f"{name}, {next(calls)}"),
            )
        known[name] = {"settings": common | settings, "result": np.asarray(result).tolist()}
        write_atomically(path, json.dumps(known) + "\n")
    return {name: np.array(known[name]["result"]) for name in parts}


def measure_all(
    comparison: Comparison, networks: Mapping[Path, Network], args: argparse.Namespace
) -> tuple[dict[Path, Found], dict[Path, str]]:
    """Returns what was measured of each run, and in words why it was not."""
    found: dict[Path, Found] = {}
    failed: dict[Path, str] = {}
    pairs = [(member, one) for member in comparison.groups for one in member.runs]
    with tqdm(pairs, "analyzing", unit="run", miniters=0, disable=None) as bar:
        for member, one in bar:

            def say(what: str, name: str = f"{member.method}, seed {one.settings['seed']}") -> None:
                bar.set_postfix_str(f"{name}: {what}", refresh=False)
                bar.update(0)  # draws again, at most ten times a second

            parts = wanted(args, member in comparison.chosen, one is member.runs[0])
            network = networks[one.path]
            try:
                found[one.path] = measure(one.path / ANALYSIS, network, parts, args, say)
            except (ValueError, FloatingPointError, RuntimeError) as error:
                failed[one.path] = f"{one.path}: {str(error).splitlines()[0]}"
    return found, failed


# --- Table and figures ---


def over_seeds(member: Group, found: Mapping[Path, Found], name: str) -> np.ndarray:
    """Returns what was measured of a group, seeds along the first axis."""
    return np.stack([found[run.path][name] for run in member.runs])


def rows(comparison: Comparison, found: Mapping[Path, Found], radius: float) -> list[Row]:
    """Returns a row a group: its settings, and what was measured as arrays over seeds."""
    made = []
    for member in comparison.groups:
        star = member in comparison.chosen and len(comparison.chosen) < len(comparison.groups)
        row: Row = {"method": member.method + " *" * star}
        for name in comparison.names:
            row[short(name)] = show(member.settings[name]) if name in member.settings else None
        row["seeds"] = len(member.runs)
        row["loss"] = over_seeds(member, found, "loss")
        values = over_seeds(member, found, "eigenvalues")
        row["λ1"], row["λ1/λ5"] = values[:, 0], values[:, 0] / values[:, 4]
        row["trace"] = over_seeds(member, found, "trace")[:, 0]
        header = f"average sharpness (filter-wise, radius {radius:g})"
        row[header] = over_seeds(member, found, sharpness(radius))[:, 0]
        made.append(row)
    return made


def in_words(value: Any) -> Any:
    """Returns an array as its mean with three digits, and its standard deviation."""
    if not isinstance(value, np.ndarray):
        return value
    size = abs(value.mean())
    return spread(value, max(0, 2 - math.floor(math.log10(size))) if size else 1).strip()


def flat(row: Row) -> Row:
    """Returns a row with mean and standard deviation in cells of their own."""
    cells: Row = {}
    for name, value in row.items():
        if isinstance(value, np.ndarray):
            cells[f"{name} mean"] = value.mean()
            cells[f"{name} std"] = value.std(ddof=1) if len(value) > 1 else None
        else:
            cells[name] = value
    return cells


def errors(found: Mapping[Path, Found], radius: float) -> str:
    """Says how far off the random estimates of one run may be."""
    worst = []
    for name in ("trace", sharpness(radius)):
        means, of_means = np.transpose([of_run[name] for of_run in found.values()])
        worst.append(f"{100 * np.max(np.abs(of_means / means)):.1f} % of the {name.split()[0]}")
    return f"standard error of one run: at most {', '.join(worst)}"


def draw(
    comparison: Comparison, found: Mapping[Path, Found], args: argparse.Namespace
) -> dict[str, Axes]:
    """Returns the figures by name, of the chosen groups alone, as one of their axes."""
    best = Comparison(comparison.chosen)
    groups = {figures.said(best.label(member)): member for member in best.chosen}
    top, rises = {}, {}
    radii = [factor * args.radius for factor in FACTORS]
    for label, member in groups.items():
        top[label] = over_seeds(member, found, "eigenvalues").mean(axis=0)
        of_radii = [over_seeds(member, found, sharpness(radius)) for radius in radii]
        means, of_means = np.transpose(of_radii)  # (seeds, radii), of the directions of each seed
        if len(means) > 1:
            of_means = means.std(axis=0, ddof=1, keepdims=True) / math.sqrt(len(means))
        rises[label] = means.mean(axis=0), of_means[0]
    drawn = {
        "eigenvalues": plots.eigenvalues(top),
        "average_sharpness": plots.average_sharpness(radii, rises),
    }
    drawn["average_sharpness"].set_xticks(radii, [f"{radius:g}" for radius in radii])
    firsts = {label: found[member.runs[0].path] for label, member in groups.items()}
    if args.steps:
        densities = {label: tuple(first["density"]) for label, first in firsts.items()}
        drawn["spectral_density"] = plots.spectral_density(densities)
    if args.points:
        losses = {label: first["landscape"] for label, first in firsts.items()}
        drawn["landscapes"] = draw_landscapes(losses)
    return drawn


def draw_landscapes(losses: Mapping[str, np.ndarray]) -> Axes:
    """Draws the loss around each of several networks, with the same levels."""
    columns = min(len(losses), COLUMNS)
    lines = -(-len(losses) // columns)
    titles = [label.replace(", ", "\n") for label in losses]
    highest = max(title.count("\n") for title in titles)
    size = (1 + 1.5 * columns, 0.4 + (1.6 + 0.15 * highest) * lines)
    _, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
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
    for axes in grid.flat[len(losses) :]:
        axes.axis("off")
    return grid[0, 0]


# --- The command ---


def integer(least: int, or_none: bool = False) -> Callable[[str], int]:
    """Returns what reads an integer of at least that, or 0 too."""

    def read(text: str) -> int:
        if text.isdecimal() and (int(text) >= least or (or_none and int(text) == 0)):
            return int(text)
        zero = "0 or " if or_none else ""
        raise argparse.ArgumentTypeError(f"must be {zero}at least {least}, not {text!r}")

    return read


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = Parser("analyze", __doc__ or "")
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="of runs, or with runs below")
    for name, kind, default, text in (
        ("--images", integer(1), 1000, "the loss is that of so many training images"),
        ("--batch-size", integer(1), 250, "images at a time, a divisor of --images"),
        ("--radius", float, 0.1, "of average sharpness"),
        ("--directions", integer(2), 100, "of average sharpness"),
        ("--probes", integer(2), 100, "of the trace"),
        ("--steps", integer(1, or_none=True), 80, "for the density of eigenvalues, or 0 for none"),
        ("--points", integer(2, or_none=True), 21, "on each axis of a landscape, or 0 for none"),
        ("--seed", integer(0), 0, "of random directions"),
    ):
        add(name, type=kind, default=default, metavar="N", help=f"{text} [{default}]")
    add("--out", type=Path, metavar="DIR", help="for table and figures [analysis in the first one]")
    add("--data-dir", type=Path, metavar="DIR", help="where the data lie [where they were]")
    args = parser.parse_args(argv)
    args.batch_size = min(args.batch_size, args.images)
    if not 0 < args.radius < math.inf:
        parser.error(f"argument --radius: must be above 0, got {args.radius:g}")
    if args.images % args.batch_size:
        parser.error(f"--images {args.images} is no multiple of --batch-size {args.batch_size}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Measures; returns the exit status."""
    args = parse_arguments(argv)
    logging.set_verbosity(logging.FATAL)  # orbax logs tracebacks of what is said in one line
    cache_compilations()
    try:
        run(args)
    except (ValueError, OSError, TrainingError) as error:
        print(f"analyze: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    """Measures all finished runs in these folders, prints and writes a table, and draws.

    Raises:
      ValueError: there is no finished run, or the images will not do.
      OSError: the data are not there, or nothing can be written.
    """
    runs, left_out = read_runs(args.folders)
    if not runs:
        raise ValueError("none of the runs is finished")
    check_batch_size(args.batch_size, args.images, jax.device_count())
    networks: dict[Path, Network] = {}
    for one in tqdm(runs, "restoring", unit="run", disable=None):
        try:
            trained = restore_last(one, args.data_dir)
        except (ValueError, TrainingError) as error:
            left_out.append(str(error))
            continue
        networks[one.path] = network_of(one, trained, args)
    while usable := [one for one in runs if one.path in networks]:
        comparison = Comparison(group(usable))
        found, failed = measure_all(comparison, networks, args)
        left_out += failed.values()
        if not failed:
            break
        # Others may be chosen now, or first; what was measured is not measured again.
        networks = {path: networks[path] for path in found}
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    if not usable:
        raise ValueError("none of the runs could be analyzed")
    table = rows(comparison, found, args.radius)
    words = [{name: in_words(value) for name, value in row.items()} for row in table]
    said = [errors(found, args.radius), *(f"left out: {line}" for line in left_out)]
    runs_are = "1 run" if len(usable) == 1 else f"{len(usable)} runs"
    what = f"{runs_are}, the first {args.images} training images of each."
    lines = [markdown(words), "", *(f"- {line}" for line in said), ""]
    text = "\n".join([*lines, f"{what} {' '.join(shared(comparison))}"])
    print(text)
    out = args.out or args.folders[0] / "analysis"
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text + "\n")
    write_csv([flat(row) for row in table], out / "table.csv")
    drawn = draw(comparison, found, args)
    paths = [figures.save(cast(Figure, axes.figure), out / name) for name, axes in drawn.items()]
    print("\nwrote", out / "table.md", out / "table.csv", *paths, sep="\n  ")


if __name__ == "__main__":
    sys.exit(main())
