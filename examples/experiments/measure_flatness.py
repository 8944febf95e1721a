"""Measurements of how flat the minimum of a trained network is, kept beside its run."""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

from examples.experiments.evaluate import Trained
from examples.experiments.training_programs import read_config_file
from examples.training.run_folder import (
    parse_object,
    write_atomically,
)
from xsam_jax import analysis

ANALYSIS = "analysis.json"
FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0)  # of the radius, in the figure
ALPHAS = np.linspace(0.0, 4.0, 41)
GAP_FACTORS, GAP_POINTS = (0.5, 1.0, 2.0), 31  # of rho
DENSITY = {"num_probes": 2, "num_points": 500}
LEAST = {"images": 1, "batch_size": 1, "directions": 2, "probes": 2, "steps": 0, "seed": 0}


@dataclass(frozen=True, kw_only=True)
class MeasurementOptions:
    """The settings of the measurements."""

    images: int = 1000
    """Number of training images, or sentences, in the loss."""
    batch_size: int = 250
    """Images at a time, a divisor of --images."""
    radius: float = 0.1
    """Radius of the average sharpness."""
    directions: int = 250
    """Random directions of the average sharpness."""
    probes: int = 100
    """Random probes of the trace."""
    steps: int = 80
    """Steps for the density of eigenvalues, 0 for no density."""
    points: int = 21
    """Points on each axis of a landscape or plane, 0 for no landscape."""
    plane: bool = False
    """Draw the loss on the plane of gradient and SAM's gradient."""
    profile: bool = False
    """Draw the loss over the interpolation factor alpha."""
    gap: bool = False
    """Draw by how much the loss is higher along SAM's gradient than along the gradient."""
    rho: float = 0.1
    """Length of the ascent of these three, a half and twice of it in the last."""
    rho_max: float = 0.3
    """Distance of the loss over alpha, half the side of the plane, and the largest gap."""
    seed: int = 0
    """Seed of the random directions."""
    data_dir: Path | None = None
    """Where the data lie. None: where they were during training."""

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, least in LEAST.items():
            if (value := getattr(self, name)) < least:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be at least {least}, not {value}")
        if self.points != 0 and self.points < 2:
            raise ValueError(f"--points must be 0 or at least 2, not {self.points}")
        for name in ("radius", "rho", "rho_max"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be above 0, not {value:g}")
        object.__setattr__(self, "batch_size", min(self.batch_size, self.images))
        if self.images % self.batch_size:
            raise ValueError(
                f"--images {self.images} is no multiple of --batch-size {self.batch_size}"
            )


class Network(NamedTuple):
    """A trained network and its loss.

    Attributes:
      loss: `loss(params, batch)`. Networks of one architecture share the function, and so the
        compiled programs.
      params: the parameters.
      batches: statistics of BatchNorm and images, or sentences, of equal size.
      digest: a hash of parameters, statistics and images.
    """

    loss: Callable[..., jax.Array]
    params: Any
    batches: Sequence[tuple[Any, Any]]
    digest: str


class Part(NamedTuple):
    """A measurement: a function, its arguments, and the shape of its result."""

    function: Callable[..., Any]
    settings: dict[str, Any]
    shape: tuple[int, ...]


def make_network(path: Path, trained: Trained, options: MeasurementOptions) -> Network:
    """Returns a trained network with the first images that it was trained on.

    Raises:
      ValueError: there are too few images or sentences, or they are not in memory.
    """
    config = read_config_file(path)
    # The data of `trained` have no label noise.
    config = dataclasses.replace(config, data_dir=options.data_dir or config.data_dir)
    try:
        examples = config.loss_batches(options.images, options.batch_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    # The loss does not depend on the method, bfloat16 and the batch size.
    plain = dataclasses.replace(config.for_evaluation(), model=config.model, method="sgd")
    program = plain.make_program(trained.batches.spec._replace(steps_per_epoch=1))
    params, statistics = trained.state.params, trained.state.statistics
    together = jax.tree.map(lambda *parts: np.concatenate(parts), *examples)
    leaves = jax.device_get(jax.tree.leaves((params, statistics, together)))
    digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()
    batches = [(statistics, jax.device_put(batch)) for batch in examples]
    return Network(program.loss, params, batches, digest)


def center(loss: Any, params: Any, *, key: jax.Array, **options: Any) -> float:
    """Returns the loss at the parameters."""
    del key
    return analysis.loss_line(loss, params, params, [0.0], **options)[0]


def landscape(loss: Any, params: Any, *, points: int, key: jax.Array, **options: Any) -> np.ndarray:
    """Returns the loss on a plane of two random directions, normalized by filters.

    The second one is made orthogonal to the first.
    """
    one, other = (analysis.random_direction(params, key=k) for k in jax.random.split(key))
    share = optax.tree.vdot(one, other) / optax.tree.vdot(one, one)
    other = optax.tree.add_scale(other, -share, one)
    places = np.linspace(-1.0, 1.0, points)
    return analysis.loss_surface(loss, params, one, other, places, places, **options)


def angle(
    loss: Any, params: Any, *, rho: float, key: jax.Array, progress: Any, **options: Any
) -> float:
    """Returns the angle between the gradient and SAM's."""
    del key, progress
    return analysis.ascent_plane(loss, params, rho=rho, **options).psi


def plane(
    loss: Any, params: Any, *, rho: float, rho_max: float, points: int, key: Any, **options: Any
) -> np.ndarray:
    """Returns the loss on the plane of the gradient, the y axis, and SAM's gradient."""
    del key
    found = analysis.ascent_plane(loss, params, rho=rho, batches=options["batches"])
    places = np.linspace(-rho_max, rho_max, points)
    directions = found.direction_x, found.direction_y
    return analysis.loss_surface(loss, params, *directions, places, places, **options)


def profile(
    loss: Any, params: Any, *, rho: float, rho_max: float, key: Any, **options: Any
) -> np.ndarray:
    """Returns the loss over the interpolation factor."""
    del key
    return analysis.alpha_profile(loss, params, ALPHAS, rho=rho, rho_max=rho_max, **options)


def gap(
    loss: Any, params: Any, *, rho: float, rho_max: float, key: Any, **options: Any
) -> np.ndarray:
    """Returns the loss along SAM's gradient minus that along the gradient, by rho and distance."""
    del key
    rhos, distances = [factor * rho for factor in GAP_FACTORS], np.linspace(0, rho_max, GAP_POINTS)
    return analysis.gradient_gap(loss, params, rhos, distances, **options)


KINDS = ("filter", "element")  # the units of the directions of the average sharpness


def sharpness(radius: float, kind: str = "filter") -> str:
    """Returns the name of the average sharpness at a radius."""
    return f"sharpness {radius:g}" if kind == "filter" else f"{kind}-wise sharpness {radius:g}"


def requested(options: MeasurementOptions, chosen: bool, first: bool) -> dict[str, Part]:
    """Returns the measurements of a run by name.

    Args:
      options: the settings of the measurements.
      chosen: whether the figures show the group of the run.
      first: whether the run has the first seed of its group.
    """
    parts = {
        "loss": Part(center, {}, ()),
        "eigenvalues": Part(analysis.top_eigenvalues, {"num": 5}, (5,)),
        "trace": Part(analysis.hessian_trace, {"num_probes": options.probes}, (2,)),
    }
    for radius in {options.radius, *(f * options.radius for f in FACTORS if chosen)}:
        for kind in KINDS:
            settings: dict[str, Any] = {"radius": radius, "num_directions": options.directions}
            settings |= {} if kind == "filter" else {"normalization": kind}
            parts[sharpness(radius, kind)] = Part(analysis.average_sharpness, settings, (2,))
    if chosen and first and options.steps:
        density = DENSITY | {"num_steps": options.steps}
        parts["density"] = Part(analysis.spectral_density, density, (2, DENSITY["num_points"]))
    if chosen and first and options.points:
        points = options.points
        parts["landscape"] = Part(landscape, {"points": points}, (points, points))
    if chosen and first:
        radii = {"rho": options.rho, "rho_max": options.rho_max}
        if options.plane and options.points:
            points = options.points
            parts["plane"] = Part(plane, radii | {"points": points}, (points, points))
            parts["angle"] = Part(angle, {"rho": options.rho}, ())
        if options.profile:
            parts["profile"] = Part(profile, radii, ALPHAS.shape)
        if options.gap:
            parts["gap"] = Part(gap, radii, (len(GAP_FACTORS), GAP_POINTS))
    return parts


def read_analysis(path: Path) -> dict[str, Any]:
    """Returns the earlier measurements of a run.

    Raises:
      ValueError: the file holds something else.
    """
    file = path / ANALYSIS
    found = parse_object(file, file.read_bytes(), []) if file.exists() else {}
    for name, part in found.items():
        try:
            part["settings"]["parameters"], np.asarray(part["result"], float)
        except (TypeError, KeyError, ValueError):
            raise ValueError(f"{file} cannot be read: {name!r} is no measurement") from None
    return found


def measure(
    path: Path,
    network: Network,
    parts: Mapping[str, Part],
    options: MeasurementOptions,
    bar: tqdm,
) -> dict[str, np.ndarray]:
    """Returns the measurements of a network, and keeps them in a file.

    Args:
      path: the folder of the run. Earlier measurements of the same parameters and settings are
        not repeated.
      network: the network.
      parts: the measurements.
      options: the settings of the measurements.
      bar: the progress bar, which shows the name and the progress of each measurement.
    """
    common = {"parameters": network.digest, "images": options.images, "seed": options.seed}
    known = {
        name: part
        for name, part in read_analysis(path).items()
        if part["settings"]["parameters"] == network.digest
    }
    for name, (function, settings, shape) in parts.items():
        earlier = known.get(name)
        same = earlier["settings"] == common | settings if earlier else False
        if same and np.shape(known[name]["result"]) == shape:
            continue
        calls = itertools.count(1)

        def progress(_: Any, name: str = name, calls: Any = calls) -> None:
            bar.set_postfix_str(f"{name}, {next(calls)}", refresh=False)
            bar.update(0)  # draws again, at most ten times a second

        with jax.default_matmul_precision("float32"):  # the default of GPUs and TPUs is lower
            result = function(
                network.loss,
                network.params,
                **settings,
                key=jax.random.key(options.seed),
                batches=network.batches,
                progress=progress,
            )
        known[name] = {"settings": common | settings, "result": np.asarray(result).tolist()}
        write_atomically(path / ANALYSIS, json.dumps(known) + "\n")
    return {name: np.array(known[name]["result"]) for name in parts}
