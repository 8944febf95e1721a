"""Published settings by name, and defaults for all other combinations."""

import copy
from dataclasses import replace
from typing import Any

from examples.image_classification.config import DEFAULTS, Config
from examples.image_classification.presets import friendly_sam, xsam
from examples.training.check_name import check_name
from examples.training.methods import find_method
from examples.training.presets import Preset, adapt, drop_ignored, without_arguments

__all__ = ["BASES", "NAMED_BY", "PRESETS", "Preset", "configure", "find_preset", "settings_for"]

NAMED_BY = ("dataset", "model", "method")  # the settings in the name of a preset

# As in examples/01_noisy_digits.py, without its wrong labels, and with a network of width 256.
DIGITS: dict[str, Any] = {
    "train_size": 1000,
    "validation_size": 297,
    "label_noise": 0.0,
    "augmentation": (),
    "epochs": 60,
    "batch_size": 64,
    "optimizer": "sgd",
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "rho": 0.3,
    "probe_every": None,
    "alpha_max": 4.0,
    "num_alphas": 41,
}


def _demo(method: str) -> Preset:
    chosen = {"dataset": "digits", "model": "mlp", "method": method, "label_noise": 0.4}
    settings = drop_ignored(DIGITS | {"rho_max": 0.6} | chosen)
    return Preset("examples/01_noisy_digits.py, at one radius and with a wider network", settings)


DEMO = {
    "demo-sgd": _demo("sgd"),
    "demo-sam": _demo("sam"),
    "demo-xsam": _demo("xsam"),
}
PRESETS: dict[str, Preset] = DEMO | xsam.PRESETS | friendly_sam.PRESETS


def _base(name: str, **settings: Any) -> dict[str, Any]:
    published = xsam.PRESETS[name].settings | settings
    return {key: published[key] for key in published if key not in ("dataset", "model", "method")}


# Settings without a preset, with the radius of SAM.
BASES: dict[str, dict[str, Any]] = {
    "digits": DIGITS,
    "cifar10": _base("cifar10-resnet18-sam"),
    "cifar100": _base("cifar100-resnet18-sam"),
    "mnist": _base("cifar10-resnet18-sam", augmentation=("crop",)),  # a mirrored 2 is not a 2
    "fashion_mnist": _base("cifar10-resnet18-sam"),
    "tiny_imagenet": _base("tiny_imagenet-resnet18-sam"),
    **dict.fromkeys(
        ("imagenet2012", "cars196", "oxford_flowers102", "oxford_iiit_pet"),
        _base("imagenet2012-resnet50-sam"),
    ),
}


def find_preset(name: str) -> Preset:
    """Returns the preset of that name.

    Raises:
      ValueError: The name is unknown. The message has the nearest three.
    """
    check_name("preset", name, PRESETS, " (--preset list)")
    return PRESETS[name]


def settings_for(preset: str | None, dataset: str, model: str, method: str) -> dict[str, Any]:
    """Returns the default settings of a choice.

    Args:
      preset: A name of `PRESETS`, whose settings are returned. The other arguments are ignored.
      dataset: The dataset without a preset. A dataset, model and method of the XSAM paper have the
        settings of the paper.
      model: The model. Other models have the settings of the dataset.
      method: A name of `METHODS`. Its radius is the radius of SAM times the usual ratio of the two.
        XSAM probes at twice the radius of SAM.

    Returns:
      Fields of `Config` with their values, in a new dictionary.

    Raises:
      ValueError: The preset, the dataset or the method is unknown.
    """
    if preset is not None:
        return copy.deepcopy(find_preset(preset).settings)
    scale = find_method(method).scale
    if (name := f"{dataset}-{model}-{method}") in xsam.PRESETS:
        return copy.deepcopy(xsam.PRESETS[name].settings)
    check_name("dataset", dataset, BASES)
    settings = {"dataset": dataset, "model": model, "method": method} | BASES[dataset]
    rho = settings["rho"]
    # Methods without these radii ignore them.
    settings |= {"rho": round((scale or 1) * rho, 6), "rho_max": 2 * rho}
    return copy.deepcopy(drop_ignored(settings))


def configure(
    preset: str | None = None,
    *,
    dataset: str | None = None,
    model: str | None = None,
    method: str | None = None,
    **changes: Any,
) -> Config:
    """Returns a configuration with the defaults of the command line.

    Args:
      preset: A name of `PRESETS`. Without one, the settings are those of `settings_for`.
      dataset: The dataset. None is that of the preset, or "digits".
      model: The model. None is that of the preset, or "mlp".
      method: The method. None is that of the preset, or "xsam".
      **changes: Fields of `Config` to change.

    Raises:
      ValueError: A name is unknown.

    Example:
      >>> configure("cifar10-resnet18-sam", epochs=10).rho
      0.15
      >>> configure(method="gsam", seed=3).epochs
      60
    """
    for name in changes:
        check_name("setting", name, DEFAULTS)
    choices = {"dataset": dataset, "model": model, "method": method}
    chosen = {name: choice for name, choice in choices.items() if choice is not None}
    settings = settings_for(
        preset, **{"dataset": "digits", "model": "mlp", "method": "xsam"} | chosen
    )
    config = replace(without_arguments(Config, preset, settings), **chosen | changes)
    return adapt(config, settings, NAMED_BY)
