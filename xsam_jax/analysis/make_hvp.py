"""Products of the Hessian with a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xsam_jax.analysis._objective import Batches, Objective, Progress, check_like, checked_finite


def make_hvp(
    value_fn: Callable[..., Any], params: Any, *, batches: Batches = None
) -> Callable[[Any], Any]:
    r"""Returns the Hessian-vector product :math:`u \mapsto \nabla^2 L(\theta)\, u`.

    The derivative of the gradient along :math:`u`, forward over reverse: the Hessian is never
    formed.

    Args:
      value_fn: the loss, `value_fn(params)`, a real scalar, or with `batches`
        `value_fn(params, batch)`. Use networks in evaluation mode, so that one sample does not
        depend on another.
      params: :math:`\theta`, a pytree of real floating-point arrays.
      batches: a re-iterable of batches (pytrees of arrays), such as a list. The loss is the mean
        over them, with equal weights. Batches of one shape compile once. Batches are arguments of
        the compiled program, whereas variables that `value_fn` closes over are constants in it. So
        pass a single batch as `batches=[batch]`, too. Later calls with the same `value_fn` reuse
        the program, with its constants. Values that change between calls, such as BatchNorm
        statistics, belong in `params` or the batch.

    Returns:
      A function that maps a tree with the structure and shapes of `params` to such a tree, float32
      (float64 under x64). A call takes the time of about two gradients (1.6 to 2.3, measured in
      docs/benchmarks.md), and up to twice the memory of one.

    Raises:
      TypeError: `value_fn` does not return a real scalar, a leaf of `params` is not a real
        floating-point array, or `batches` is an iterator, which allows one pass only.
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


class FlatHessian:
    """The Hessian as an operator on flat vectors of the host."""

    def __init__(self, objective: Objective, progress: Progress) -> None:
        self._objective, self._progress = objective, progress
        leaves, self._structure = jax.tree.flatten(objective.params)
        self._like = leaves
        self._ends = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def ravel(self, vector: Any) -> np.ndarray:
        """Returns a tree as a flat vector of the host."""
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(vector)])

    def unravel(self, vector: np.ndarray) -> Any:
        """Returns a flat vector as a tree like the parameters."""
        parts = zip(np.split(vector, self._ends), self._like, strict=True)
        leaves = [jnp.asarray(part.reshape(leaf.shape), leaf.dtype) for part, leaf in parts]
        return jax.tree.unflatten(self._structure, leaves)

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        product = self.ravel(self._objective.hessian_vector_product(self.unravel(vector)))
        checked_finite("the Hessian-vector product", np.dot(product, product))
        report_progress(self._progress)
        return product


def report_progress(progress: Progress) -> None:
    """Calls `progress` with 1, if there is one."""
    if progress is not None:
        progress(1)
