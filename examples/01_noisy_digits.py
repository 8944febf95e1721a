"""SGD, SAM and XSAM on handwritten digits, 40 % of whose training labels are wrong.

    make demo        (or: python -m examples.01_noisy_digits; --help lists the options)

Trains a small Flax NNX network with each method, over a sweep of rho and five seeds, chooses rho by
the accuracy on validation images, and reports the test accuracy of that choice. Takes a good minute
on two cores; writes three pictures and results.json to runs/noisy_digits. Expect a test accuracy of
about 83 % with SGD, and of 94 % with SAM and with XSAM, which tie: they differ by less than two
standard errors.
"""

import argparse
import contextlib
import dataclasses
import difflib
import itertools
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from tqdm import tqdm

from examples import figures
from xsam_jax import sam, tree, xsam
from xsam_jax.flax_nnx import make_value_fn

METHODS = ("sgd", "sam", "xsam")
COLLAPSED = 20  # percent; guessing gives 10


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, and how; the command line sets the fields up to `epochs`, and `out`."""

    methods: tuple[str, ...] = METHODS
    rhos: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7)
    rho_max: float | None = None  # the radius of XSAM's probes; None is twice rho
    steps: int = 1  # ascent steps per update, each of length rho
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # of the wrong labels, the weights and the batches
    epochs: int = 60
    noise: float = 0.4  # share of wrong training labels
    train_size: int = 1000
    validation_size: int = 297  # which leaves 500 images for the test
    batch_size: int = 64
    learning_rate: float = 0.05  # at the start; falls as a cosine
    momentum: float = 0.9
    weight_decay: float = 1e-3
    alpha_max: float = 4.0
    num_alphas: int = 41
    out: Path = Path("runs/noisy_digits")

    @property
    def batches_per_epoch(self) -> int:
        return self.train_size // self.batch_size


class Setting(NamedTuple):
    """One point of the sweep; SGD has no radii."""

    method: str
    rho: float | None = None
    rho_max: float | None = None

    def __str__(self) -> str:
        radii = "" if self.rho is None else f" rho {self.rho:g}"
        return self.method.upper() + radii + (f", rho_max {self.rho_max:g}" if self.rho_max else "")


Images = tuple[Any, Any]  # pixels and labels
Results = dict[Setting, dict[str, np.ndarray]]  # what `train` returns, stacked over seeds


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


def make_optimizer(setting: Setting, config: Config) -> optax.GradientTransformationExtraArgs:
    """Returns the only part in which the methods differ: the first link of this chain."""
    if setting.method == "sgd":
        first = optax.identity()
    elif setting.method == "sam":
        first = sam(setting.rho, steps=config.steps)
    else:
        first = xsam(
            setting.rho,
            setting.rho_max,
            steps=config.steps,
            probe_every=config.batches_per_epoch,
            alpha_max=config.alpha_max,
            num_alphas=config.num_alphas,
        )
    updates = config.epochs * config.batches_per_epoch
    schedule = optax.cosine_decay_schedule(config.learning_rate, updates)
    decay = optax.add_decayed_weights(config.weight_decay)
    return optax.chain(first, decay, optax.sgd(schedule, momentum=config.momentum))


def loss_fn(model: nnx.Module, pixels: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(model(pixels), labels).mean()


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
    tx = make_optimizer(Setting(method, rho, rho_max), config)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def train_step(carry: Any, batch: Images) -> tuple[Any, dict[str, jax.Array]]:
        model, optimizer = carry
        value_fn = make_value_fn(loss_fn, model, *batch)
        loss, grads = nnx.value_and_grad(loss_fn)(model, *batch)
        optimizer.update(model, grads, value_fn=value_fn)
        history = {"loss": loss}
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

    keys = jax.random.split(rngs.batches(), config.epochs)
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


def sweep(config: Config) -> Results:
    """Trains with every setting and seed."""
    points: dict[str, list[Setting]] = {
        "sgd": [Setting("sgd")],
        "sam": [Setting("sam", rho) for rho in config.rhos],
        "xsam": [Setting("xsam", rho, config.rho_max or 2 * rho) for rho in config.rhos],
    }
    settings = [setting for method in config.methods for setting in points[method]]
    data = {seed: load_data(config, seed) for seed in config.seeds}
    results: Results = {}
    # Where stderr is no terminal there is no bar, and a line per setting in its place.
    with tqdm(total=len(settings) * len(data), unit="run", disable=None) as bar:
        for setting in settings:
            runs = []
            for seed in config.seeds:
                bar.set_description(f"{str(setting).split(',')[0]}, seed {seed}")
                run = train(*setting, jax.random.key(seed), data[seed], config)
                runs.append(jax.device_get(run))
                bar.set_postfix_str(f"validation {runs[-1]['validation']:.1f} %")
                bar.update()
            results[setting] = {name: np.stack([run[name] for run in runs]) for name in runs[0]}
            if bar.disable:
                accuracy = spread(results[setting]["validation"])
                print(f"{setting!s:25} validation {accuracy} %", file=sys.stderr, flush=True)
    return results


def choose(results: Results) -> dict[str, Setting]:
    """Returns the setting of each method with the best mean accuracy on the validation images."""
    methods = dict.fromkeys(setting.method for setting in results)
    ranking = sorted(results, key=lambda setting: -results[setting]["validation"].mean())
    return {method: next(s for s in ranking if s.method == method) for method in methods}


def spread(values: np.ndarray) -> str:
    deviation = f" ± {np.std(values, ddof=1):4.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):5.1f}{deviation}"


def compare(first: np.ndarray, second: np.ndarray) -> str:
    """Says by how much the means differ; by less than two standard errors is a tie."""
    difference = first.mean() - second.mean()
    if len(first) == 1:
        return f"{difference:+.1f}, of a single seed"
    error = math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / len(first))
    verdict = ": tie" if abs(difference) <= 2 * error else ""
    return f"{difference:+.1f}, standard error {error:.1f}{verdict}"


def report(results: Results, chosen: dict[str, Setting], config: Config) -> None:
    """Prints the sweep by validation accuracy, and what it chose by test accuracy."""
    seeds = len(config.seeds)
    of_seeds = f"mean ± std of {seeds} seeds" if seeds > 1 else f"seed {config.seeds[0]}"
    print(f"\nValidation accuracy in %, {of_seeds} (* the best of its method)\n")
    for setting, runs in results.items():
        star = " *" if setting in chosen.values() else ""
        print(f"  {setting!s:25} {spread(runs['validation'])}{star}")
    print(f"\nTest accuracy in % at the rho chosen on validation, {of_seeds}\n")
    for setting in chosen.values():
        print(f"  {setting!s:25} {spread(results[setting]['test'])}")
    print(end="\n" if len(chosen) > 1 else "")
    for one, other in itertools.combinations(chosen.values(), 2):
        verdict = compare(results[other]["test"], results[one]["test"])
        print(f"  {other.method.upper()} - {one.method.upper()}: {verdict}")
    for setting, runs in results.items():
        if collapsed := int((runs["validation"] < COLLAPSED).sum()):
            print(f"  note: {setting}: {collapsed} of {seeds} runs collapsed (below {COLLAPSED} %)")
    for setting in chosen.values():
        if len(config.rhos) > 1 and setting.rho in (config.rhos[0], config.rhos[-1]):
            print(f"  note: {setting} is at the edge of the sweep; a better one may lie beyond")


def draw(results: Results, chosen: dict[str, Setting], config: Config) -> list[Path]:
    """Writes the pictures for which there are results."""
    pictures = {}
    if set(chosen) != {"sgd"}:
        accuracies = {
            method: np.stack([runs["test"] for s, runs in results.items() if s.method == method])
            for method in chosen
        }
        rings = {method: setting.rho for method, setting in chosen.items()}
        pictures["accuracy_over_rho"] = figures.accuracy_over_rho(config.rhos, accuracies, rings)
    if "xsam" in chosen:
        best = chosen["xsam"]
        runs = results[best]
        title = f"XSAM, $\\rho$ = {best.rho:g}, $\\rho_m$ = {best.rho_max:g}"
        pictures["alpha_and_psi"] = figures.alpha_and_psi(runs["alpha"], runs["psi"], title)
        alphas = np.linspace(0.0, config.alpha_max, config.num_alphas)
        picture = figures.probed_loss(alphas, runs["probe"][0], runs["alpha"][0], title)
        pictures["probed_loss"] = picture
    return [figures.save(picture, config.out / name) for name, picture in pictures.items()]


def read_config(argv: list[str] | None) -> Config:
    """Reads the command line; what is wrong with it is one line on stderr, and exit code 2."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(2, f"{self.prog}: error: {message}\n")

    def number(kind: type, valid: Callable[[Any], bool], description: str) -> Callable[[str], Any]:
        def parse(text: str) -> Any:
            with contextlib.suppress(ValueError):
                if valid(value := kind(text)):
                    return value
            raise argparse.ArgumentTypeError(f"must be {description}, not {text!r}")

        return parse

    def method(text: str) -> str:
        if text not in (*METHODS, "all"):
            near = difflib.get_close_matches(text.lower(), METHODS, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else "choose from sgd, sam, xsam, all"
            raise argparse.ArgumentTypeError(f"unknown method {text!r}; {hint}")
        return text

    radius = number(float, lambda x: 0 < x < math.inf, "a number above 0")
    count = number(int, lambda n: n >= 1, "an integer of at least 1")
    seed = number(int, lambda n: 0 <= n < 2**31, "an integer from 0 to 2**31 - 1")
    several: dict[str, Any] = {"nargs": "+", "action": "extend"}
    default = Config()
    rhos = " ".join(map(str, default.rhos))
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--method", metavar="NAME", type=method, help="sgd, sam, xsam or all [all]", **several)
    add("--rho", metavar="R", type=radius, help=f"radii of SAM and XSAM [{rhos}]", **several)
    add("--rho-max", metavar="R", type=radius, help="radius of XSAM's probes [2 rho]")
    add("--steps", metavar="K", type=count, default=1, help="ascent steps of length rho [1]")
    add("--seed", metavar="N", type=seed, help="run these seeds instead of 0 to 4", **several)
    add("--seeds", metavar="N", type=count, help="run so many seeds, from 0 [5]")
    add("--epochs", metavar="N", type=count, default=default.epochs, help="epochs [%(default)s]")
    add("--out", metavar="DIR", type=Path, default=default.out, help="folder [%(default)s]")
    args = parser.parse_args(argv)

    given = METHODS if "all" in (args.method or ["all"]) else args.method
    methods = tuple(name for name in METHODS if name in given)
    if args.rho and methods == ("sgd",):
        parser.error("argument --rho: SGD has no rho; add --method sam or --method xsam")
    if args.rho_max and "xsam" not in methods:
        parser.error("argument --rho-max: only XSAM has one; add --method xsam")
    if args.seed and args.seeds:
        parser.error("argument --seed: give either --seed or --seeds")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {error}")
    return Config(
        methods=methods,
        rhos=tuple(sorted(set(args.rho or default.rhos))),
        rho_max=args.rho_max,
        steps=args.steps,
        seeds=tuple(dict.fromkeys(args.seed or range(args.seeds or len(default.seeds)))),
        epochs=args.epochs,
        out=args.out,
    )


def main(argv: list[str] | None = None) -> dict[str, Any]:
    config = read_config(argv)
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
