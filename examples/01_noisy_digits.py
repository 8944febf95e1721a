"""SGD, SAM, XSAM and their family on handwritten digits, 40 % of whose training labels are wrong.

    make demo        (or: python -m examples.01_noisy_digits; --help lists the options)

Trains a small Flax NNX network with each method, over a sweep of rho and five seeds, chooses rho by
the accuracy on validation images, and reports the test accuracy of that choice. Takes a good minute
on two cores; writes three pictures and results.json to runs/noisy_digits. Expect a test accuracy of
about 83 % with SGD, and of 94 % with SAM and with XSAM, which tie: they differ by less than two
standard errors. `--method gsam` trains with any other method of the library (examples/family.py),
`--method all` with the whole family, in nine minutes.
"""

import dataclasses
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from tqdm import tqdm

from examples import figures
from examples.config import Config, Setting, read_config, settings
from examples.family import FAMILY, Training
from examples.report import Results, choose, report, spread
from xsam_jax import tree
from xsam_jax.flax_nnx import make_value_fn
from xsam_jax.gating import GradientCounter

Images = tuple[Any, Any]  # pixels and labels


def load_data(config: Config, seed: int) -> tuple[Images, ...]:
    """Returns training, validation and test images; the seed decides which labels are wrong."""
    digits, size = load_digits(), config.train_size
    order = np.random.default_rng(0).permutation(len(digits.target))
    pixels, labels = digits.data[order].astype(np.float32) / 16, digits.target[order]
    rng = np.random.default_rng(seed)
    wrong = rng.choice(size, round(config.noise * size), replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, wrong.size)) % 10
    cuts = [size, size + config.validation_size]
    return tuple(zip(np.split(pixels, cuts), np.split(labels, cuts), strict=True))


