"""A `TrainState` for Flax linen that passes the loss function to the optimizer.

Import it with `from xsam_jax import flax_linen`. The rest of the library does not need Flax.
"""

import dataclasses
from typing import Any, Self

import optax
from flax.training import train_state


class TrainState(train_state.TrainState):
    """The `TrainState` of Flax, with extra arguments such as `value_fn` for the optimizer.

    The original passes every keyword of `apply_gradients` to `replace`, so the optimizer never
    receives a loss function. Here fields of the state go to `replace`, and others to `tx.update`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from xsam_jax import sam
      >>> model, x = nn.Dense(1), jnp.ones((4, 2))
      >>> state = TrainState.create(
      ...     apply_fn=model.apply,
      ...     params=model.init(jax.random.key(0), x)["params"],
      ...     tx=optax.chain(sam(rho=0.05), optax.sgd(0.1)),
      ... )
      >>> def loss_fn(params):
      ...     return jnp.mean(state.apply_fn({"params": params}, x) ** 2)
      >>> grads = jax.grad(loss_fn)(state.params)
      >>> state = state.apply_gradients(grads=grads, value_fn=loss_fn)
      >>> state.step
      1
    """

    def apply_gradients(self, *, grads: Any, **kwargs: Any) -> Self:
        """Returns the state after one optimizer step.

        Args:
          grads: gradients with the structure of `params`.
          **kwargs: fields of the state to replace, such as `batch_stats` of a subclass, and extra
            arguments of the optimizer, such as `value_fn` (see `sharpness_aware`).

        Returns:
          The new state.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        extra_args = {name: kwargs.pop(name) for name in list(kwargs) if name not in fields}

        def update(updates: Any, state: Any, params: Any) -> Any:
            tx = optax.with_extra_args_support(self.tx)
            return tx.update(updates, state, params, **extra_args)

        tx = optax.GradientTransformation(self.tx.init, update)
        stepped = train_state.TrainState.apply_gradients(self.replace(tx=tx), grads=grads, **kwargs)
        return stepped.replace(tx=self.tx)
