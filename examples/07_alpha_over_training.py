"""The loss over XSAM's alpha, and how its maximum moves during training (figures 2 and 13).

    python -m examples.07_alpha_over_training        (or: make alpha)

Trains a small network on scikit-learn's digits with XSAM, which probes once an epoch. Before the
first step of some epochs, evaluates the loss over alpha on that step's batch. Expect its maximum
at the alpha* that XSAM finds, between 1.7 and 3.3. Takes ten seconds and draws the curves.
"""

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from sklearn.datasets import load_digits

from xsam_jax import xsam
from xsam_jax.analysis import alpha_profile, plots

BATCH, ALPHAS = 125, np.linspace(0, 4, 41)
EPOCHS = (0, 2, 5, 10, 20, 39)  # after which the loss is evaluated


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Returns the cross-entropy of a network with one hidden layer."""
    logits = jnp.tanh(batch[0] @ params["w1"]) @ params["w2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def main(
    rho: float = 0.3,
    search: Literal["grid", "section"] = "grid",
    probe_batch_size: int | Literal["all"] | None = None,
    out: Path = Path("runs/alpha"),
) -> None:
    """Compare the maximum of the loss over alpha with the alpha* of XSAM.

    Args:
        rho: radius of the ascent; XSAM probes at twice this distance
        search: XSAM's search, all values of alpha or a third of them
        probe_batch_size: values of alpha evaluated together; None is 3 on GPU and TPU, 1 on CPU
        out: folder of the picture
    """
    if not 0 < rho < np.inf:
        raise SystemExit(f"rho must be above 0 and finite, got {rho}")
    out = out.expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--out is no folder: {error}") from None
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    steps = len(labels) // BATCH
    w1, w2 = jnp.split(jax.random.normal(jax.random.key(0), (64, 74)) / 8, [64], axis=1)
    params: Any = {"w1": w1, "w2": w2}
    probe: Any = {"alpha_max": 4.0, "num_alphas": len(ALPHAS), "probe_every": steps}
    probe |= {"search": search, "probe_batch_size": probe_batch_size}
    tx = optax.chain(xsam(rho, 2 * rho, **probe), optax.sgd(0.05, momentum=0.9))
    opt_state = tx.init(params)

    @jax.jit
    def train_step(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any]:
        def value_fn(params: Any) -> jax.Array:
            return loss_fn(params, batch)

        grads = jax.grad(value_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), opt_state

    rng, profiles = np.random.default_rng(0), {}
    print("epoch    loss  maximum at alpha  alpha* of XSAM")
    for epoch in range(EPOCHS[-1] + 1):
        rows = rng.permutation(len(labels))[: steps * BATCH].reshape(steps, BATCH)
        batches = [(images[row], labels[row]) for row in rows]
        if epoch in EPOCHS:
            loss = float(loss_fn(params, batches[0]))
            radii: Any = {"rho": rho, "rho_max": 2 * rho}
            losses = alpha_profile(loss_fn, params, ALPHAS, **radii, batches=batches[:1])
            profiles[f"epoch {epoch}"] = losses
        for batch in batches:
            params, opt_state = train_step(params, opt_state, batch)
        if epoch in EPOCHS:
            found = float(optax.tree.get(opt_state, "alpha"))
            print(f"{epoch:5}  {loss:.4f}  {ALPHAS[np.argmax(losses)]:16.1f}  {found:14.1f}")
    axes: Any = plots.alpha_profiles(ALPHAS, profiles)
    axes.figure.savefig(out / "alpha_over_training.png", dpi=200, bbox_inches="tight")
    print("wrote", out / "alpha_over_training.png")


if __name__ == "__main__":
    tyro.cli(main)