def make_optimizer(
    setting: Setting, config: Config, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Returns the only part in which the methods differ: the first link of this chain."""
    updates = config.epochs * config.batches_per_epoch
    schedule = optax.cosine_decay_schedule(config.learning_rate, updates)
    decay = optax.add_decayed_weights(config.weight_decay)
    base = optax.chain(decay, optax.sgd(schedule, momentum=config.momentum))
    search = {
        "probe_every": config.batches_per_epoch,
        "alpha_max": config.alpha_max,
        "num_alphas": config.num_alphas,
    }
    method = FAMILY[setting.method]
    training = Training(setting.rho_max, config.steps, search, base, schedule, key)
    first = method.make(setting.rho, training)
    return first if method.has_base else optax.chain(first, base)


def losses_fn(model: nnx.Module, pixels: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(model(pixels), labels)


def loss_fn(model: nnx.Module, pixels: jax.Array, labels: jax.Array) -> jax.Array:
    return losses_fn(model, pixels, labels).mean()


# Compiled once per method: rho is traced, and the optimizer is made of the tracer.
@partial(jax.jit, static_argnames=("method", "config"))
def train(
    method: str, rho: Any, rho_max: Any, key: jax.Array, data: tuple[Images, ...], config: Config
) -> dict[str, jax.Array]:
    """Trains one model; returns its accuracies in percent, and a history over epochs."""
    training_images, validation_images, test_images = data
    rngs = nnx.Rngs(key)
    linear = partial(nnx.Linear, rngs=rngs)
    model = nnx.Sequential(linear(64, 256), nnx.relu, linear(256, 256), nnx.relu, linear(256, 10))
    keys = jax.random.split(rngs.batches(), config.epochs)
    tx = make_optimizer(Setting(method, rho, rho_max), config, rngs.perturbations())
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def train_step(carry: Any, batch: Images) -> tuple[Any, dict[str, jax.Array]]:
        model, optimizer = carry
        counter = GradientCounter()
        extra_args = {
            "value_fn": make_value_fn(loss_fn, model, *batch),
            "losses_fn": make_value_fn(losses_fn, model, *batch),  # ESAM compares samples
            "count_gradients": counter,
        }
        loss, grads = nnx.value_and_grad(loss_fn)(model, *batch)
        optimizer.update(model, grads, **extra_args)
        history = {"loss": loss, "gradients": 1.0 + counter.total}
        if method == "xsam":
            state = nnx.as_pure(optimizer.opt_state)
            history |= {name: optax.tree.get(state, name) for name in ("alpha", "psi")}
        return carry, history

    def train_epoch(carry: Any, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        shape = config.batches_per_epoch, config.batch_size
        order = jax.random.permutation(key, config.train_size)[: math.prod(shape)].reshape(shape)
        batches = jax.tree.map(lambda array: array[order], training_images)
        history = {}
        if method == "xsam":
            first_batch = jax.tree.map(lambda array: array[0], batches)
            history["probe"] = probed_losses(carry[0], first_batch, rho, rho_max, config)
        carry, step_history = nnx.scan(train_step)(carry, batches)
        return carry, history | jax.tree.map(jnp.mean, step_history)

    def accuracy(images: Images) -> jax.Array:
        return 100 * jnp.mean(model(images[0]).argmax(axis=-1) == images[1])

    _, history = nnx.scan(train_epoch)((model, optimizer), keys)
    validation, test = accuracy(validation_images), accuracy(test_images)
    return {"validation": validation, "test": test, **history}


def probed_losses(
    model: nnx.Module, batch: Images, rho: Any, rho_max: Any, config: Config
) -> jax.Array:
    """Returns the losses among which XSAM finds the maximum, for the picture."""
    value_fn = make_value_fn(loss_fn, model, *batch)
    params = point = nnx.as_pure(nnx.state(model, nnx.Param))
    for _ in range(config.steps):
        ascent = tree.scale(rho, tree.unit(jax.grad(value_fn)(point)))
        point = optax.apply_updates(point, ascent)
    v0, v1 = tree.unit(optax.tree.sub(point, params)), tree.unit(jax.grad(value_fn)(point))
    psi = tree.angle(v0, v1)

    def loss_at(alpha: jax.Array) -> jax.Array:
        w0, w1 = tree.slerp_weights(alpha, psi)
        displacement = tree.scale(rho_max, tree.combine(w0, v0, w1, v1))
        return value_fn(optax.apply_updates(params, displacement))

    return jax.vmap(loss_at)(jnp.linspace(0.0, config.alpha_max, config.num_alphas))


def train_all(
    points: list[Setting], data: dict[int, tuple[Images, ...]], config: Config
) -> Iterator[dict[str, Any]]:
    """Trains one method at each of its points with each seed, as many at a time as cores."""
    keys = {seed: jax.random.key(seed) for seed in data}
    first = next(iter(data))
    program = train.lower(*points[0], keys[first], data[first], config).compile()

    def run(point: Setting, seed: int) -> dict[str, Any]:
        return jax.device_get(program(point.rho, point.rho_max, keys[seed], data[seed]))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(run, *zip(*itertools.product(points, data), strict=True))


def sweep(config: Config) -> Results:
    """Trains with every setting and seed."""
    points = {method: settings(method, config) for method in config.methods}
    data = {seed: load_data(config, seed) for seed in config.seeds}
    results: Results = {}
    # Where stderr is no terminal there is no bar, and a line per setting in its place.
    total = len(data) * sum(map(len, points.values()))
    with tqdm(total=total, unit="run", disable=None) as bar:
        for method in config.methods:
            finished = train_all(points[method], data, config)
            for setting in points[method]:
                bar.set_description(str(setting).split(",")[0])
                runs = []
                for run in itertools.islice(finished, len(data)):
                    runs.append(run)
                    bar.set_postfix_str(f"validation {run['validation']:.1f} %")
                    bar.update()
                results[setting] = {name: np.stack([run[name] for run in runs]) for name in runs[0]}
                if bar.disable:
                    accuracy = spread(results[setting]["validation"])
                    print(f"{setting!s:25} validation {accuracy} %", file=sys.stderr, flush=True)
    return results


def draw(results: Results, chosen: dict[str, Setting], config: Config) -> list[Path]:
    """Writes the pictures for which there are results."""
    pictures = {}
    if set(chosen) != {"sgd"}:
        tests = {
            method: {s.rho: runs["test"] for s, runs in results.items() if s.method == method}
            for method in chosen
        }
        rings = {method: setting.rho for method, setting in chosen.items()}
        pictures["accuracy_over_rho"] = figures.accuracy_over_rho(tests, rings)
    if "xsam" in chosen:
        best = chosen["xsam"]
        runs = results[best]
        title = f"XSAM, $\\rho$ = {best.rho:g}, $\\rho_m$ = {best.rho_max:g}"
        pictures["alpha_and_psi"] = figures.alpha_and_psi(runs["alpha"], runs["psi"], title)
        alphas = np.linspace(0.0, config.alpha_max, config.num_alphas)
        picture = figures.probed_loss(alphas, runs["probe"][0], runs["alpha"][0], title)
        pictures["probed_loss"] = picture
    return [figures.save(picture, config.out / name) for name, picture in pictures.items()]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    config = read_config(argv, __doc__.splitlines()[0])
    results = sweep(config)
    chosen = choose(results)
    report(results, chosen, config)
    pictures = draw(results, chosen, config)
    summary = {
        "config": dataclasses.asdict(config) | {"out": str(config.out)},
        "chosen": {method: setting._asdict() for method, setting in chosen.items()},
        "runs": [
            setting._asdict() | {name: runs[name].tolist() for name in runs if name != "probe"}
            for setting, runs in results.items()
        ],
    }
    (config.out / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    print("\nwrote", *pictures, config.out / "results.json", sep="\n  ")
    return summary


if __name__ == "__main__":
    main()
