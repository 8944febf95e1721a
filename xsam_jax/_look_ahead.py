"""Where to take the next gradient, for methods that take one gradient a step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax._schedules import at_count


def radius_at(rho: optax.ScalarOrSchedule, schedule: optax.OptState) -> jax.Array:
    """Returns the radius at the count of a `schedule_state`, in the dtype of norms."""
    # A copy: a state may be donated, and `rho` may be an array of the caller.
    return jnp.array(at_count(rho, schedule), tree.accumulation_dtype())


def look_ahead(opt_state: optax.OptState, params: optax.Params) -> optax.Params:
    r"""Returns the perturbed parameters at which a method wants its next gradient.

    `sam` takes a second gradient to find the perturbation. `momentum_sam`, `async_sam` and `sampa`
    know it before the step, from their state. Call `look_ahead` before the gradient:

        point = look_ahead(opt_state, params)
        grads = jax.grad(loss_fn)(point, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)

    `params` are never perturbed, so evaluation, checkpoints and weight decay need no care.
    BatchNorm takes its running statistics at `point`, in the only pass there is.

    There is no error if you use it wrongly. Use the result for the gradient alone: `update` and
    `apply_updates` take `params`, or training fails. Put nothing after these methods in a chain:
    they are optimizers, and the loss would rise. Without `look_ahead`, `momentum_sam` and
    `async_sam` are their base optimizer (with "official" weight decay, almost).

    Args:
      opt_state: the state of a method with one gradient a step, or of a chain or wrapper around it.
      params: the parameters :math:`\theta`.

    Returns:
      :math:`\theta + \epsilon`, with the structure, shapes and dtypes of `params`.

    Raises:
      TypeError: `opt_state` has no such state, or more than one.
      ValueError: `opt_state` does not belong to `params`.

    Example:
      >>> import jax.numpy as jnp
      >>> from xsam_jax import momentum_sam
      >>> tx = momentum_sam(optax.sgd(0.1, momentum=0.9), rho=0.5)
      >>> params = jnp.array([3.0, 4.0])
      >>> opt_state = tx.init(params)
      >>> look_ahead(opt_state, params)  # there is no momentum yet
      Array([3., 4.], dtype=float32)
      >>> updates, opt_state = tx.update(2 * params, opt_state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> print(params, look_ahead(opt_state, params))
      [2.4 3.2] [2.1000001 2.8      ]
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=_looks_ahead)
    states = [node for node in nodes if _looks_ahead(node)]
    if len(states) != 1:
        raise TypeError(
            f"opt_state has {len(states) or 'no'} states of momentum_sam, async_sam or sampa, one "
            "is needed: write tx = momentum_sam(optimizer, rho), opt_state = tx.init(params), and "
            "look_ahead(opt_state, params)"
        )
    checks.parameters(params)
    try:
        perturbation = states[0].perturbation(params)
        shapes = [list(map(jnp.shape, jax.tree.leaves(tree))) for tree in (perturbation, params)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"shapes are {shapes[0]} and {shapes[1]}")
        return optax.apply_updates(params, perturbation)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "opt_state does not belong to params: write opt_state = tx.init(params), and in Flax "
            "NNX params = nnx.as_pure(nnx.state(model, nnx.Param))"
        ) from error


def _looks_ahead(node: Any) -> bool:
    return callable(getattr(node, "perturbation", None))
