"""The settings that all training programs share, and their validation."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from examples.training.methods import find_method

Range = tuple[str, Any, str]  # names of settings, a test of a value, and what it must be


@dataclass(frozen=True)
class Settings:
    """The settings of a run. A training program adds its own in a subclass.

    Attributes:
      program: The name of the training program, `python -m examples.<program>`.
      metric: The metric of validation data by which settings are chosen, in the log.
      unit: The examples of a batch, in the log.
      identity: Settings that every configuration file has.
      ranges: The valid values of the program's own settings.
      of_data: The program's own settings that the compiled program does not depend on.
    """

    program: ClassVar[str]
    metric: ClassVar[str] = "accuracy"
    unit: ClassVar[str] = "images"
    identity: ClassVar[tuple[str, ...]] = ("model", "method", "seed", "epochs")
    ranges: ClassVar[tuple[Range, ...]] = ()
    of_data: ClassVar[tuple[str, ...]] = ()

    preset: str | None = None
    """A published setting by name, which gives other defaults below; `--preset list` lists them."""
    model: str = ""
    """A model by name; `--model list` lists them."""
    method: str = "xsam"
    """A method by name; `--method list` lists them with their arguments."""
    seed: int = 0
    """Seed of all randomness."""

    data_dir: Path | None = None
    """Folder of the data; None is $TFDS_DATA_DIR, else ~/tensorflow_datasets."""

    rho: float | None = None
    """Length of one ascent step."""
    rho_max: float | None = None
    """Radius of XSAM's probes."""
    ascent_steps: int = 1
    """Ascent steps per update, each of length rho, for methods that can take several."""
    sharp_every: int = 1
    """Steps from one sharpness-aware step to the next; steps between take the gradient as it is."""
    probe_every: int | None = None
    """Sharpness-aware steps between XSAM's probes; None is an epoch."""
    alpha_max: float = 2.0
    """XSAM probes alpha from 0 to this value."""
    num_alphas: int = 21
    """Number of values of alpha that XSAM probes."""
    search: Literal["grid", "section"] = "grid"
    """XSAM's search: all values of alpha, or a third of them by a Fibonacci search."""
    probe_batch_size: int | Literal["all"] | None = None
    """Values of alpha whose losses XSAM evaluates together; None is 3 on GPU and TPU, 1 on CPU."""
    method_args: dict[str, str] = field(default_factory=dict, hash=False)
    """Further arguments of the method, as in `--method-args decay 0.6`; see `--method list`."""

    epochs: int = 60
    """Passes over the training data."""
    groups: int = 1
    """Groups of each batch that have a perturbation each (m-sharpness)."""
    accumulate: int = 1
    """Parts of each batch that are evaluated one after the other, to save memory; with groups as
    many as these."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The base optimizer: SGD with weight decay in the gradient, or AdamW."""
    learning_rate: float = 0.05
    """Peak of the learning rate."""
    schedule: Literal["cosine", "inverse_sqrt"] = "cosine"
    """How the learning rate falls after its peak: as a cosine to 0, or as the inverse square root
    of the step, counted from the end of the warmup or from 1."""
    cosine_every: Literal["step", "epoch"] = "step"
    """Whether the cosine falls in every step, or is the same within an epoch."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from 0."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises, in place of epochs."""
    momentum: float = 0.9
    """Momentum of SGD."""
    beta_2: float = 0.999
    """Decay of AdamW's second moment."""
    weight_decay: float = 1e-3
    """Coefficient of the weight decay."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over all classes."""
    bf16: bool = False
    """Compute in bfloat16; parameters, statistics and losses stay in float32."""

    distributed: bool = False
    """Join the processes of a TPU pod slice or cluster (`jax.distributed.initialize`)."""
    distributed_timeout: int = 100
    """Seconds to wait for a sign of life of the other processes."""
    fsdp: bool = False
    """Shard parameters and optimizer state over the devices instead of replicating them."""
    steps_per_dispatch: int | None = None
    """Steps per compiled call; None is 50, and on CPU 20 for an MLP and 1 with convolutions."""
    checkpoint_every: int = 1
    """Epochs between checkpoints; the last epoch and SIGTERM save one, too."""
    keep_epochs: tuple[int, ...] = ()
    """Epochs whose checkpoints are saved and kept beside the last two."""
    evaluate_every: int = 1
    """Epochs between evaluations."""
    out: Path | None = None
    """Folder of the run; None is runs/<preset, or dataset-model-method>/seed<seed>."""

    def __post_init__(self) -> None:
        """Converts values to what the command line has: paths, and arguments as text."""
        changed: dict[str, Any] = {}
        if isinstance(self.method_args, dict):
            changed["method_args"] = {key: str(value) for key, value in self.method_args.items()}
        if isinstance(self.keep_epochs, list):
            changed["keep_epochs"] = tuple(self.keep_epochs)
        for name in ("data_dir", "out"):
            if isinstance(value := getattr(self, name), str | Path):
                changed[name] = Path(value).expanduser()
        for name, value in changed.items():
            object.__setattr__(self, name, value)

    # --- The parts of a training program ---

    def data_name(self) -> str:
        """Returns the name of the data."""
        raise NotImplementedError

    def has_validation(self) -> bool:
        """Returns whether there are validation data."""
        raise NotImplementedError

    def for_evaluation(self) -> "Settings":
        """Returns settings with the same data, without noise, and alike for all methods."""
        raise NotImplementedError

    def loss_batches(self, number: int, size: int) -> list[Any]:
        """Returns the first examples of training, in batches whose mean loss is that of all.

        Raises:
          ValueError: There are too few, or they are not in memory.
        """
        raise NotImplementedError

    def trains_together(self) -> bool:
        """Returns whether several seeds are faster in one program."""
        return False

    def load(self) -> Any:
        """Returns the data as `Batches`."""
        raise NotImplementedError

    def make_program(self, spec: Any) -> Any:
        """Returns the compiled `Program`, given `Batches.spec`."""
        raise NotImplementedError

    def own_ignored_settings(self) -> dict[str, tuple[str, str]]:
        """Returns the program's own settings that do not apply, as `ignored_settings` does."""
        return {}

    def check_own(self) -> None:
        """Raises ValueError where settings of the program do not fit together."""


