"""Settings by name: those of published tables, and what is taken where there is none."""

import copy
import difflib
from typing import Any

from examples.image_classification.config import Config
from examples.image_classification.methods import find_method
from examples.image_classification.names import hint
from examples.image_classification.presets import friendly_sam, xsam
from examples.image_classification.presets.preset import Preset

__all__ = ["BASES", "PRESETS", "Preset", "configure", "find_preset", "settings_for"]

# As in examples/01_noisy_digits.py, without its wrong labels.
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


def _demo(method: str, **radii: float | None) -> Preset:
    chosen = {"dataset": "digits", "model": "mlp", "method": method, "label_noise": 0.4}
    return Preset("examples/01_noisy_digits.py, at one radius", DIGITS | chosen | radii)


DEMO = {
    "demo-sgd": _demo("sgd", rho=None),
    "demo-sam": _demo("sam"),
    "demo-xsam": _demo("xsam", rho_max=0.6),
}
PRESETS: dict[str, Preset] = DEMO | xsam.PRESETS | friendly_sam.PRESETS


def _base(name: str, **settings: Any) -> dict[str, Any]:
    published = xsam.PRESETS[name].settings | settings
    return {key: published[key] for key in published if key not in ("dataset", "model", "method")}


# For a model or a method without a preset, with the radius of SAM.
BASES: dict[str, dict[str, Any]] = {
    "digits": DIGITS,
    "cifar10": _base("cifar10-resnet18-sam"),
    "cifar100": _base("cifar100-resnet18-sam"),
    "mnist": _base("cifar10-resnet18-sam", augmentation=("crop",)),  # a mirrored 2 is no 2
    "fashion_mnist": _base("cifar10-resnet18-sam"),
    "tiny_imagenet": _base("tiny_imagenet-resnet18-sam"),
    "imagenet2012": _base("imagenet2012-resnet50-sam"),
}


def find_preset(name: str) -> Preset:
    """Returns the preset of that name.

    Raises:
      ValueError: there is none; the message names the nearest three.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name.lower(), PRESETS, n=3)
        nearest = f"the nearest are {', '.join(near)}; " if near else ""
        raise ValueError(f"unknown preset {name!r}; {nearest}--preset list shows all")
    return PRESETS[name]


def settings_for(preset: str | None, dataset: str, model: str, method: str) -> dict[str, Any]:
    """Returns settings to start from.

    Args:
      preset: a name of `PRESETS`; its settings are returned, whatever the other arguments are.
      dataset: without a preset, what to train on. Where the XSAM paper has this dataset, model and
        method, the settings are the paper's.
      model: the model, by name. Else it changes nothing: the settings are those of the dataset.
      method: a name of `METHODS`. Its radius is that of SAM, times what suits the method; XSAM
        probes at twice SAM's radius.

    Returns:
      Fields of `Config` with their values, in a new dictionary.

    Raises:
      ValueError: the preset, the dataset or the method is unknown.
    """
    if preset is not None:
        return copy.deepcopy(find_preset(preset).settings)
    scale = find_method(method).scale
    if (name := f"{dataset}-{model}-{method}") in xsam.PRESETS:
        return copy.deepcopy(xsam.PRESETS[name].settings)
    if dataset not in BASES:
        raise ValueError(f"unknown dataset {dataset!r}; {hint(dataset, BASES)}")
    settings = {"dataset": dataset, "model": model, "method": method} | BASES[dataset]
    rho = settings["rho"]
    settings["rho"] = None if scale is None else round(scale * rho, 6)
    if method.startswith("xsam"):
        settings["rho_max"] = 2 * rho
    return copy.deepcopy(settings)


def configure(
    preset: str | None = None,
    *,
    dataset: str = "digits",
    model: str = "mlp",
    method: str = "xsam",
    **changes: Any,
) -> Config:
    """Returns a configuration with the defaults of the command line.

    Args:
      preset: a name of `PRESETS`; without one, see `settings_for`.
      dataset: without a preset, what to train on.
      model: without a preset, what to train.
      method: without a preset, how.
      **changes: fields of `Config` to change.

    Example:
      >>> configure("cifar10-resnet18-sam", epochs=10).rho
      0.15
      >>> configure(method="gsam", seed=3).epochs
      60
    """
    return Config(**settings_for(preset, dataset, model, method) | {"preset": preset} | changes)
