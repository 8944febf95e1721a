"""Writes the weights of a trained network to a .safetensors file with timm's names, for `--init`.

    python -m examples.experiments.export runs/cifar10-vit_ti-sam/seed0 weights.safetensors

The networks are vit_mini, vit_ti, vit_s, resnet18 and resnet50. timm reads the file, too, where it
has the network, for images of the same size.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from examples.experiments.command_line import read_options, run_command
from examples.experiments.evaluate import restore
from examples.experiments.training_programs import read_config_file
from examples.image_classification.pretrained import save_pretrained


@dataclass(frozen=True)
class Options:
    """The command line."""

    folder: Positional[Path]
    """Folder of a run."""
    file: Positional[Path]
    """File to write."""
    data_dir: Path | None = None
    """Where the data lie. None: where they were during training."""


def run(options: Options) -> None:
    """Writes the weights of the last checkpoint.

    Raises:
      ValueError: the folder holds no run, or timm has no such network.
      OSError: the file cannot be written.
    """
    state = restore(options.folder, options.data_dir).state
    name = read_config_file(options.folder).model
    save_pretrained(options.file, name, state.params, state.statistics)
    print(f"wrote {options.file}")


def main(arguments: list[str] | None = None) -> int:
    """Writes weights and returns the exit status."""
    return run_command(run, read_options(Options, arguments))


if __name__ == "__main__":
    sys.exit(main())
