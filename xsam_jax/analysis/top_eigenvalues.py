"""The largest eigenvalues of the Hessian, and their eigenvectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from xsam_jax import _checks as checks
from xsam_jax.analysis._objective import Batches, Objective, Progress
from xsam_jax.analysis.make_hvp import FlatHessian
from xsam_jax.analysis.random_direction import random_tree

ARPACK_VECTORS = 12  # the least number of vectors that the iteration keeps
RESTARTS = 300


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
    r"""Returns the largest eigenvalues of the Hessian, :math:`\lambda_1 \ge \ldots \ge \lambda_n`.

    The table of the XSAM paper has :math:`\lambda_1` and :math:`\lambda_1 / \lambda_5`, so pass 5
    for it. Largest means most positive. For the most negative ones, pass the negative loss. They
    come from ARPACK's implicitly restarted Lanczos iteration (`scipy.sparse.linalg.eigsh`).

    **Cost.** 15 to 40 products (`make_hvp`) for five eigenvalues of a trained network, 100 if the
    spectrum has no gaps. The host holds max(2 num + 2, 12) vectors in float64, the memory of 24
    parameter copies in float32 for up to five eigenvalues. The device holds three copies.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta`.
      num: the number of eigenvalues, from 1 to the number of parameters.
      key: a random key, for the start vector of the iteration.
      batches: a re-iterable of batches, or None.
      tolerance: the residual :math:`\|H u - \lambda u\| / |\lambda|` to stop at (default 1e-4). The
        error of an eigenvalue is at most that, and about its square if its neighbors are not close.
        In float32 a value below 1e-6 does not help.
      progress: called with 1 after each product, such as `tqdm().update`.

    Returns:
      A float64 NumPy array of shape (num,), descending.

    Raises:
      TypeError: as in `make_hvp`, or `num` is not an integer, or `key` not a key.
      ValueError: as in `make_hvp`, or `num` is out of range.
      FloatingPointError: the loss, or a product, is not finite.
      RuntimeError: the iteration did not converge.

    Example:
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(jnp.arange(1.0, 51.0) * params**2) / 2
      >>> values = top_eigenvalues(loss_fn, jnp.ones(50), 3, key=jax.random.key(0))
      >>> print(", ".join(f"{value:.3f}" for value in values))
      50.000, 49.000, 48.000

    References:
      Lehoucq et al., ARPACK Users' Guide, 1998, and Chen and Zhou, `Revisiting Sharpness-Aware
      Minimization <https://arxiv.org/abs/2603.10048>`_, 2026, table 16
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

    The eigenvectors are the directions in which a minimum is sharpest. Use them in `loss_line` and
    `loss_surface`. Their signs are arbitrary. Cost, errors and source are those of
    `top_eigenvalues`.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta`.
      num: the number of eigenvalues, from 1 to the number of parameters.
      key: a random key, for the start vector of the iteration.
      batches: a re-iterable of batches, or None.
      tolerance: the residual to stop at (default 1e-4), about the error of the eigenvectors.
      progress: called with 1 after each product.

    Returns:
      A float64 NumPy array of shape (num,), descending, and a list of `num` trees of norm 1 with
      the structure, shapes and dtypes of `params` (float32 for half precision).

    Example:
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params: 5 * params["a"] ** 2 + params["b"] ** 2
      >>> params = {"a": jnp.float32(1.0), "b": jnp.float32(1.0)}
      >>> values, [vector] = top_eigenpairs(loss_fn, params, 1, key=jax.random.key(0))
      >>> print(values, abs(vector["a"]), abs(vector["b"]))
      [10.] 1.0 0.0
    """
    return _eigenpairs(value_fn, params, num, key, batches, tolerance, progress, vectors=True)


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
    flat = FlatHessian(objective, progress)
    kept = max(2 * num + 2, ARPACK_VECTORS)
    start = flat.ravel(random_tree(key, objective.params, jax.random.normal)).astype(np.float64)
    if size <= kept:  # the iteration would need as many products as there are columns
        matrix = np.stack([flat(column) for column in np.eye(size)])
        values, columns = np.linalg.eigh((matrix + matrix.T) / 2)
        values, columns = values[-num:], columns[:, -num:]
    elif not flat(start).any():  # a zero product, which ARPACK refuses
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
