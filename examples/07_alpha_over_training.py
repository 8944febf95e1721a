"""Where is the loss highest, and how does that move while training? Figures 2 and 13 of the paper.

    make alpha             (or: python -m examples.06_alpha_over_training [--out DIR])

Trains a small network on scikit-learn's digits with XSAM, which probes once an epoch. Before some
epochs the loss over alpha is evaluated on a batch, and its maximum is compared with the alpha* that
XSAM found on it. Takes ten seconds.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from examples.experiments import figures
from xsam_jax import xsam
from xsam_jax.analysis import alpha_profile, plots

RHO, RHO_MAX, BATCH, ALPHA_MAX = 0.3, 0.6, 125, 4.0
EPOCHS = (0, 2, 5, 10, 20, 39)


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Returns the cross-entropy of a network with one hidden layer."""
    logits = jnp.tanh(batch[0] @ params["w1"]) @ params["w2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="the loss over alpha while training")
    parser.add_argument("--out", type=Path, default=Path("runs/alpha"), help="folder")
    out = parser.parse_args(argv).out
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    steps = len(labels) // BATCH
    w1, w2 = jnp.split(jax.random.normal(jax.random.key(0), (64, 74)) / 8, [64], axis=1)
    params: Any = {"w1": w1, "w2": w2}
    search: Any = {"alpha_max": ALPHA_MAX, "num_alphas": 41, "probe_every": steps}
    tx = optax.chain(xsam(RHO, RHO_MAX, **search), optax.sgd(0.05, momentum=0.9))
    opt_state = tx.init(params)

    @jax.jit
    def step(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any]:
        grads = jax.grad(loss_fn)(params, batch)
        value_fn = lambda params: loss_fn(params, batch)  # noqa: E731
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), opt_state

    order, alphas = np.random.default_rng(0), np.linspace(0, ALPHA_MAX, 41)
    profiles = {}
    print("epoch    loss  maximum at alpha  alpha* of XSAM")
    for epoch in range(EPOCHS[-1] + 1):
        rows = order.permutation(len(labels))[: steps * BATCH].reshape(steps, BATCH)
        batches = [(images[row], labels[row]) for row in rows]
        if epoch in EPOCHS:
            loss = float(loss_fn(params, batches[0]))
            radii: Any = {"rho": RHO, "rho_max": RHO_MAX}
            losses = alpha_profile(loss_fn, params, alphas, **radii, batches=batches[:1])
            profiles[f"epoch {epoch}"] = losses
        for batch in batches:
            params, opt_state = step(params, opt_state, batch)
        if epoch in EPOCHS:
            found = float(optax.tree.get(opt_state, "alpha"))
            print(f"{epoch:5}  {loss:.4f}  {alphas[np.argmax(losses)]:16.1f}  {found:14.1f}")
    figure, axes = figures.plt.subplots(figsize=(figures.WIDTH, 2.6))
    plots.alpha_profiles(alphas, profiles, ax=axes)
    out.mkdir(parents=True, exist_ok=True)
    print("wrote", figures.save(figure, out / "alpha_over_training"))


if __name__ == "__main__":
    main()
