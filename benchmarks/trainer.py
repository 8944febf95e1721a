"""The time that XSAM adds to an epoch of the trainer.

Supports the claim that an epoch of 400 steps of ResNet-8 takes 1.018 of SAM's time with one probe,
and 1.031 with a probe every 100 steps.
"""

from typing import Any

import jax
import numpy as np

from benchmarks.measure import markdown, number, progress, seconds
from benchmarks.tables import NUM_ALPHAS, Bench
from examples.image_classification.batches import DataSpec, Images
from examples.image_classification.config import Config
from examples.image_classification.steps import Program, TracedSettings

IMAGE = (32, 32, 3)
STEPS = {"tiny": 4, "full": 400, "large": 400}
HORIZONS = {"tiny": (2, 4), "full": (100, 400), "large": (100, 400)}
BATCHES = {  # on CPU an epoch takes minutes
    "tiny": {"mlp": 4},
    "full": {"mlp": 125, "resnet8": 32},
    "large": {"mlp": 125, "resnet18": 125},
}


class _Training:
    """A run of the trainer on images of noise, one step at a time."""

    def __init__(self, model: str, size: str, **method: Any) -> None:
        batch_size, steps = BATCHES[size][model], STEPS[size]
        config = Config(dataset="cifar10", model=model, batch_size=batch_size, **method)
        program = Program(config, DataSpec(IMAGE, 10, (0.5,) * 3, (0.25,) * 3, steps))
        rng = np.random.default_rng(0)
        self._arrays = Images(
            jax.numpy.asarray(rng.integers(0, 256, (steps * batch_size, *IMAGE), np.uint8)),
            jax.numpy.asarray(rng.integers(0, 10, steps * batch_size, np.int32)),
        )
        self._rows = np.arange(steps * batch_size, dtype=np.int32).reshape(steps, 1, batch_size)
        self._inputs = TracedSettings.of(config)
        self._state = program.init(self._inputs)
        state, arrays, rows = self._state, self._arrays, self._rows[0]
        self._step = program.train_steps.lower(state, arrays, rows, self._inputs).compile()

    def __call__(self, step: int) -> float:
        def run() -> Any:
            self._state, metrics = self._step(
                self._state, self._arrays, self._rows[step], self._inputs
            )
            return metrics

        return seconds(run)


def trainer(bench: Bench) -> str:
    """Times an epoch with SAM, and with XSAM probing every so many steps."""
    rows = [_row(model, bench.size) for model in BATCHES[bench.size]]
    horizons = HORIZONS[bench.size]
    header = ["epoch / SAM's"]
    for horizon in horizons:
        header += [f"XSAM, T = {horizon}", "predicted"]
    return markdown(header, rows)


def _row(model: str, size: str) -> list[str]:
    runs = [_Training(model, size, method="sam", rho=0.05)]
    for horizon in HORIZONS[size]:
        xsam = {"method": "xsam", "rho": 0.05, "rho_max": 0.1, "probe_every": horizon}
        runs.append(_Training(model, size, num_alphas=NUM_ALPHAS, **xsam))
    times = np.zeros((STEPS[size], len(runs)))
    for step in progress(STEPS[size], f"{model}: epoch"):
        for turn in range(len(runs)):
            index = (step + turn) % len(runs)
            times[step, index] = runs[index](step)
    row = [f"{model}, batch {BATCHES[size][model]}"]
    for index, horizon in enumerate(HORIZONS[size], start=1):
        ratio = times[:, index].sum() / times[:, 0].sum()
        plain = np.arange(STEPS[size]) % horizon > 0
        without = times[plain, index].sum() / times[plain, 0].sum()
        row += [f"{number(ratio, 3)} [{number(without, 3)}]"]
        row += [number(1 + NUM_ALPHAS / (6 * horizon), 3)]
    return row
