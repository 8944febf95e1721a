"""What a preset is, and how its row of a table becomes settings."""

from typing import Any, NamedTuple

CIFAR = ("crop", "flip", "cutout=0.5")  # half of the images, as in the official codes
IMAGENET = ()  # random resized crops and flips are made where it is decoded


class Preset(NamedTuple):
    """A published setting.

    Attributes:
      source: the table it is from, and what that table leaves open and is therefore ours.
      settings: fields of `Config`, with their values.
    """

    source: str
    settings: dict[str, Any]


Row = tuple[str, Preset]


def row(
    source: str, dataset: str, model: str, method: str, suffix: str = "", /, **settings: Any
) -> Row:
    """Returns the name of a preset and the preset; `method_args` become text, as in `Config`."""
    settings = {"dataset": dataset, "model": model, "method": method, "rho": None} | settings
    if "method_args" in settings:
        settings["method_args"] = {key: str(v) for key, v in settings["method_args"].items()}
    return f"{dataset}-{model}-{method}{suffix}", Preset(source, settings)
