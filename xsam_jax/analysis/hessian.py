"""The curvature at a point: eigenvalues, trace and spectral density of the Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from xsam_jax import checks, tree
from xsam_jax.analysis.directions import random_tree
from xsam_jax.analysis.objective import (
    Batches,
    Objective,
    Progress,
    check_like,
    checked_finite,
    mean_and_standard_error,
)

ARPACK_VECTORS = 12  # that it keeps at least
RESTARTS = 300


def make_hvp(
    value_fn: Callable[..., Any], params: Any, *, batches: Batches = None
) -> Callable[[Any], Any]:
    r"""Returns the Hessian-vector product :math:`u \mapsto \nabla^2 L(\theta)\, u`.

    The derivative of the gradient along :math:`u`, forward over reverse: the Hessian is never
    formed.

    Args:
      value_fn: the loss, `value_fn(params)`, a real scalar; with `batches`, `value_fn(params,
        batch)`. Networks are in evaluation mode, so that one sample does not depend on another.
      params: :math:`\theta`, a pytree of real floating-point arrays.
      batches: a re-iterable of batches (pytrees of arrays), such as a list; the loss is the mean
        over them, each weighing the same. Batches of one shape compile once. They are arguments of
        the compiled program where what `value_fn` closes over are constants in it, so pass a single
        batch as `batches=[batch]`, too. What is compiled for one function serves later calls with
        it: what changes between them (statistics of BatchNorm, say) belongs in `params` or the
        batch, not into a closure, where it stays what it was.

    Returns:
      A function of a tree with the structure and shapes of `params`, which returns such a tree,
      float32 (float64 under x64). A call takes the time of about two gradients (1.6 to 2.3,
      docs/benchmarks.md), and up to twice the memory of one.

    Raises:
      TypeError: `value_fn` does not return a real scalar, a leaf of `params` is not a real
        floating-point array, or `batches` is an iterator, which runs dry after one pass.
      ValueError: `params` has no parameters, there is no batch, or fewer of them in a later pass.

    Example:
      >>> product = make_hvp(lambda params: params[0] ** 2 * params[1], jnp.array([1.0, 2.0]))
      >>> product(jnp.array([1.0, 0.0]))
      Array([4., 2.], dtype=float32)

    References:
      Pearlmutter, Fast Exact Multiplication by the Hessian, 1994
    """
    objective = Objective(value_fn, params, batches)

    def product(vector: Any) -> Any:
        check_like("the vector", vector, objective.params)
        return objective.hessian_vector_product(vector)

    return product


def top_eigenvalues(
    value_fn: Callable[..., Any],
    params: Any,
    num: int,
    *,
    key: jax.Array,
    batches: Batches = None,
    tolerance: float = 1e-4,
    progress: Progress = None,
) -> np.ndarray:
    r"""Returns the largest eigenvalues of the Hessian, :math:`\lambda_1 \ge \dots \ge \lambda_n`.

    The table of the XSAM paper has :math:`\lambda_1` and :math:`\lambda_1 / \lambda_5`: pass 5.
    Largest means most positive; the negative ones of a saddle are those of `-value_fn`. They come
    from ARPACK's implicitly restarted Lanczos iteration (`scipy.sparse.linalg.eigsh`).

    **Cost.** 15 to 40 products (`make_hvp`) for five eigenvalues of a trained network, 100 where
    the spectrum has no gaps; at the least, and at once in the memory of the host, 2 num + 2 or 12
    vectors in float64: 24 parameter copies in float32 for up to five eigenvalues. On the device
    there are three.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta`.
      num: how many, at least 1 and at most the number of parameters.
      key: a random key, for the vector that the iteration starts with.
      batches: a re-iterable of batches, or None.
      tolerance: the residual :math:`\|H u - \lambda u\| / |\lambda|` to stop at. The error of an
        eigenvalue is at most that, and about its square where its neighbors are apart. In float32
        nothing is gained below 1e-6.
      progress: called with 1 after each product, such as `tqdm().update`.

    Returns:
      A float64 NumPy array of shape (num,), descending.

    Raises:
      TypeError: as `make_hvp`; or `num` is not an integer, or `key` not a key.
      ValueError: as `make_hvp`; or `num` is out of range.
      FloatingPointError: the loss, or a product, is not finite.
      RuntimeError: the iteration did not converge.

    Example:
      >>> loss_fn = lambda params: jnp.sum(jnp.arange(1.0, 51.0) * params**2) / 2
      >>> values = top_eigenvalues(loss_fn, jnp.ones(50), 3, key=jax.random.key(0))
      >>> print(", ".join(f"{value:.3f}" for value in values))
      50.000, 49.000, 48.000

    References:
      Lehoucq et al., ARPACK Users' Guide, 1998; XSAM paper, table 16
    """
    pairs = _eigenpairs(value_fn, params, num, key, batches, tolerance, progress, vectors=False)
    return pairs[0]


def top_eigenpairs(
    value_fn: Callable[..., Any],
    params: Any,
    num: int,
    *,
    key: jax.Array,
    batches: Batches = None,
    tolerance: float = 1e-4,
    progress: Progress = None,
) -> tuple[np.ndarray, list[Any]]:
    r"""Returns the largest eigenvalues of the Hessian with their eigenvectors.

    The eigenvectors are the directions in which a minimum is sharpest: directions for `loss_line`
    and `loss_surface`. Their signs are arbitrary. Cost, errors and source are those of
    `top_eigenvalues`.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta`.
      num: how many, at least 1 and at most the number of parameters.
      key: a random key, for the vector that the iteration starts with.
      batches: a re-iterable of batches, or None.
      tolerance: the residual to stop at, which is about the error of the eigenvectors.
      progress: called with 1 after each product.

    Returns:
      A float64 NumPy array of shape (num,), descending; and a list of `num` trees of norm 1 with
      the structure, shapes and dtypes of `params` (float32 for half precision).

    Example:
      >>> loss_fn = lambda params: 5 * params["a"] ** 2 + params["b"] ** 2
      >>> params = {"a": jnp.float32(1.0), "b": jnp.float32(1.0)}
      >>> values, [vector] = top_eigenpairs(loss_fn, params, 1, key=jax.random.key(0))
      >>> print(values, abs(vector["a"]), abs(vector["b"]))
      [10.] 1.0 0.0
    """
    return _eigenpairs(value_fn, params, num, key, batches, tolerance, progress, vectors=True)


def hessian_trace(
    value_fn: Callable[..., Any],
    params: Any,
    *,
    num_probes: int,
    key: jax.Array,
    batches: Batches = None,
    progress: Progress = None,
) -> tuple[float, float]:
    r"""Estimates the trace of the Hessian, the sum of its eigenvalues, by Hutchinson's method.

    With random signs :math:`z_j \in \{-1, 1\}^n`,

    .. math:: \mathrm{tr}(H) \approx \frac{1}{m} \sum_{j=1}^m z_j^\top H z_j,

    of standard error :math:`\sqrt{2 \sum_{a \ne b} H_{ab}^2 / m}`, which is estimated from the
    terms. Costs `num_probes` products (`make_hvp`); memory is that of one, and of two vectors.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta`.
      num_probes: :math:`m \ge 2`.
      key: a random key; probe j draws from `jax.random.fold_in(key, j)`.
      batches: a re-iterable of batches, or None.
      progress: called with 1 after each product.

    Returns:
      The estimate and its standard error.

    Raises:
      TypeError: as `make_hvp`; or `num_probes` is not an integer, or `key` not a key.
      ValueError: as `make_hvp`; or `num_probes` is less than 2.
      FloatingPointError: the loss, or a product, is not finite.

    Example:
      >>> loss_fn = lambda params: jnp.sum(jnp.array([1.0, 2.0, 3.0]) * params**2) / 2
      >>> hessian_trace(loss_fn, jnp.ones(3), num_probes=2, key=jax.random.key(0))
      (6.0, 0.0)

    References:
      Hutchinson, A Stochastic Estimator of the Trace of the Influence Matrix, 1989
    """
    checks.static_integer("num_probes", num_probes, 2)
    checks.random_key("key", key)
    objective = Objective(value_fn, params, batches)
    objective.value()
    terms = []
    for probe in range(num_probes):
        signs = random_tree(jax.random.fold_in(key, probe), objective.params, jax.random.rademacher)
        terms.append(float(tree.dot(signs, objective.hessian_vector_product(signs))))
        checked_finite("the Hessian-vector product", terms[-1])
        _advance(progress)
    return mean_and_standard_error(terms)


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

    Of the tridiagonal matrix of `num_steps` Lanczos steps from a random direction, uniform on the
    sphere, the eigenvalues :math:`t_i` and the squares :math:`\tau_i^2` of the first entries of the
    eigenvectors are the nodes and weights of a quadrature. The density is their mean over `m`
    directions, each node widened to a Gaussian,

    .. math:: \hat\phi(t) = \frac{1}{m} \sum_{j=1}^m \sum_i \tau_{ij}^2\,
              \mathcal{N}(t;\ t_{ij}, \sigma^2).

    Its mean estimates :math:`\mu = \mathrm{tr}(H) / n`, with the standard error
    :math:`\sqrt{2 (\mathrm{tr}(H^2)/n - \mu^2) / ((n + 2) m)}`; from two steps on, its variance
    estimates that of the eigenvalues, and has :math:`\sigma^2` added. Of a network most eigenvalues
    are near zero, so draw it on a logarithmic axis (`plots.spectral_density`).

    **Cost.** `num_probes * num_steps` products (`make_hvp`), and in the memory of the host
    `num_steps` vectors, float32 (float64 under x64), for full reorthogonalisation, on top of two.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta`.
      num_probes: :math:`m \ge 1`, the number of directions.
      num_steps: the number of Lanczos steps, at least 1; no more are taken than there are
        parameters. The extreme eigenvalues are found first; 80 are usual for a network.
      key: a random key; direction j draws from `jax.random.fold_in(key, j)`.
      batches: a re-iterable of batches, or None.
      width: :math:`\sigma`; None for 1 % of the distance from the first to the last node.
      num_points: the number of points of the grid, two for a width at the least.
      progress: called with 1 after each product.

    Returns:
      The grid, which ends 5 widths beyond the nodes, and the density on it, whose integral is 1:
      float64 NumPy arrays of shape (num_points,).

    Raises:
      TypeError: as `make_hvp`; or an argument is of the wrong type.
      ValueError: as `make_hvp`; or an argument is out of range, or the grid too coarse for `width`.
      FloatingPointError: the loss, or a product, is not finite.

    Example:
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
    # On a grid of 110 widths, two points for each.
    checks.static_integer("num_points", num_points, 221 if width is None else 2)
    checks.random_key("key", key)
    if width is not None:
        checks.real("width", width, above=0.0)
    objective = Objective(value_fn, params, batches)
    objective.value()
    flat = _Flat(objective, progress)
    all_nodes, all_weights = [], []
    for probe in range(num_probes):
        start = random_tree(jax.random.fold_in(key, probe), objective.params, jax.random.normal)
        diagonal, off_diagonal = _lanczos(flat, flat.ravel(start), min(num_steps, objective.size))
        values, vectors = eigh_tridiagonal(diagonal, off_diagonal)
        all_nodes.append(values)
        all_weights.append(vectors[0] ** 2)
    nodes, weights = np.concatenate(all_nodes), np.concatenate(all_weights) / num_probes
    if width is None:
        # All nodes are one for a multiple of the identity.
        width = 0.01 * float(np.ptp(nodes) or np.abs(nodes).max() or 1.0)
    grid = np.linspace(nodes.min() - 5 * width, nodes.max() + 5 * width, num_points)
    if grid[1] - grid[0] > width / 2:
        least = int(np.ceil(2 * (grid[-1] - grid[0]) / width)) + 1
        raise ValueError(
            f"num_points must be at least {least} for a width of {width:g} on a grid from "
            f"{grid[0]:.4g} to {grid[-1]:.4g}, or the width larger, got {num_points}"
        )
    density = np.zeros(num_points)
    for node, weight in zip(nodes, weights, strict=True):  # no matrix of nodes and points
        density += weight * np.exp(-0.5 * ((grid - node) / width) ** 2)
    return grid, density / (width * np.sqrt(2 * np.pi))


