"""SGD, SAM and XSAM on handwritten digits, 40 % of whose training labels are wrong.

    make demo        (or: python examples/01_noisy_digits.py [--help])

Trains a small Flax NNX network with each method, over a sweep of rho and five seeds, chooses rho by
the accuracy on validation images, and reports the test accuracy of that choice. Prints two tables,
and writes three pictures and results.json to runs/noisy_digits.
"""

import argparse
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
import matplotlib
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from tqdm import tqdm

from xsam_jax import sam, tree, xsam
from xsam_jax.flax_nnx import make_value_fn

matplotlib.use("Agg")
from matplotlib import pyplot as plt

METHODS = ("sgd", "sam", "xsam")
COLORS = {"sgd": "#555555", "sam": "#0072B2", "xsam": "#D55E00"}  # apart for the colour-blind too


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, and how; the command line sets what one would want to vary."""

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
        return self.method.upper() + ("" if self.rho is None else f" rho {self.rho:g}")


class Images(NamedTuple):
    pixels: Any
    labels: Any


Results = dict[Setting, dict[str, np.ndarray]]  # what `train` returns, stacked over seeds

# --- Training -------------------------------------------------------------------------------------


def load_data(config: Config, seed: int) -> tuple[Images, Images, Images]:
    """Returns training, validation and test images; the seed decides which labels are wrong."""
    digits, size = load_digits(), config.train_size
    order = np.random.default_rng(0).permutation(len(digits.target))
    pixels, labels = digits.data[order].astype(np.float32) / 16, digits.target[order]
    rng = np.random.default_rng(seed)
    wrong = rng.choice(size, round(config.noise * size), replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, 10, wrong.size)) % 10
    cuts = [size, size + config.validation_size]
    train, validation, test = map(Images, np.split(pixels, cuts), np.split(labels, cuts))
    return train, validation, test


def make_optimizer(
    method: str, rho: Any, rho_max: Any, config: Config
) -> optax.GradientTransformationExtraArgs:
    """Returns the only part in which the methods differ: the first link of this chain."""
    if method == "sgd":
        first = optax.identity()
    elif method == "sam":
        first = sam(rho, steps=config.steps)
    else:
        first = xsam(
            rho,
            rho_max,
            steps=config.steps,
            probe_every=config.batches_per_epoch,
            alpha_max=config.alpha_max,
            num_alphas=config.num_alphas,
        )
    updates = config.epochs * config.batches_per_epoch
    schedule = optax.cosine_decay_schedule(config.learning_rate, updates)
    decay = optax.add_decayed_weights(config.weight_decay)
    return optax.chain(first, decay, optax.sgd(schedule, momentum=config.momentum))


def loss_fn(model: nnx.Module, batch: Images) -> jax.Array:
    logits = model(batch.pixels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()


# Compiled once per method: rho is traced, and the optimizer is made of the tracer.
@partial(jax.jit, static_argnames=("method", "config"))
def train(
    method: str, rho: Any, rho_max: Any, key: jax.Array, data: Any, config: Config
) -> dict[str, jax.Array]:
    """Trains one model; returns its accuracies in percent, and a history over epochs."""
    train_images, validation_images, test_images = data
    rngs = nnx.Rngs(key)
    linear = partial(nnx.Linear, rngs=rngs)
    model = nnx.Sequential(linear(64, 256), nnx.relu, linear(256, 256), nnx.relu, linear(256, 10))
    tx = make_optimizer(method, rho, rho_max, config)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    def train_step(carry: Any, batch: Images) -> tuple[Any, dict[str, jax.Array]]:
        model, optimizer = carry
        value_fn = make_value_fn(loss_fn, model, batch)
        loss, grads = nnx.value_and_grad(loss_fn)(model, batch)
        optimizer.update(model, grads, value_fn=value_fn)
        state = nnx.as_pure(optimizer.opt_state)
        seen = {name: optax.tree.get(state, name, jnp.nan) for name in ("alpha", "psi")}
        return carry, {"loss": loss, **seen}

    def train_epoch(carry: Any, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        shape = config.batches_per_epoch, config.batch_size
        order = jax.random.permutation(key, config.train_size)[: math.prod(shape)].reshape(shape)
        batches = Images(train_images.pixels[order], train_images.labels[order])
        first_batch = Images(batches.pixels[0], batches.labels[0])
        probe = (
            jnp.nan
            if method != "xsam"
            else probed_losses(carry[0], first_batch, rho, rho_max, config)
        )
        carry, history = nnx.scan(train_step)(carry, batches)
        return carry, {"probe": probe, **jax.tree.map(jnp.mean, history)}

    keys = jax.random.split(rngs.batches(), config.epochs)
    _, history = nnx.scan(train_epoch)((model, optimizer), keys)

    def accuracy(images: Images) -> jax.Array:
        return 100 * jnp.mean(model(images.pixels).argmax(axis=-1) == images.labels)

    validation, test = accuracy(validation_images), accuracy(test_images)
    return {"validation": validation, "test": test, **history}


def probed_losses(
    model: nnx.Module, batch: Images, rho: Any, rho_max: Any, config: Config
) -> jax.Array:
    """Returns the losses among which XSAM finds the maximum, for the picture."""
    value_fn = make_value_fn(loss_fn, model, batch)
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
    settings = [Setting("sgd")] if "sgd" in config.methods else []
    if "sam" in config.methods:
        settings += [Setting("sam", rho) for rho in config.rhos]
    if "xsam" in config.methods:
        settings += [Setting("xsam", rho, config.rho_max or 2 * rho) for rho in config.rhos]
    data = {seed: load_data(config, seed) for seed in config.seeds}
    results: Results = {}
    # Where stderr is no terminal there is no bar, and a line per setting in its place.
    with tqdm(total=len(settings) * len(data), unit="run", disable=None) as bar:
        for setting in settings:
            runs = []
            for seed in config.seeds:
                bar.set_description(f"{setting} seed {seed}")
                runs.append(
                    jax.device_get(train(*setting, jax.random.key(seed), data[seed], config))
                )
                bar.set_postfix_str(f"validation {runs[-1]['validation']:.1f} %")
                bar.update()
            results[setting] = {name: np.stack([run[name] for run in runs]) for name in runs[0]}
            if bar.disable:
                line = f"{setting!s:14} validation {spread(results[setting]['validation'])} %"
                print(line, file=sys.stderr, flush=True)
    return results


# --- Report ---------------------------------------------------------------------------------------


def spread(values: np.ndarray) -> str:
    """Returns mean and standard deviation over seeds."""
    deviation = f" ± {np.std(values, ddof=1):4.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):5.1f}{deviation}"


def choose(results: Results) -> dict[str, Setting]:
    """Returns the setting of each method with the best mean accuracy on the validation images."""
    methods = dict.fromkeys(setting.method for setting in results)
    return {
        method: max(
            (setting for setting in results if setting.method == method),
            key=lambda setting: results[setting]["validation"].mean(),
        )
        for method in methods
    }


def compare(first: np.ndarray, second: np.ndarray) -> str:
    """Says by how much two means differ; by less than two standard errors is a tie."""
    difference = first.mean() - second.mean()
    if len(first) == 1:
        return f"{difference:+.1f} (one seed: no standard error)"
    error = math.sqrt((first.var(ddof=1) + second.var(ddof=1)) / len(first))
    verdict = " (tie)" if abs(difference) <= 2 * error else ""
    return f"{difference:+.1f}, standard error {error:.1f}{verdict}"


def report(results: Results, config: Config) -> None:
    """Prints the sweep by validation accuracy, then what was chosen by test accuracy."""
    chosen = choose(results)
    n = f"mean ± std of {len(config.seeds)} seeds" if len(config.seeds) > 1 else "one seed"
    print(f"\nValidation accuracy in %, {n}; * is the best of a method\n")
    for setting, runs in results.items():
        mark = "*" if chosen[setting.method] == setting else ""
        print(f"{setting!s:14} {spread(runs['validation'])} {mark}".rstrip())
    print(f"\nTest accuracy in % of the settings chosen on validation, {n}\n")
    for setting in chosen.values():
        print(f"{setting!s:14} {spread(results[setting]['test'])}")
    for one, other in itertools.combinations(chosen.values(), 2):
        difference = compare(results[other]["test"], results[one]["test"])
        print(f"{other.method.upper()} - {one.method.upper()}: {difference}")
    for method, setting in chosen.items():
        if len(config.rhos) > 1 and setting.rho in (min(config.rhos), max(config.rhos)):
            print(f"note: {setting} is at the edge of the sweep; a better rho may lie beyond")


def draw(results: Results, config: Config) -> list[Path]:
    """Writes the pictures for which there are results."""
    plt.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    chosen, pictures = choose(results), {}

    def band(axes: Any, x: Any, values: Any, method: str, **style: Any) -> None:
        mean, std = np.mean(values, axis=1), np.std(values, axis=1, ddof=len(config.seeds) > 1)
        axes.plot(x, mean, color=COLORS[method], **style)
        axes.fill_between(x, mean - std, mean + std, color=COLORS[method], alpha=0.2, linewidth=0)

    if set(chosen) != {"sgd"}:
        pictures["accuracy_over_rho"], axes = plt.subplots(figsize=(3.3, 2.4))
        for method, best in chosen.items():
            mine = {s.rho: results[s]["test"] for s in results if s.method == method}
            if method == "sgd":
                edges = min(config.rhos), max(config.rhos)
                band(axes, edges, [mine[None]] * 2, method, label="SGD", linestyle="--")
            else:
                band(
                    axes, list(mine), list(mine.values()), method, label=method.upper(), marker="."
                )
                axes.plot(best.rho, np.mean(mine[best.rho]), "o", mfc="none", color=COLORS[method])
        axes.set(xlabel="$\\rho$ (ring: chosen on validation)", ylabel="test accuracy (%)")
        axes.set_xscale("log")
        axes.set_xticks(config.rhos, [f"{rho:g}" for rho in config.rhos])
        axes.minorticks_off()
        axes.legend(frameon=False)
    if "xsam" in chosen:
        best = chosen["xsam"]
        runs, epochs = results[best], np.arange(1, config.epochs + 1)
        pictures["alpha_and_psi"], (upper, lower) = plt.subplots(
            2, figsize=(3.3, 3.2), sharex=True, layout="constrained"
        )
        band(upper, epochs, runs["alpha"].T, "xsam")
        band(lower, epochs, np.degrees(runs["psi"]).T, "xsam")
        upper.axhline(1.0, color=COLORS["sam"], linestyle="--", label="SAM")
        upper.legend(frameon=False)
        upper.set(
            ylabel="$\\alpha^*$",
            title=f"XSAM, $\\rho$ = {best.rho:g}, $\\rho_m$ = {best.rho_max:g}",
        )
        lower.set(ylabel="angle $\\psi$ (degrees)", xlabel="epoch")
        pictures["probed_loss"], axes = plt.subplots(figsize=(3.3, 2.4))
        alphas = np.linspace(0.0, config.alpha_max, config.num_alphas)
        picked = np.unique(np.linspace(0, config.epochs - 1, 5).astype(int))
        for epoch, color in zip(
            picked, plt.get_cmap("viridis")(np.linspace(0, 0.85, len(picked))), strict=True
        ):
            losses = runs["probe"][0, epoch]
            axes.plot(alphas, losses, color=color, label=f"epoch {epoch + 1}")
            alpha = runs["alpha"][0, epoch]
            axes.plot(alpha, np.interp(alpha, alphas, losses), "o", color=color, markersize=4)
        axes.set(xlabel="$\\alpha$ (dot: $\\alpha^*$)", ylabel="loss at radius $\\rho_m$")
        axes.legend(frameon=False)
    for name, figure in pictures.items():
        figure.savefig(config.out / f"{name}.png", dpi=200, bbox_inches="tight")
        plt.close(figure)
    return [config.out / f"{name}.png" for name in pictures]


# --- Command line ---------------------------------------------------------------------------------


def read_config(argv: list[str] | None) -> Config:
    """Reads the command line; what is wrong with it is one line on stderr, and exit code 2."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            self.exit(2, f"{self.prog}: error: {message}\n")

    def number(kind: type, valid: Callable[[Any], bool], description: str) -> Callable[[str], Any]:
        def parse(text: str) -> Any:
            try:
                value = kind(text)
            except ValueError:
                value = math.nan
            if not valid(value):
                raise argparse.ArgumentTypeError(f"must be {description}, not {text!r}")
            return value

        return parse

    def method(text: str) -> str:
        if text not in (*METHODS, "all"):
            near = difflib.get_close_matches(text.lower(), METHODS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else "choose from sgd, sam, xsam, all"
            raise argparse.ArgumentTypeError(f"unknown method {text!r}; {hint}")
        return text

    radius = number(float, lambda x: 0 < x < math.inf, "a number above 0")
    count = number(int, lambda n: n >= 1, "an integer of at least 1")
    seed = number(int, lambda n: 0 <= n < 2**31, "an integer from 0 to 2147483647")
    share = number(float, lambda x: 0 <= x < 1, "a number from 0 to below 1")
    several: dict[str, Any] = {"nargs": "+", "action": "extend"}
    default = Config()
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    rhos = " ".join(map(str, default.rhos))
    add("--method", metavar="NAME", type=method, **several, help="sgd, sam, xsam, or all (default)")
    add(
        "--rho",
        metavar="R",
        type=radius,
        **several,
        help=f"radii of sam and xsam (default: {rhos})",
    )
    add("--rho-max", metavar="R", type=radius, help="radius of xsam's probes (default: 2 rho)")
    add("--steps", metavar="K", type=count, help="ascent steps, each of length rho (default: 1)")
    add("--seed", metavar="N", type=seed, **several, help="seeds to run, in place of --seeds")
    add("--seeds", metavar="N", type=count, help="how many seeds to run (default: 5)")
    add("--epochs", metavar="N", type=count, help="epochs of training (default: 60)")
    add("--noise", metavar="P", type=share, help="share of wrong training labels (default: 0.4)")
    add("--out", metavar="DIR", type=Path, help=f"folder to write to (default: {default.out})")
    args = parser.parse_args(argv)

    given = set(args.method or ["all"])
    methods = METHODS if "all" in given else tuple(name for name in METHODS if name in given)
    if args.rho and methods == ("sgd",):
        parser.error("argument --rho: SGD has no rho; add --method sam or --method xsam")
    if args.rho_max and "xsam" not in methods:
        parser.error("argument --rho-max: only XSAM has a rho_max; add --method xsam")
    if args.seed and args.seeds:
        parser.error("argument --seed: give either --seed or --seeds")
    config = Config(
        methods=methods,
        rhos=tuple(sorted(set(args.rho or default.rhos))),
        rho_max=args.rho_max,
        steps=args.steps or default.steps,
        seeds=tuple(dict.fromkeys(args.seed or range(args.seeds or len(default.seeds)))),
        epochs=args.epochs or default.epochs,
        noise=default.noise if args.noise is None else args.noise,
        out=args.out or default.out,
    )
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --out: {error}")
    return config


def main(argv: list[str] | None = None) -> dict[str, Any]:
    config = read_config(argv)
    results = sweep(config)
    report(results, config)
    pictures = draw(results, config)
    summary = {
        "config": dataclasses.asdict(config) | {"out": str(config.out)},
        "chosen": {method: setting._asdict() for method, setting in choose(results).items()},
        "runs": [
            setting._asdict()
            | {name: array.tolist() for name, array in runs.items() if name != "probe"}
            for setting, runs in results.items()
        ],
    }
    (config.out / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    print("\nwrote", *pictures, config.out / "results.json", sep="\n  ")
    return summary


if __name__ == "__main__":
    main()
