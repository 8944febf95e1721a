"""Why SAM applies the gradient of the ascent at its start (figure 1 of the XSAM paper).

    python -m examples.05_why_the_ascent_gradient        (or: make why)

g_0 is the gradient, and g_1 the gradient after an ascent of length rho along g_0. On a quadratic,
from some rho_max on, the loss at that distance is higher along g_1 than along g_0. Taylor's formula
gives this rho_max: 0.031, 0.081 and 0.112 for three rho. Beyond g_1 the loss is higher still.
Expect the same of a network on digits, with rho 0.5 from 0.15 on at step 20 and 0.1 at step 800.
Takes half a minute and draws the planes.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

from xsam_jax import analysis, sam
from xsam_jax.analysis import plots

HESSIAN = jnp.diag(jnp.array([1.0, 12.0]))


def quadratic_loss(x: jax.Array) -> jax.Array:
    return 0.5 * x @ HESSIAN @ x


def threshold(x: jax.Array, rho: float) -> float:
    """Returns the rho_max from which on the loss is higher along g_1, by Taylor's formula."""
    g0 = HESSIAN @ x
    u0 = g0 / jnp.linalg.norm(g0)
    u1 = (g0 + rho * HESSIAN @ u0) / jnp.linalg.norm(g0 + rho * HESSIAN @ u0)
    return float(2 * (g0 @ u0 - g0 @ u1) / (u1 @ HESSIAN @ u1 - u0 @ HESSIAN @ u0))


def network_loss(params: Any, batch: Any) -> jax.Array:
    logits = jnp.tanh(batch[0] @ params["w1"]) @ params["w2"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def train_network(steps: int) -> tuple[Any, Any]:
    """Returns parameters, and the batch that would come next."""
    images, labels = map(jnp.asarray, load_digits(return_X_y=True))
    keys = jax.random.split(jax.random.key(0))
    w1, w2 = jnp.split(jax.random.normal(keys[0], (64, 74)) / 8, [64], axis=1)
    rows = jax.random.randint(keys[1], (steps + 1, 125), 0, len(labels))

    def train_step(params: Any, row: jax.Array) -> tuple[Any, None]:
        grads = jax.grad(network_loss)(params, (images[row] / 16, labels[row]))
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), None

    params, _ = jax.lax.scan(train_step, {"w1": w1, "w2": w2}, rows[:-1])
    return params, (images[rows[-1]] / 16, labels[rows[-1]])


def angle(first: Any, second: Any) -> float:
    """Returns the angle between two gradients in degrees."""
    lengths = optax.tree.norm(first) * optax.tree.norm(second)
    return float(np.degrees(np.arccos(optax.tree.vdot(first, second) / lengths)))


def study(name: str, loss: Any, params: Any, rho: float, batches: Any, axes: Any) -> None:
    """Draws the plane of both gradients and the gap between them, and prints the numbers."""
    radii: Any = {"rho": rho, "rho_max": 2 * rho, "batches": batches}
    ends = analysis.alpha_profile(loss, params, [0.0, 1.0], **radii)
    rise, alpha = analysis.max_alpha_sharpness(loss, params, **radii, alpha_max=4, num_alphas=81)
    plane = analysis.ascent_plane(loss, params, rho=rho, batches=batches)
    value_fn = lambda params: loss(params, *(batches or []))  # noqa: E731
    center, g0 = jax.value_and_grad(value_fn)(params)
    tx = sam(rho)
    g1, _ = tx.update(g0, tx.init(params), params, value_fn=value_fn)
    print(f"{name}: loss {center:.4f}, {angle(g0, g1):.1f} degrees from g_0 to g_1")
    along = " and ".join(f"{end - center:.4f} along g_{i}" for i, end in enumerate(ends))
    print(f"  at rho_max {2 * rho:g} it rises by {along}, {rise:.4f} at alpha {alpha:.2f}")
    places = 2.3 * rho * np.linspace(-1, 1, 31)
    x, y = plane.direction_x, plane.direction_y
    surface = analysis.loss_surface(loss, params, x, y, places, places, batches=batches)
    radii = {"rho": rho, "rho_max": 2 * rho}
    plots.ascent_plane(plane, places, places, surface, **radii, alpha=alpha, ax=axes[0])
    axes[0].set_title(name, fontsize=8)
    rhos, rho_maxs = [rho / 4, rho, 2 * rho], np.linspace(0, 4 * rho, 121)[1:]
    gaps = analysis.gradient_gap(loss, params, rhos, rho_maxs, batches=batches)
    plots.gradient_gap(rhos, rho_maxs, gaps, ax=axes[1])
    axes[1].legend(loc="upper left")
    for length, gap in zip(rhos, gaps, strict=True):
        first = [*rho_maxs, np.inf][np.flatnonzero(gap <= 0).max(initial=-1) + 1]
        exact = f", exactly {threshold(params, length):.3g}" if loss is quadratic_loss else ""
        print(f"  rho {length:g}: higher along g_1 at rho_max {first:.3g} and beyond{exact}")


def main(out: Path = Path("runs/why")) -> None:
    """Compare the loss along the gradient and along SAM's gradient.

    Args:
        out: folder of the picture
    """
    out = out.expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--out is no folder: {error}") from None
    figure, grid = plt.subplots(2, 3, figsize=(9.6, 5.4), layout="constrained")
    study("a quadratic", quadratic_loss, jnp.array([1.5, 0.12]), 0.3, None, grid[:, 0])
    for column, steps in ((1, 20), (2, 800)):
        params, batch = train_network(steps)
        study(f"a network, step {steps}", network_loss, params, 0.5, [batch], grid[:, column])
    figure.savefig(out / "why_the_ascent_gradient.png", dpi=200, bbox_inches="tight")
    print("wrote", out / "why_the_ascent_gradient.png")


if __name__ == "__main__":
    tyro.cli(main)
