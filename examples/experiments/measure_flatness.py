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
from tqdm import tqdm

from examples.experiments.evaluate import Trained
from examples.image_classification.batches import Images, Stream
from examples.image_classification.config import Config
from examples.image_classification.data import load
from examples.image_classification.run_folder import (
    parse_object,
    read_config_file,
    write_atomically,
)
from examples.image_classification.steps import make_program
from xsam_jax import analysis

ANALYSIS = "analysis.json"
FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0)  # of the radius, in the figure
DENSITY = {"num_probes": 2, "num_points": 500}
LEAST = {"images": 1, "batch_size": 1, "directions": 2, "probes": 2, "steps": 0, "seed": 0}


@dataclass(frozen=True, kw_only=True)
class MeasurementOptions:
    """The settings of the measurements."""

    images: int = 1000
    """Number of training images in the loss."""
    batch_size: int = 250
    """Images at a time, a divisor of --images."""
    radius: float = 0.1
    """Radius of the average sharpness."""
    directions: int = 100
    """Random directions of the average sharpness."""
    probes: int = 100
    """Random probes of the trace."""
    steps: int = 80
    """Steps for the density of eigenvalues, 0 for no density."""
    points: int = 21
    """Points on each axis of a landscape, 0 for no landscape."""
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
        if not 0 < self.radius < math.inf:
            raise ValueError(f"--radius must be above 0, not {self.radius:g}")
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
      batches: statistics of BatchNorm and images, of equal size.
      digest: a hash of parameters, statistics and images.
    """

    loss: Callable[..., jax.Array]
    params: Any
    batches: Sequence[tuple[Any, Images]]
    digest: str


class Part(NamedTuple):
    """A measurement: a function, its arguments, and the shape of its result."""

    function: Callable[..., Any]
    settings: dict[str, Any]
    shape: tuple[int, ...]


def make_network(path: Path, trained: Trained, options: MeasurementOptions) -> Network:
    """Returns a trained network with the first images that it was trained on.

    Raises:
      ValueError: there are too few images, or they are decoded as they are read.
    """
    config = read_config_file(path)
    # The images of `trained` have no label noise.
    train = load(dataclasses.replace(config, data_dir=options.data_dir or config.data_dir)).train
    if isinstance(train, Stream):
        raise ValueError(f"{path}: images that are decoded as they are read take too long")
    if options.images > len(train.labels):
        raise ValueError(f"{path} was trained on {len(train.labels)} images: lower --images")
    # The loss does not depend on the method, bfloat16 and the batch size.
    plain = Config(dataset=config.dataset, model=config.model, method="sgd")
    program = make_program(plain, trained.batches.spec._replace(steps_per_epoch=1))
    params, statistics = trained.state.params, trained.state.statistics
    images = train.select(slice(options.images))
    leaves = jax.device_get(jax.tree.leaves((params, statistics, images)))
    digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()
    size = options.batch_size
    rows = [slice(i, i + size) for i in range(0, options.images, size)]
    batches = [(statistics, jax.device_put(train.select(row))) for row in rows]
    return Network(program.loss, params, batches, digest)


def center(loss: Any, params: Any, *, key: jax.Array, **options: Any) -> float:
    """Returns the loss at the parameters."""
    direction = analysis.random_direction(params, normalization="global", key=key)
    return analysis.loss_line(loss, params, direction, [0.0], **options)[0]


def landscape(loss: Any, params: Any, *, points: int, key: jax.Array, **options: Any) -> np.ndarray:
    """Returns the loss on a plane of two random directions, normalized by filters."""
    one, other = (analysis.random_direction(params, key=k) for k in jax.random.split(key))
    places = np.linspace(-1.0, 1.0, points)
    return analysis.loss_surface(loss, params, one, other, places, places, **options)


def sharpness(radius: float) -> str:
    """Returns the name of the average sharpness at a radius."""
    return f"sharpness {radius:g}"


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
        of_radius = {"radius": radius, "num_directions": options.directions}
        parts[sharpness(radius)] = Part(analysis.average_sharpness, of_radius, (2,))
    if chosen and first and options.steps:
        density = DENSITY | {"num_steps": options.steps}
        parts["density"] = Part(analysis.spectral_density, density, (2, DENSITY["num_points"]))
    if chosen and first and options.points:
        points = options.points
        parts["landscape"] = Part(landscape, {"points": points}, (points, points))
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
