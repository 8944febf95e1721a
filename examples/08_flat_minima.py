"""How flat the minima of SGD, SAM and XSAM are: curvature, sharpness and the loss around them.

    python -m examples.08_flat_minima        (or: make flat-minima)

Trains a small network with each method on digits with 40 % wrong labels. Measures the Hessian of
the training loss and its average rise in random directions. Expect a top eigenvalue of 13 with SGD,
1.4 with SAM and 1.0 with XSAM, and a trace of 166, 29 and 18. Takes half a minute, draws curves.
"""

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

from xsam_jax import analysis, sam, xsam
from xsam_jax.analysis import plots

BATCH, STEPS = 64, 15  # steps per epoch of 1,000 images


def make_optimizers(rho: float, epochs: int, **search: Any) -> dict[str, Any]:
    schedule = optax.cosine_decay_schedule(0.05, epochs * STEPS)
    sgd = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(schedule, momentum=0.9))
    search |= {"alpha_max": 4.0, "num_alphas": 41, "probe_every": STEPS}
    return {
        "sgd": sgd,
        "sam": optax.chain(sam(rho), sgd),
        "xsam": optax.chain(xsam(rho, 2 * rho, **search), sgd),
    }


def loss_fn(params: Any, batch: Any) -> jax.Array:
    x, labels = batch
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    logits = x @ params[-1]["kernel"] + params[-1]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(tx: Any, params: Any, images: jax.Array, labels: jax.Array, batches: Any) -> Any:
    tx = optax.with_extra_args_support(tx)

    def train_step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
        params, opt_state = carry

        def value_fn(params: Any) -> jax.Array:
            return loss_fn(params, (images[rows], labels[rows]))

        grads = jax.grad(value_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=value_fn)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(train_step, (params, tx.init(params)), batches)[0][0]


def main(
    rho: float = 0.3,
    epochs: int = 60,
    search: Literal["grid", "section"] = "grid",
    probe_batch_size: int | Literal["all"] | None = None,
    out: Path = Path("runs/flat_minima"),
) -> None:
    """Compare the minima that SGD, SAM and XSAM find.

    Args:
        rho: radius of the ascent; XSAM probes at twice this distance
        epochs: passes through the training images
        search: XSAM's search, all values of alpha or a third of them
        probe_batch_size: values of alpha evaluated together; None is 3 on GPU and TPU, 1 on CPU
        out: folder of the picture
    """
    if not (0 < rho < np.inf and epochs >= 1):
        raise SystemExit(f"rho must be above 0 and epochs at least 1, got {rho} and {epochs}")
    out = out.expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--out is no folder: {error}") from None
    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))[:1000]
    images, labels = images[order].astype(np.float32) / 16, labels[order]
    labels = (labels + (rng.permutation(1000) < 400) * rng.integers(1, 10, 1000)) % 10
    start = [
        {"kernel": rng.normal(0, n**-0.5, (n, m)).astype("f"), "bias": np.zeros(m, "f")}
        for n, m in ((64, 256), (256, 256), (256, 10))
    ]
    orders = [rng.permutation(1000)[: STEPS * BATCH] for _ in range(epochs)]
    batches = np.reshape(orders, (-1, BATCH))
    start, key = jax.tree.map(jnp.asarray, start), jax.random.key(0)
    data: Any = {"key": key, "batches": [(images, labels)]}
    places, density, lines = np.linspace(-0.5, 0.5, 41), {}, {}
    print("method   loss  top eigenvalue  trace  average sharpness")
    probe: Any = {"search": search, "probe_batch_size": probe_batch_size}
    for name, tx in make_optimizers(rho, epochs, **probe).items():
        end = jax.jit(train, static_argnums=0)(tx, start, images, labels, batches)
        loss = loss_fn(end, (images, labels))
        (top,) = analysis.top_eigenvalues(loss_fn, end, 1, **data)
        trace, _ = analysis.hessian_trace(loss_fn, end, num_probes=20, **data)
        sharpness, _ = analysis.average_sharpness(loss_fn, end, 0.1, num_directions=50, **data)
        print(f"{name:6} {loss:6.2f}  {top:14.2f}  {trace:5.1f}  {sharpness:17.4f}")
        density[name] = analysis.spectral_density(loss_fn, end, num_probes=2, num_steps=30, **data)
        direction = analysis.random_direction(end, key=key)
        lines[name] = analysis.loss_line(loss_fn, end, direction, places, batches=data["batches"])
    figure, axes = plt.subplots(1, 2, figsize=(6.6, 2.6), layout="constrained")
    plots.spectral_density(density, ax=axes[0])
    plots.loss_line(places, {name: line - line[20] for name, line in lines.items()}, ax=axes[1])
    axes[1].set_ylabel("rise of the loss")
    figure.savefig(out / "flat_minima.png", dpi=200, bbox_inches="tight")
    print("wrote", out / "flat_minima.png")


if __name__ == "__main__":
    tyro.cli(main)