def defaults(kind: type[Settings]) -> dict[str, Any]:
    """Returns the default of each setting of a program."""
    return vars(kind())


XSAM_SETTINGS = ["rho_max", "probe_every", "alpha_max", "num_alphas", "search", "probe_batch_size"]


def format_metric(metric: str, split: str, value: float) -> str:
    """Returns the value of a metric of a split as text."""
    is_accuracy = metric == "accuracy"
    return f"{split} {value:.2f} %" if is_accuracy else f"{split} {metric.upper()} {value:.2f}"


def run_folder(config: Settings) -> Path:
    """Returns the folder of a run."""
    name = config.preset or f"{config.data_name()}-{config.model}-{config.method}"
    return config.out or Path("runs") / name / f"seed{config.seed}"


def settings_ignored_by(name: str) -> dict[str, str]:
    """Returns the settings that a method ignores, each with the reason."""
    method = find_method(name)
    ignored: dict[str, str] = {}
    if method.scale is None:
        ignored |= dict.fromkeys(("rho", "groups", "sharp_every"), "it has no ascent")
    if not method.steps:
        ignored["ascent_steps"] = "its number of ascent steps is fixed"
    if method.has_base or name in ("look_sam", "eigen_sam"):
        ignored["groups"] = "its state has no rule for groups"
    if method.has_base:
        ignored["sharp_every"] = "it includes the optimizer, which every step needs"
    if name == "look_sam":
        ignored["sharp_every"] = "it has the argument every: --method-args every 5"
    if method.ascends_along:
        reason = "its ascent has another gradient"
        ignored |= dict.fromkeys(("groups", "accumulate"), reason)
    if name == "esam":
        ignored["accumulate"] = "it compares all images of a batch"
    if not name.startswith("xsam"):
        ignored |= dict.fromkeys(XSAM_SETTINGS, "only XSAM searches for alpha")
    return ignored


