"""Methods at equal numbers of gradients, on the noisy digits of the first example.

    python -m examples.experiments.one_gradient            # a quarter of an hour

A method with one gradient a step takes as many in 120 epochs as SAM in 60, and one with a SAM step
in every fifth step in 100. Prints the tables of the first example for each number of epochs, and
the time. docs/methods.md has the results.
"""

import importlib
import time
from pathlib import Path
from typing import Any

import jax
import optax
import tyro

import xsam_jax as sx
from xsam_jax.ascent import normalize, scale_by_radius
from xsam_jax.descent import mix_first
from xsam_jax.gating import every, gated

EPOCHS = {
    120: ("sgd", "momentum_sam", "async_sam"),
    100: ("look_sam", "every fifth step", "radius x 5", "sharpness x 5"),
    60: ("sam", "xsam"),
}


def amplified(rho: float) -> optax.GradientTransformationExtraArgs:
    """Returns the step g + 5 (SAM's gradient - g)."""
    return sx.sharpness_aware(optax.chain(normalize(), scale_by_radius(rho)), mix_first(5.0))


def main(out: Path = Path("runs/one_gradient"), seeds: int = 16, divide: int = 1) -> None:
    """Train all methods.

    Args:
        out: folder of the pictures
        seeds: number of networks per setting
        divide: divides the numbers of epochs, for a trial
    """
    digits: Any = importlib.import_module("examples.01_noisy_digits")
    digits.METHODS |= {
        "every fifth step": lambda rho: gated(sx.sam(rho), every(5)),
        "radius x 5": lambda rho: gated(sx.sam(5 * rho), every(5)),
        "sharpness x 5": lambda rho: gated(amplified(rho), every(5)),
    }
    for epochs, methods in EPOCHS.items():
        epochs = max(1, epochs // divide)
        for method in methods:
            start = time.perf_counter()
            digits.main((method,), seeds=seeds, epochs=epochs, out=out / method.replace(" ", "_"))
            print(f"{method}, {epochs} epochs: {time.perf_counter() - start:.0f} s\n", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)  # two cores share the seeds
    tyro.cli(main)
