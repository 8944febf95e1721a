"""The loss as a function of a part of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from xsam_jax import _checks as checks
from xsam_jax.analysis._objective import check_function


def restrict(
    value_fn: Callable[..., Any], params: Any, mask: Any
) -> tuple[Callable[..., Any], Any]:
    r"""Restricts a loss to some of its parameters, with the others fixed.

    It returns the function :math:`\phi \mapsto L(\phi, \theta_{rest})`, which all functions of
    `xsam_jax.analysis` accept. Its Hessian is the block of the Hessian of :math:`L` that belongs to
    :math:`\phi`, so `top_eigenvalues(*restrict(value_fn, params, mask), 5, key=key)` returns the
    spectrum of a layer. Every call returns a new function, which is compiled anew and has the other
    parameters as constants, so call it once for several analyses.

    Args:
      value_fn: the loss, `value_fn(params)` or `value_fn(params, batch)`.
      params: a pytree of arrays.
      mask: a pytree of booleans with the structure of `params`, or a prefix of it, or a function
        of `params` that returns one. True marks the parameters that stay variable.

    Returns:
      The restricted loss, and its parameters: `params` with None for the fixed ones.

    Raises:
      TypeError: `mask` holds something else than booleans.
      ValueError: `mask` does not fit `params`, or selects nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(params["a"] ** 2) + 3 * jnp.sum(params["b"] ** 2)
      >>> params = {"a": jnp.ones(2), "b": jnp.ones(3)}
      >>> restricted, part = restrict(loss_fn, params, {"a": False, "b": True})
      >>> part
      {'a': None, 'b': Array([1., 1., 1.], dtype=float32)}
      >>> restricted(part)
      Array(11., dtype=float32)
    """
    check_function(value_fn)
    selected = checks.broadcast_mask(mask, params)
    chosen = jax.tree.map(lambda on, leaf: leaf if on else None, selected, params)
    if not jax.tree.leaves(chosen):
        raise ValueError(f"mask selects no parameters, got {selected!r}")

    def restricted(part: Any, *batch: Any) -> Any:
        whole = jax.tree.map(
            lambda own, given: given if own is None else own,
            part,
            params,
            is_leaf=lambda node: node is None,
        )
        return value_fn(whole, *batch)

    return restricted, chosen
