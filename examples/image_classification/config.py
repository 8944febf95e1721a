"""What the trainer trains, and the command line that sets it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from examples.image_classification.methods import find_method


@dataclass(frozen=True)
class Config:
    """Trains an image classifier, or goes on with a run that was interrupted."""

    preset: str | None = None
    """A published setting by name, for other defaults below; `--preset list` lists them."""
    dataset: str = "digits"
    """digits, cifar10, cifar100, mnist, fashion_mnist, tiny_imagenet, imagenet2012."""
    model: str = "mlp"
    """As listed by `--model list`."""
    method: str = "xsam"
    """As listed by `--method list`."""
    seed: int = 0
    """Of the weights, the order of the images, augmentation, and which labels are wrong."""

    data_dir: Path | None = None
    """Where the data lie; None is $TFDS_DATA_DIR, else the library's own folder."""
    train_size: int | None = None
    """Train on so many of the training images; None is all that are not for validation."""
    validation_size: int = 0
    """So many training images are for validation; the test images then wait for the last epoch."""
    label_noise: float = 0.0
    """Share of training labels replaced by another class, at random."""
    augmentation: tuple[str, ...] = ()
    """In the order given: crop, flip, cutout, resized_crop, erasing; cutout=0.5 for half of the
    images, resized_crop=0.8 for parts of at least that area. ImageNet's are cropped and flipped
    already."""

    rho: float | None = None
    """Length of one ascent step."""
    rho_max: float | None = None
    """Radius of XSAM's probes."""
    ascent_steps: int = 1
    """Ascent steps an update, each of length rho, where the method can take several."""
    probe_every: int | None = None
    """Steps between XSAM's probes; None is an epoch."""
    alpha_max: float = 2.0
    """XSAM probes alpha from 0 to this."""
    num_alphas: int = 21
    """So many values of alpha."""
    method_args: dict[str, str] = field(default_factory=dict, hash=False)
    """What else the method takes, as in `--method-args decay 0.6`; see `--method list`."""

    epochs: int = 60
    batch_size: int = 64
    """Of all devices together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The base optimizer: SGD with weight decay in the gradient, or AdamW."""
    learning_rate: float = 0.05
    """At its peak; falls to 0 as a cosine."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from 0."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 1e-3
    label_smoothing: float = 0.0
    bf16: bool = False
    """Compute in bfloat16; parameters, statistics and losses stay in float32."""

    distributed: bool = False
    """Join the processes of a TPU pod slice or cluster (`jax.distributed.initialize`)."""
    fsdp: bool = False
    """Shard parameters and optimizer state over the devices, in place of a copy on each."""
    steps_per_dispatch: int | None = None
    """Steps in a compiled call; None is 1 on CPU, where convolutions in loops are slow, else 50."""
    checkpoint_every: int = 1
    """Epochs between checkpoints; the last epoch and SIGTERM save one, too."""
    evaluate_every: int = 1
    """Epochs between evaluations."""
    out: Path | None = None
    """Where the run is kept; None is runs/<preset, or dataset-model-method>/seed<seed>."""

    def __post_init__(self) -> None:
        """Makes paths of strings, and names of a string with names."""
        if isinstance(self.augmentation, str):
            object.__setattr__(self, "augmentation", tuple(self.augmentation.split()))
        for name in ("data_dir", "out"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Path(value))


def run_folder(config: Config) -> Path:
    """Returns the folder of a run."""
    name = config.preset or f"{config.dataset}-{config.model}-{config.method}"
    return config.out or Path("runs") / name / f"seed{config.seed}"


def _at_least(low: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value >= low, f"at least {low}"


def _share(value: float) -> bool:
    return 0 <= value < 1


RANGES: list[tuple[str, Callable[[Any], bool], str]] = [
    *((name, *_at_least(0)) for name in ("seed", "validation_size", "warmup_epochs")),
    *((name, *_at_least(1)) for name in ("train_size", "ascent_steps", "probe_every", "epochs")),
    *((name, *_at_least(1)) for name in ("batch_size", "steps_per_dispatch")),
    *((name, *_at_least(1)) for name in ("checkpoint_every", "evaluate_every")),
    *((name, *_at_least(0)) for name in ("weight_decay",)),
    *((name, *_at_least(2)) for name in ("num_alphas",)),
    *((name, _share, "at least 0 and below 1") for name in ("label_noise", "label_smoothing")),
    ("momentum", _share, "at least 0 and below 1"),
    *((n, lambda value: 0 < value < math.inf, "above 0") for n in ("learning_rate", "alpha_max")),
    *((n, lambda value: 0 < value < math.inf, "above 0") for n in ("rho", "rho_max")),
]


def check(config: Config) -> None:
    """Raises ValueError where a value is out of its range."""
    for name, valid, description in RANGES:
        value = getattr(config, name)
        if value is not None and not valid(value):
            raise ValueError(f"{name} must be {description}, got {value}")
    if config.seed >= 2**32:
        raise ValueError(f"seed must be below 2**32, got {config.seed}")
    if config.warmup_epochs >= config.epochs:
        raise ValueError(
            f"warmup_epochs {config.warmup_epochs} must be fewer than the {config.epochs} epochs"
        )
    if find_method(config.method).scale is not None and config.rho is None:
        raise ValueError(f"{config.method} needs --rho, the length of its ascent")
    if config.method.startswith("xsam") and config.rho_max is None:
        raise ValueError(f"{config.method} needs --rho-max, the radius of its probes")
