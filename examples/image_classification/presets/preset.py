"""The conversion of a row of a table to a preset."""

from typing import Any

from examples.training.presets import Preset

CIFAR = ("crop", "flip", "cutout=0.5")  # half of the images, as in the official codes
IMAGENET = ()  # decoding includes random resized crops and flips


Row = tuple[str, Preset]


def row(
    source: str, dataset: str, model: str, method: str, suffix: str = "", /, **settings: Any
) -> Row:
    """Returns the name of a preset and the preset, with `method_args` as text as in `Config`."""
    settings = {"dataset": dataset, "model": model, "method": method, "rho": None} | settings
    if "method_args" in settings:
        settings["method_args"] = {key: str(v) for key, v in settings["method_args"].items()}
    return f"{dataset}-{model}-{method}{suffix}", Preset(source, settings)
