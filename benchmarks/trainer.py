"""The time that XSAM adds to an epoch of the trainer, and the trainer to a bare loop.

Supports the claims that a probe adds the time of its forward passes, and that checks, metrics and
progress of the trainer add at most 5 % to a loop without them.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.measure import markdown, number, paired_ratios, progress, seconds, spread
from benchmarks.step_costs import NUM_ALPHAS, Bench
from examples.image_classification.batches import Batches, Dataset, DataSpec, Images
from examples.image_classification.config import Config
from examples.image_classification.models import make_model
from examples.image_classification.program import ImageProgram
from examples.training.optimizer import make_schedule
from examples.training.program import TracedSettings
from examples.training.progress import Progress, StopRequest
from examples.training.run_folder import RunFolder
from examples.training.train import Run, train_epoch
from xsam_jax import sam

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
        program = ImageProgram(config, DataSpec(IMAGE, 10, (0.5,) * 3, (0.25,) * 3, steps))
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


EPOCHS = {"tiny": 2, "full": 20, "large": 20}
STEPS_PER_EPOCH = {  # as many as CIFAR-10 has, where a step is short
    "tiny": {"mlp": 4},
    "full": {"mlp": 400, "resnet8": 50},
    "large": {"mlp": 400, "resnet18": 400},
}


def overhead(bench: Bench) -> str:
    """Times epochs of the trainer against a bare loop over the same data, with SAM."""
    rows = [_overhead(model, bench.size) for model in BATCHES[bench.size]]
    return markdown(["", "images/s of a bare loop", "epoch of the trainer / bare loop"], rows)


def _overhead(model: str, size: str) -> list[str]:
    rounds, batch_size, steps = EPOCHS[size], BATCHES[size][model], STEPS_PER_EPOCH[size][model]
    settings: Any = {"model": model, "batch_size": batch_size, "epochs": rounds + 3}
    config = Config(dataset="cifar10", method="sam", rho=0.05, **settings)
    batches = Batches(_noise(steps * batch_size), config)
    bare, times = _bare_epoch(config, batches), []

    def timed() -> None:
        times.append(seconds(bare))

    with TemporaryDirectory() as folder, StopRequest() as stop:
        run = Run(
            config,
            batches,
            ImageProgram(config, batches.spec),
            TracedSettings.of(config),
            RunFolder(Path(folder), config),
        )
        with Progress(config.epochs * steps, 0, batch_size, "images", show=False) as shown:
            trained = _trainer_epoch(run, shown, stop)
            ratios = paired_ratios({"": trained}, timed, rounds, f"{model}: overhead")[""]
    rate = steps * batch_size / np.median(times[1:])  # the first compiles
    return [f"{model}, batch {batch_size}", f"{rate:,.0f}", spread(ratios)]


def _noise(images: int) -> Dataset:
    rng = np.random.default_rng(0)
    train, test = (
        Images(
            rng.integers(0, 256, (size, *IMAGE), np.uint8),
            rng.integers(0, 10, size, np.int32),
        )
        for size in (images, 64)
    )
    half = np.full(3, 0.5, np.float32)
    return Dataset(train, test, half, half / 2, num_classes=10, image_shape=IMAGE)


def _trainer_epoch(run: Run, shown: Progress, stop: StopRequest) -> Callable[[], Any]:
    """Returns a run of an epoch as the trainer performs it, without evaluation and checkpoint."""
    state, epochs = run.program.init(run.traced), iter(range(run.config.epochs - 1))

    def epoch() -> Any:
        nonlocal state
        state, _ = train_epoch(run, state, next(epochs), shown, stop)
        return state

    return epoch


def _bare_epoch(config: Config, batches: Batches) -> Callable[[], Any]:
    """Returns a run of an epoch in as little code as the same training takes."""
    spec, images = batches.spec, batches.arrays["train"]
    assert images is not None
    model = make_model(config.model, num_classes=10, image_shape=IMAGE, rngs=nnx.Rngs(0))
    graph, *variables = nnx.split(model, nnx.Param, ...)
    params, rest = map(nnx.as_pure, variables)
    schedule = make_schedule(config, spec.steps_per_epoch)
    tx = optax.chain(
        sam(0.05),
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(schedule, momentum=config.momentum),
    )
    mean, std = jnp.array(spec.mean), jnp.array(spec.std)

    def step(params: Any, rest: Any, opt_state: Any, row: jax.Array) -> Any:
        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(graph, params, rest)
            logits = model((images.pixels[row] / 255.0 - mean) / std)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, images.labels[row])
            return losses.mean(), nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))

        grads, rest = jax.grad(loss_fn, has_aux=True)(params)
        value_fn = lambda params: loss_fn(params)[0]  # noqa: E731
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), rest, opt_state

    compiled = jax.jit(step, donate_argnums=(0, 1, 2))
    state = params, rest, tx.init(params)
    rng, size = np.random.default_rng(0), len(images.labels)

    def epoch() -> Any:
        nonlocal state
        for row in rng.permutation(size).astype(np.int32).reshape(-1, config.batch_size):
            state = compiled(*state, row)
        return state

    return epoch


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
