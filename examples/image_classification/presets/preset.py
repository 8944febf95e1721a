"""The type of a preset, and the conversion of a row of a table to settings."""

from typing import Any, NamedTuple

CIFAR = ("crop", "flip", "cutout=0.5")  # half of the images, as in the official codes
IMAGENET = ()  # decoding includes random resized crops and flips


class Preset(NamedTuple):
    """A published setting.

    Attributes:
      source: The table, and any setting that the table omits and that was chosen here.
      settings: Fields of `Config` with their values.
    """

    source: str
    settings: dict[str, Any]


Row = tuple[str, Preset]


def row(
    source: str, dataset: str, model: str, method: str, suffix: str = "", /, **settings: Any
) -> Row:
    """Returns the name of a preset and the preset, with `method_args` as text as in `Config`."""
    settings = {"dataset": dataset, "model": model, "method": method, "rho": None} | settings
    if "method_args" in settings:
        settings["method_args"] = {key: str(v) for key, v in settings["method_args"].items()}
    return f"{dataset}-{model}-{method}{suffix}", Preset(source, settings)
