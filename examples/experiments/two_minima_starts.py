"""How often each method ends in the flat minimum of example 04, from 42 starting points.

    python -m examples.experiments.two_minima_starts      # half a minute

The points are a grid, of mu from -30 to 30 and sigma from 5 to 30. The paper has no number of them.
A run ends in the flat minimum if it is nearer to it than to the sharp one after 400 steps.
"""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

from xsam_jax import sam, xsam

SHARP, FLAT = jnp.array([-16.8, 12.8]), jnp.array([19.8, 29.9])
STARTS = jnp.stack(jnp.meshgrid(jnp.linspace(-30, 30, 7), jnp.linspace(5, 30, 6)), -1).reshape(
    -1, 2
)


def flat_ends(tx: Any) -> int:
    """Returns the number of starting points from which a run ends in the flat minimum."""
    minima: Any = importlib.import_module("examples.04_two_minima")

    def end(start: jax.Array) -> jax.Array:
        return minima.run(tx, start=start)[-1]

    ends = jax.jit(jax.vmap(end))(STARTS)
    nearer = jnp.linalg.norm(ends - FLAT, axis=1) < jnp.linalg.norm(ends - SHARP, axis=1)
    return int(jnp.sum(nearer))


def main() -> None:
    """Prints the numbers for SGD, SAM and XSAM."""
    sgd = optax.sgd(5.0, momentum=0.9)
    print(f"ends in the flat minimum, of {len(STARTS)}:")
    print("SGD", flat_ends(sgd))
    for rho in (3.0, 6.0, 9.0):
        print(f"SAM, rho {rho:g}", flat_ends(optax.chain(sam(rho), sgd)))
    for alpha_max in (2.0, 4.0):
        for rho_max in (12.0, 18.0, 24.0):
            search: Any = {"alpha_max": alpha_max, "num_alphas": int(10 * alpha_max) + 1}
            method = xsam(6.0, rho_max, probe_every=1, **search)
            found = flat_ends(optax.chain(method, sgd))
            print(f"XSAM, alpha_max {alpha_max:g}, rho_max {rho_max:g}", found)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
