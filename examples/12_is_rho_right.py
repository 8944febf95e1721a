"""Is rho too small or too large? The cosine of SAM's two gradients and the rise of the loss tell.

    python -m examples.12_is_rho_right        (or: make is-rho-right; --help lists the options)

Trains SAM on digits with 40 % wrong training labels at eight radii. `record` writes the cosine and
the rise into the state. Expect a cosine above 0.99 and a rise of at most 4 % of the loss where SAM
does nothing, up to rho 0.03. At the best rho, 0.5, expect 0.89 and 20 %, and at 1.0, where training
fails, both near 0. Takes ten seconds.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import tyro
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

from xsam_jax import sharpness_aware
from xsam_jax.analysis import plots
from xsam_jax.ascent import normalize, scale_by_radius
from xsam_jax.descent import record

RADII = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0)
BATCH, IMAGES, WIDTH = 64, 1000, 256


def make_data(noise: float) -> tuple[Any, Any]:
    """Returns 1,000 training images, a share of their labels wrong, and the others for the test."""
    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    images, labels = (images[order] / 16).astype(np.float32), labels[order]
    wrong = (rng.random(IMAGES) < noise) * rng.integers(1, 10, IMAGES)
    train = jnp.asarray(images[:IMAGES]), jnp.asarray((labels[:IMAGES] + wrong) % 10)
    return train, (jnp.asarray(images[IMAGES:]), jnp.asarray(labels[IMAGES:]))


def apply(params: Any, images: Any) -> jax.Array:
    """Returns the logits of a network with one hidden layer."""
    return jax.nn.relu(images @ params["hidden"] + params["bias"]) @ params["output"]


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Returns the mean cross-entropy of a batch."""
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(apply(params, images), labels).mean()


def train(key: jax.Array, rho: jax.Array, data: Any, epochs: int) -> jax.Array:
    """Trains one network, and returns accuracy, loss, cosine and rise, those of the last epoch."""
    steps = IMAGES // BATCH
    (images, labels), test = data
    rate = optax.cosine_decay_schedule(0.1, steps * epochs)
    ascent = optax.chain(normalize(), scale_by_radius(rho))
    tx = optax.chain(sharpness_aware(ascent, record()), optax.sgd(rate, momentum=0.9))
    first, second, order = jax.random.split(key, 3)
    params: Any = {
        "hidden": jax.random.normal(first, (64, WIDTH)) / 8,
        "bias": jnp.zeros(WIDTH),
        "output": jax.random.normal(second, (WIDTH, 10)) / 16,
    }

    def train_step(carry: Any, row: jax.Array) -> tuple[Any, Any]:
        params, opt_state = carry

        def value_fn(params: Any) -> jax.Array:
            return loss_fn(params, (images[row], labels[row]))

        value, grads = jax.value_and_grad(value_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params, value=value, value_fn=value_fn)
        cosine = optax.tree.get(opt_state, "gradient_cosine")
        rise = optax.tree.get(opt_state, "loss_rise")
        return (optax.apply_updates(params, updates), opt_state), jnp.stack([value, cosine, rise])

    permutations = jax.vmap(lambda key: jax.random.permutation(key, IMAGES))
    rows = permutations(jax.random.split(order, epochs))[:, : steps * BATCH].reshape(-1, BATCH)
    (params, _), log = jax.lax.scan(train_step, (params, tx.init(params)), rows)
    accuracy = (apply(params, test[0]).argmax(axis=1) == test[1]).mean()
    loss, cosine, rise = log[-steps:].mean(axis=0)
    return jnp.stack([100 * accuracy, loss, cosine, 100 * rise / loss])


def main(
    noise: float = 0.4, epochs: int = 60, seeds: int = 4, out: Path = Path("runs/is_rho_right")
) -> None:
    """Train SAM at eight radii. With `--noise 0` the labels are right."""
    if not 0 <= noise <= 1 or epochs < 1 or seeds < 1:
        raise SystemExit("noise must be from 0 to 1, epochs and seeds at least 1")
    if any(map(Path.is_file, ((out := out.expanduser()), *out.parents))):
        raise SystemExit(f"--out {out} is no folder: there is a file")
    data, keys = make_data(noise), jax.random.split(jax.random.key(1), seeds)
    over_seeds = jax.jit(jax.vmap(train, (0, None, None, None)), static_argnums=3)
    found = [np.float64(over_seeds(keys, jnp.float32(rho), data, epochs)) for rho in RADII]
    columns = ["test accuracy, %", "training loss", "cosine", "rise of the loss, %"]
    table = pd.DataFrame([values.mean(axis=0) for values in found], columns=columns)
    table.index = pd.Index(RADII, name="rho")
    print(table.round({columns[0]: 1, columns[1]: 3, columns[2]: 3, columns[3]: 1}).to_string())
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(7, 2.3))
        for ax, name in zip(axes, [columns[0], columns[2], columns[3]], strict=True):
            ax.plot(RADII[1:], table[name].iloc[1:], "o-", color=plots.COLORS["sam"])
            ax.set(xscale="log", xlabel="rho", ylabel=name)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "is_rho_right.png", dpi=200, bbox_inches="tight")


if __name__ == "__main__":
    tyro.cli(main)