def ignored_settings(config: Settings) -> dict[str, tuple[str, str]]:
    """Returns the settings that do not apply: for each the choice that ignores it, and why."""
    ignored = config.own_ignored_settings()
    for name, reason in settings_ignored_by(config.method).items():
        ignored[name] = config.method, reason
    if config.method.startswith("xsam") and config.search == "section":
        reason = "it evaluates one alpha at a time"
        ignored["probe_batch_size"] = "the section search", reason
    if config.optimizer != "sgd":
        ignored["momentum"] = config.optimizer, "only SGD has this setting"
    else:
        ignored["beta_2"] = config.optimizer, "only AdamW has this setting"
    if config.schedule != "cosine":
        ignored["cosine_every"] = config.schedule, "only the cosine has this setting"
    return ignored


def check(config: Settings) -> None:
    """Checks the settings before anything is loaded.

    Raises:
      ValueError: A setting is of a wrong type, out of range, missing, or ignored by the method, the
        optimizer or the dataset.
    """
    check_values(config)
    # An ignored setting would hide a mistake.
    default = defaults(type(config))
    for name, (user, reason) in ignored_settings(config).items():
        if getattr(config, name) != default[name]:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{user} does not use {option}: leave it out ({reason})")


def check_values(config: Settings) -> None:
    """Raises ValueError where a setting is of a wrong type, out of range, or missing."""
    check_types(config)
    for names, is_valid, description in (*RANGES, *config.ranges):
        for name in names.split():
            value = getattr(config, name)
            if value is not None and not is_valid(value):
                raise ValueError(f"{name} must be {description}, got {value}")
    config.check_own()
    if config.groups > 1 and config.accumulate not in (1, config.groups):
        raise ValueError(
            f"accumulate must be 1, or {config.groups} like groups, for one group after the other, "
            f"got {config.accumulate}"
        )
    if config.warmup_epochs >= config.epochs:
        raise ValueError(
            f"warmup_epochs {config.warmup_epochs} must be fewer than the {config.epochs} epochs"
        )
    if config.warmup_epochs and config.warmup_steps:
        raise ValueError("give warmup_epochs or warmup_steps, not both")
    ignored = ignored_settings(config)
    if "rho" not in ignored and config.rho is None:
        raise ValueError(f"{config.method} needs --rho, the length of its ascent")
    if config.method == "momentum_sam" and config.optimizer == "sgd" and config.momentum == 0:
        raise ValueError("momentum_sam perturbs along the momentum, but momentum is 0")
    if "rho_max" not in ignored and config.rho_max is None:
        raise ValueError(f"{config.method} needs --rho-max, the radius of its probes")


def check_types(config: Settings) -> None:
    """Raises ValueError where a setting is of another type than the command line would give."""
    hints = get_type_hints(type(config))
    for name, hint in {f.name: hints[f.name] for f in fields(config)}.items():
        value = getattr(config, name)
        try:
            check_type(value, hint, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
            is_right = hint is bool or not isinstance(value, bool)  # a bool is an int to Python
        except TypeCheckError:
            is_right = False
        if not is_right:
            choices = get_args(hint) if get_origin(hint) is Literal else ()
            name_of_type = hint.__name__ if type(hint) is type else str(hint)
            kind = " or ".join(map(repr, choices)) or name_of_type
            raise ValueError(f"{name} must be {kind}, got {value!r}")


RANGES: list[Range] = [
    ("seed", lambda value: 0 <= value < 2**32, "at least 0 and below 2**32"),
    ("warmup_epochs warmup_steps", lambda value: value >= 0, "at least 0"),
    ("weight_decay", lambda value: 0 <= value < math.inf, "at least 0 and finite"),
    (
        "epochs groups accumulate ascent_steps sharp_every",
        lambda value: value >= 1,
        "at least 1",
    ),
    ("distributed_timeout", lambda value: value >= 1, "at least 1"),
    ("probe_every", lambda value: value >= 1, "at least 1"),
    ("probe_batch_size", lambda v: v == "all" or v >= 1, "all or at least 1"),
    ("steps_per_dispatch checkpoint_every evaluate_every", lambda value: value >= 1, "at least 1"),
    ("keep_epochs", lambda value: all(epoch >= 1 for epoch in value), "at least 1"),
    ("num_alphas", lambda value: value >= 2, "at least 2"),
    ("label_smoothing momentum beta_2", lambda v: 0 <= v < 1, "at least 0 and below 1"),
    ("learning_rate alpha_max rho rho_max", lambda v: 0 < v < math.inf, "above 0"),
]
