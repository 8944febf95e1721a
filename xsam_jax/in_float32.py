"""Points of the ascent in float32, for parameters of lower precision."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree


def in_float32(method: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    r"""Holds the points of the ascent in float32, for bfloat16 or float16 parameters.

    A perturbed parameter :math:`\theta + \epsilon` in bfloat16 has eight significant bits, so
    rounding removes an :math:`\epsilon` of less than about 1/500 of :math:`\theta`. In a large
    model these are most of its entries. With this wrapper the method receives float32 copies of
    parameters and gradient, and `value_fn` and `grad_fn` are called with float32 parameters. The
    parameters of the caller, and the dtypes of the result, stay as they are.

    Use it if the parameters must be in low precision. It helps if the loss computes with the
    float32 parameters that it is given. If the loss casts them to bfloat16, the perturbation is
    lost again. Where memory allows, keep all parameters in float32 instead.

    Args:
      method: the method, without the optimizer.

    Returns:
      A gradient transformation with the state of `method` for float32 parameters. On a TPU a
      step of `sam` needs no more memory with it, and one of `xsam` two copies of the bfloat16
      parameters (docs/at_scale.md). Leaves in float32 or float64 do not change.

    Raises:
      TypeError: `method` is not a gradient transformation.
      ValueError: in `update`, `params` is missing.

    Example:
      >>> from xsam_jax import sam
      >>> tx = in_float32(sam(rho=0.001))
      >>> loss_fn = lambda params: jnp.sum(jnp.float32(params) ** 2)
      >>> params = jnp.array([3.0, 4.0], jnp.bfloat16)
      >>> grads = jax.grad(loss_fn)(params)
      >>> gradient, _ = tx.update(grads, tx.init(params), params, value_fn=loss_fn)
      >>> gradient.dtype
      dtype(bfloat16)
    """
    checks.transformation("method", method)
    method = optax.with_extra_args_support(method)

    def init_fn(params: optax.Params) -> optax.OptState:
        checks.parameters(params)
        return method.init(_at_least_float32(params))

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        checks.parameters_of_update(params)
        result, state = method.update(
            _at_least_float32(updates), state, _at_least_float32(params), **extra_args
        )
        return tree.cast_like(result, updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _at_least_float32(values: Any) -> Any:
    def cast(leaf: Any) -> Any:
        dtype = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
        if isinstance(leaf, jax.ShapeDtypeStruct):  # `init` takes types, too
            return leaf.update(dtype=dtype)
        return jnp.asarray(leaf, dtype)

    return jax.tree.map(cast, values)
