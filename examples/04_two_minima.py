"""SGD, SAM and XSAM on the two-dimensional function of the XSAM paper.

    python -m examples.04_two_minima        (or: make two-minima)

Takes five seconds and draws the trajectories. SGD and SAM end in the sharp minimum near
(-16.8, 12.8), loss 0.275. XSAM ends in the flat one near (19.8, 29.9), loss 0.356. The function,
start, learning rate and radii are those of the paper (section D.1, figure 3a). The paper does not
give alpha_max and the number of steps. With `--alpha-max` up to 3 XSAM ends in the sharp minimum.
"""

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib import pyplot as plt

from xsam_jax import sam, xsam
from xsam_jax.analysis.plots import COLORS

START = (-6.0, 10.0)


def loss_fn(params: jax.Array) -> jax.Array:
    """Returns minus the log of two bumps in (mu, sigma): one sharp and deep, one flat."""
    mu, sigma = params

    def divergence(center: float, width: float) -> jax.Array:
        """Returns the KL divergence of N(mu, sigma^2) from N(center, width^2)."""
        return jnp.log(width / sigma) + (sigma**2 + (mu - center) ** 2) / (2 * width**2) - 0.5

    flat = jnp.log(0.7) - divergence(20.0, 30.0) / 1.8**2
    sharp = jnp.log(0.3) - divergence(-20.0, 10.0) / 1.2**2
    return -jnp.logaddexp(flat, sharp)


def make_optimizers(alpha_max: float = 4.0, **search: Any) -> dict[str, Any]:
    """Returns three optimizers that differ in the first link of the chain only."""
    sgd, search = optax.sgd(5.0, momentum=0.9), {"probe_every": 1, "alpha_max": alpha_max} | search
    return {
        "SGD": sgd,
        "SAM": optax.chain(sam(rho=6.0), sgd),
        "XSAM": optax.chain(xsam(rho=6.0, rho_max=18.0, **search), sgd),
    }


def run(tx: Any, steps: int = 400, start: Any = START) -> jax.Array:
    """Returns the trajectory with its start, of shape (steps + 1, 2)."""
    tx = optax.with_extra_args_support(tx)

    def train_step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        params, opt_state = carry
        grads = jax.grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), params

    params = jnp.array(start)
    _, points = jax.lax.scan(train_step, (params, tx.init(params)), length=steps)
    return jnp.concatenate([params[None], points])


def draw(trajectories: dict[str, jax.Array]) -> Any:
    """Returns a contour plot with the trajectories on it."""
    figure, axes = plt.subplots(figsize=(3.3, 2.7))
    grid = np.stack(np.meshgrid(np.linspace(-40, 50, 200), np.linspace(4, 48, 200)))
    losses = jax.vmap(loss_fn, in_axes=1)(jnp.asarray(grid.reshape(2, -1))).reshape(200, 200)
    axes.contour(*grid, losses, np.geomspace(0.27, 3.0, 15), colors="#BBBBBB", linewidths=0.5)
    for size, (name, points) in zip((8, 5, 5), trajectories.items(), strict=True):
        color = COLORS[name.lower()]
        axes.plot(*points.T, color=color, linewidth=1.2, label=name)
        axes.plot(*points[-1], "o", color=color, markersize=size, markeredgecolor="white")
    axes.plot(*START, "x", color="black", markersize=6)
    for text, point in {"start": (-4.5, 7), "sharp": (-28, 8), "flat": (22, 31)}.items():
        axes.annotate(text, point)
    axes.set(xlabel="$\\mu$", ylabel="$\\sigma$")
    axes.legend(loc="upper left", framealpha=1.0, edgecolor="none")
    return figure


def main(
    alpha_max: float = 4.0,
    search: Literal["grid", "section"] = "grid",
    probe_batch_size: int | Literal["all"] | None = None,
    out: Path = Path("runs/two_minima"),
) -> None:
    """Compare SGD, SAM and XSAM on a function with a sharp and a flat minimum.

    Args:
        alpha_max: largest alpha that XSAM probes
        search: XSAM's search, all values of alpha or a third of them
        probe_batch_size: values of alpha evaluated together; None is 3 on GPU and TPU, 1 on CPU
        out: folder of the picture
    """
    if not 0 < alpha_max < np.inf:
        raise SystemExit(f"alpha-max must be above 0 and finite, got {alpha_max}")
    out = out.expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--out is no folder: {error}") from None
    probe: Any = {"search": search, "probe_batch_size": probe_batch_size}
    trajectories = {name: run(tx) for name, tx in make_optimizers(alpha_max, **probe).items()}
    print("method      mu   sigma    loss")
    for name, points in trajectories.items():
        mu, sigma = points[-1]
        print(f"{name:6} {mu:7.2f} {sigma:7.2f} {loss_fn(points[-1]):7.3f}")
    draw(trajectories).savefig(out / "two_minima.png", dpi=200, bbox_inches="tight")
    print("wrote", out / "two_minima.png")


if __name__ == "__main__":
    with plt.rc_context({"font.size": 8}):
        tyro.cli(main)