class _Flat:
    """The Hessian as an operator on flat vectors of the host."""

    def __init__(self, objective: Objective, progress: Progress) -> None:
        self._objective, self._progress = objective, progress
        leaves, self._structure = jax.tree.flatten(objective.params)
        self._like = leaves
        self._ends = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def ravel(self, vector: Any) -> np.ndarray:
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(vector)])

    def unravel(self, vector: np.ndarray) -> Any:
        parts = zip(np.split(vector, self._ends), self._like, strict=True)
        leaves = [jnp.asarray(part.reshape(leaf.shape), leaf.dtype) for part, leaf in parts]
        return jax.tree.unflatten(self._structure, leaves)

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        product = self.ravel(self._objective.hessian_vector_product(self.unravel(vector)))
        checked_finite("the Hessian-vector product", np.dot(product, product))
        _advance(self._progress)
        return product


def _eigenpairs(
    value_fn: Callable[..., Any],
    params: Any,
    num: int,
    key: jax.Array,
    batches: Batches,
    tolerance: float,
    progress: Progress,
    *,
    vectors: bool,
) -> tuple[np.ndarray, list[Any]]:
    checks.static_integer("num", num, 1)
    checks.random_key("key", key)
    checks.real("tolerance", tolerance, above=0.0)
    objective = Objective(value_fn, params, batches)
    size = objective.size
    if num > size:
        raise ValueError(f"num must be at most {size}, the number of parameters, got {num}")
    objective.value()
    flat = _Flat(objective, progress)
    kept = max(2 * num + 2, ARPACK_VECTORS)
    start = flat.ravel(random_tree(key, objective.params, jax.random.normal)).astype(np.float64)
    if size <= kept:  # where the iteration would take as many products as there are columns
        matrix = np.stack([flat(column) for column in np.eye(size)])
        values, columns = np.linalg.eigh((matrix + matrix.T) / 2)
        values, columns = values[-num:], columns[:, -num:]
    elif not flat(start).any():  # which ARPACK does not start with
        values, columns = np.zeros(num), np.eye(size, num)
    else:
        operator = LinearOperator((size, size), matvec=flat, dtype=np.float64)
        arguments = {"which": "LA", "v0": start, "ncv": kept, "tol": tolerance, "maxiter": RESTARTS}
        try:
            found = eigsh(operator, num, **arguments, return_eigenvectors=vectors)
        except ArpackNoConvergence as error:
            raise RuntimeError(
                f"of {num} eigenvalues {len(error.eigenvalues)} converged: raise tolerance, which "
                f"is {tolerance:g}, or ask for fewer"
            ) from error
        values, columns = found if vectors else (found, np.empty((size, 0)))
    order = np.argsort(values)[::-1]
    trees = [flat.unravel(columns[:, i]) for i in order] if vectors else []
    return np.asarray(values, np.float64)[order], trees


def _lanczos(
    product: Callable[[np.ndarray], np.ndarray], start: np.ndarray, num_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns diagonal and off-diagonal; shorter where the vectors span an invariant subspace."""
    basis = np.empty((num_steps, start.size), start.dtype)
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    vector = start / np.linalg.norm(start)
    for step in range(num_steps):
        basis[step] = vector
        vector = product(vector)
        diagonal.append(float(basis[step] @ vector))
        known = basis[: step + 1]
        for _ in range(2):  # once leaves what rounding has made
            vector -= known.T @ (known @ vector)
        length = float(np.linalg.norm(vector))
        scale = np.abs(diagonal).max() + max(off_diagonal, default=0.0)
        if step + 1 == num_steps or length <= 10 * np.finfo(start.dtype).eps * scale:
            break
        off_diagonal.append(length)
        vector /= length
    return np.array(diagonal), np.array(off_diagonal)


def _advance(progress: Progress) -> None:
    if progress is not None:
        progress(1)
