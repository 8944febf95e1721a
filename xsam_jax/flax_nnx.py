"""A pure loss function of the parameters from a loss function of a Flax NNX model.

Import it with `from xsam_jax import flax_nnx`. The rest of the library does not need Flax.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from xsam_jax._value_fn import ValueFn


def make_value_fn(
    loss_fn: Callable[..., Any],
    model: nnx.Module,
    *args: Any,
    wrt: Any = nnx.Param,
    has_aux: bool = False,
) -> ValueFn:
    """Returns the loss as a pure function of the parameters, for `optimizer.update(value_fn=...)`.

    It freezes everything but the parameters (BatchNorm statistics, dropout keys and their counters)
    at this call, in the model and in `args`, and drops changes that the loss function makes to it.
    Call it before the gradient, as below, and all passes of a step use the same dropout mask. Call
    it after the gradient, and the further passes use a new one. In both cases statistics advance
    once, in the pass of your own gradient.

    Args:
      loss_fn: `loss_fn(model, *args)`, a scalar, as given to `nnx.value_and_grad`. For the
        `losses_fn` of `esam` it returns a vector, the loss of each sample.
      model: the model.
      *args: the other arguments of `loss_fn`, such as the batch, `nnx.Rngs` or another module.
      wrt: the filter of the parameters, as given to `nnx.Optimizer`.
      has_aux: whether `loss_fn` returns `(loss, aux)` (default False). `aux` is dropped.

    Returns:
      A function of a state like `nnx.state(model, wrt)`, which returns the loss.

    Raises:
      TypeError: `loss_fn` is not a function, `model` is not an `nnx.Module`, or `has_aux` is true
        and `loss_fn` returns no tuple.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from xsam_jax import xsam
      >>> model = nnx.Sequential(
      ...     nnx.Linear(2, 8, rngs=nnx.Rngs(0)), nnx.BatchNorm(8, rngs=nnx.Rngs(1))
      ... )
      >>> tx = optax.chain(xsam(rho=0.1, rho_max=0.2), optax.sgd(0.1))
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> def loss_fn(model, x):
      ...     return jnp.mean(model(x) ** 2)
      >>> @nnx.jit
      ... def train_step(model, optimizer, x):
      ...     value_fn = make_value_fn(loss_fn, model, x)
      ...     loss, grads = nnx.value_and_grad(loss_fn)(model, x)
      ...     optimizer.update(model, grads, value_fn=value_fn, value=loss)
      ...     return loss
      >>> loss = train_step(model, optimizer, jnp.array([[0.0, 1.0], [1.0, 2.0]]))
    """
    if not callable(loss_fn) or isinstance(loss_fn, nnx.Module):
        raise TypeError(
            "loss_fn must be a function of the model and further arguments, as in "
            f"make_value_fn(loss_fn, model, batch), got {type(loss_fn).__name__}"
        )
    if not isinstance(model, nnx.Module):
        raise TypeError(
            "model must be an nnx.Module, as in make_value_fn(loss_fn, model, batch), "
            f"got {type(model).__name__}"
        )
    selected = nnx.filterlib.to_predicate(wrt)

    def is_parameter(path: Any, leaf: Any) -> bool:
        # Paths start with 0 in the model and with 1 in args. The filter sees paths in the model.
        return path[0] == 0 and selected(path[1:], leaf)

    # One split: modules that the model shares with an argument stay shared.
    graphdef, *states = nnx.split((model, args), is_parameter, ...)
    # Pure arrays: Variables of the outer trace may not be mutated inside the inner ones.
    rest = nnx.as_pure(states[1])

    def value_fn(params: Any) -> jax.Array:
        try:
            frozen_model, frozen_args = nnx.merge(graphdef, {0: params}, rest)
        except ValueError as error:
            raise ValueError(
                f"the loss was given other parameters than make_value_fn selected, wrt={wrt!r}: "
                "give the same wrt to nnx.Optimizer and to make_value_fn"
            ) from error
        result = loss_fn(frozen_model, *frozen_args)
        if has_aux and not isinstance(result, tuple):
            raise TypeError(f"with has_aux=True loss_fn must return (loss, aux), got {result!r}")
        return result[0] if has_aux else result

    return value_fn
