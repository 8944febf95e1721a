"""The spectral density of the Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from scipy.linalg import eigh_tridiagonal

from xsam_jax import _checks as checks
from xsam_jax.analysis._objective import Batches, Objective, Progress
from xsam_jax.analysis.make_hvp import FlatHessian
from xsam_jax.analysis.random_direction import random_tree


def spectral_density(
    value_fn: Callable[..., Any],
    params: Any,
    *,
    num_probes: int,
    num_steps: int,
    key: jax.Array,
    batches: Batches = None,
    width: float | None = None,
    num_points: int = 2000,
    progress: Progress = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Estimates the density of the Hessian's eigenvalues by stochastic Lanczos quadrature.

    It takes `num_steps` Lanczos steps from a random direction, uniform on the sphere. The
    eigenvalues :math:`t_i` of the tridiagonal matrix are the nodes of a quadrature, and the squares
    :math:`\tau_i^2` of the first entries of its eigenvectors are the weights. The density is their
    mean over :math:`m` directions, with each node widened to a Gaussian,

    .. math:: \hat\phi(t) = \frac{1}{m} \sum_{j=1}^m \sum_i \tau_{ij}^2\,
              \mathcal{N}(t;\ t_{ij}, \sigma^2).

    Its mean estimates :math:`\mu = \mathrm{tr}(H) / n`, with the standard error
    :math:`\sqrt{2 (\mathrm{tr}(H^2)/n - \mu^2) / ((n + 2) m)}`. From two steps on, its variance
    estimates that of the eigenvalues plus :math:`\sigma^2`. Most eigenvalues of a network are near
    zero, so draw it on a logarithmic axis (`plots.spectral_density`).

    **Cost.** `num_probes * num_steps` products (`make_hvp`), and in the memory of the host
    `num_steps` vectors, float32 (float64 under x64), for full reorthogonalisation, on top of two.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta`.
      num_probes: :math:`m \ge 1`, the number of directions.
      num_steps: the number of Lanczos steps, at least 1, and at most the number of
        parameters. The extreme eigenvalues converge first. 80 steps are usual for a network.
      key: a random key. Direction j draws from `jax.random.fold_in(key, j)`.
      batches: a re-iterable of batches, or None.
      width: :math:`\sigma`, or None for 1 % of the distance from the first to the last node.
      num_points: the number of points of the grid (default 2000), at least two per width.
      progress: called with 1 after each product.

    Returns:
      The grid, which ends 5 widths beyond the nodes, and the density on it, whose integral is 1:
      float64 NumPy arrays of shape (num_points,).

    Raises:
      TypeError: as in `make_hvp`, or an argument is of the wrong type.
      ValueError: as in `make_hvp`, or an argument is out of range, or the grid is too coarse for
        `width`.
      FloatingPointError: the loss, or a product, is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(jnp.repeat(jnp.array([0.0, 1.0]), 50) * params**2) / 2
      >>> arguments = {"num_probes": 8, "num_steps": 5, "key": jax.random.key(0)}
      >>> grid, density = spectral_density(loss_fn, jnp.ones(100), **arguments)
      >>> half = np.trapezoid(density[grid > 0.5], grid[grid > 0.5])
      >>> print(f"{half:.1f}")
      0.5

    References:
      Ghorbani et al., `An Investigation into Neural Net Optimization via Hessian Eigenvalue Density
      <https://arxiv.org/abs/1901.10159>`_, 2019
    """
    checks.static_integer("num_probes", num_probes, 1)
    checks.static_integer("num_steps", num_steps, 1)
    # The default grid has 110 widths, with two points each.
    checks.static_integer("num_points", num_points, 221 if width is None else 2)
    checks.random_key("key", key)
    if width is not None:
        checks.real("width", width, above=0.0)
    objective = Objective(value_fn, params, batches)
    objective.value()
    flat = FlatHessian(objective, progress)
    all_nodes, all_weights = [], []
    for probe in range(num_probes):
        start = random_tree(jax.random.fold_in(key, probe), objective.params, jax.random.normal)
        diagonal, off_diagonal = _lanczos(flat, flat.ravel(start), min(num_steps, objective.size))
        values, vectors = eigh_tridiagonal(diagonal, off_diagonal)
        all_nodes.append(values)
        all_weights.append(vectors[0] ** 2)
    nodes, weights = np.concatenate(all_nodes), np.concatenate(all_weights) / num_probes
    if width is None:
        # For a multiple of the identity all nodes are equal.
        width = 0.01 * float(np.ptp(nodes) or np.abs(nodes).max() or 1.0)
    grid = np.linspace(nodes.min() - 5 * width, nodes.max() + 5 * width, num_points)
    if grid[1] - grid[0] > width / 2:
        least = int(np.ceil(2 * (grid[-1] - grid[0]) / width)) + 1
        raise ValueError(
            f"num_points must be at least {least} for a width of {width:g} on a grid from "
            f"{grid[0]:.4g} to {grid[-1]:.4g}, or the width larger, got {num_points}"
        )
    density = np.zeros(num_points)
    for node, weight in zip(nodes, weights, strict=True):  # avoids a matrix of nodes and points
        density += weight * np.exp(-0.5 * ((grid - node) / width) ** 2)
    return grid, density / (width * np.sqrt(2 * np.pi))


def _lanczos(
    product: Callable[[np.ndarray], np.ndarray], start: np.ndarray, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns diagonal and off-diagonal, shorter if the vectors span an invariant subspace."""
    basis = np.empty((num_steps, start.size), start.dtype)
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    vector = start / np.linalg.norm(start)
    for step in range(num_steps):
        basis[step] = vector
        vector = product(vector)
        diagonal.append(float(basis[step] @ vector))
        known = basis[: step + 1]
        for _ in range(2):  # a single pass leaves rounding errors
            vector -= known.T @ (known @ vector)
        length = float(np.linalg.norm(vector))
        scale = np.abs(diagonal).max() + max(off_diagonal, default=0.0)
        if step + 1 == num_steps or length <= 10 * np.finfo(start.dtype).eps * scale:
            break
        off_diagonal.append(length)
        vector /= length
    return np.array(diagonal), np.array(off_diagonal)
