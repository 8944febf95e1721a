"""SGD, SAM and XSAM on the two-dimensional function of the XSAM paper: who finds the flat minimum?

    make two-minima        (or: python -m examples.02_two_minima [--out DIR])

Takes five seconds. SGD and SAM end in the sharp minimum near (-16.8, 12.8), loss 0.275; XSAM in the
flat one near (19.8, 29.9), loss 0.356. All settings are the paper's (section D.1, figure 3a).
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from examples.experiments import figures
from xsam_jax import sam, xsam

START = (-6.0, 10.0)


def loss_fn(params: jax.Array) -> jax.Array:
    """Returns L(mu, sigma): minus the log of two bumps, one sharp and deep, one flat."""
    mu, sigma = params

    def divergence(center: float, width: float) -> jax.Array:
        """KL divergence from N(center, width^2) to N(mu, sigma^2)."""
        return jnp.log(width / sigma) + (sigma**2 + (mu - center) ** 2) / (2 * width**2) - 0.5

    flat = jnp.log(0.7) - divergence(20.0, 30.0) / 1.8**2
    sharp = jnp.log(0.3) - divergence(-20.0, 10.0) / 1.2**2
    return -jnp.logaddexp(flat, sharp)


def make_optimizers() -> dict[str, optax.GradientTransformationExtraArgs]:
    """Returns the three methods, which differ in the first link of the chain only."""
    sgd = optax.sgd(5.0, momentum=0.9)
    return {
        "SGD": optax.chain(sgd),
        "SAM": optax.chain(sam(rho=6.0), sgd),
        "XSAM": optax.chain(xsam(rho=6.0, rho_max=18.0, alpha_max=4.0, probe_every=1), sgd),
    }


def run(tx: optax.GradientTransformationExtraArgs, start: Any = START, steps: int = 400) -> Any:
    """Returns the points passed, the start included, of shape (steps + 1, 2)."""

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        params, opt_state = carry
        grads = jax.grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), params

    params = jnp.asarray(start, float)
    _, points = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return jnp.concatenate([params[None], points])


def draw(trajectories: dict[str, jax.Array]) -> figures.Figure:
    """Returns the contour plot with the trajectories on it."""
    figure, axes = figures.plt.subplots(figsize=(figures.WIDTH, 2.7))
    grid = np.stack(np.meshgrid(np.linspace(-40, 50, 200), np.linspace(4, 48, 200)))
    losses = jax.vmap(loss_fn, in_axes=1)(jnp.asarray(grid.reshape(2, -1))).reshape(200, 200)
    axes.contour(*grid, losses, np.geomspace(0.27, 3.0, 15), colors="#BBBBBB", linewidths=0.5)
    for size, (name, points) in zip((8, 5, 5), trajectories.items(), strict=True):
        color = figures.COLORS[name.lower()]
        axes.plot(*points.T, color=color, linewidth=1.2, label=name)
        axes.plot(*points[-1], "o", color=color, markersize=size, markeredgecolor="white")
    axes.plot(*START, "x", color="black", markersize=6)
    for text, point in {"start": (-4.5, 7), "sharp": (-28, 8), "flat": (22, 31)}.items():
        axes.annotate(text, point)
    axes.set(xlabel="$\\mu$", ylabel="$\\sigma$")
    axes.legend(loc="upper left", framealpha=1.0, edgecolor="none")
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="SGD, SAM and XSAM on a two-dimensional function")
    parser.add_argument("--out", type=Path, default=Path("runs/two_minima"), help="folder")
    arguments = parser.parse_args(argv)
    trajectories = {name: run(tx) for name, tx in make_optimizers().items()}
    print("method      mu   sigma    loss")
    for name, points in trajectories.items():
        mu, sigma = points[-1]
        print(f"{name:6} {mu:7.2f} {sigma:7.2f} {loss_fn(points[-1]):7.3f}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    print("wrote", figures.save(draw(trajectories), arguments.out / "trajectories"))


if __name__ == "__main__":
    main()
