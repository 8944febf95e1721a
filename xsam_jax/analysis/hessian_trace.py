"""The trace of the Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax.analysis._objective import (
    Batches,
    Objective,
    Progress,
    checked_finite,
    mean_and_standard_error,
)
from xsam_jax.analysis.make_hvp import report_progress
from xsam_jax.analysis.random_direction import random_tree


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
    terms. It costs `num_probes` products (`make_hvp`), and the memory of one and of two vectors.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta`.
      num_probes: :math:`m \ge 2`.
      key: a random key. Probe j draws from `jax.random.fold_in(key, j)`.
      batches: a re-iterable of batches, or None.
      progress: called with 1 after each product.

    Returns:
      The estimate and its standard error.

    Raises:
      TypeError: as in `make_hvp`, or `num_probes` is not an integer, or `key` not a key.
      ValueError: as in `make_hvp`, or `num_probes` is less than 2.
      FloatingPointError: the loss, or a product, is not finite.

    Example:
      >>> import jax.numpy as jnp
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
    dot = jax.jit(tree.dot)
    terms = []
    for probe in range(num_probes):
        signs = random_tree(jax.random.fold_in(key, probe), objective.params, jax.random.rademacher)
        terms.append(float(dot(signs, objective.hessian_vector_product(signs))))
        checked_finite("the Hessian-vector product", terms[-1])
        report_progress(progress)
    return mean_and_standard_error(terms)
