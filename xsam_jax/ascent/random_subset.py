"""Perturbations of a random subset of the parameters (ESAM)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax._schedules import advance


def random_subset(
    beta: float | jax.Array, key: jax.Array, *, convention: str = "paper"
) -> optax.GradientTransformation:
    r"""Keeps a random subset of the entries, without changing the mean perturbation (ESAM).

    .. math:: \epsilon \mapsto m \epsilon / \beta, \qquad m \sim \mathrm{Bernoulli}(\beta)

    The subset is drawn anew in each training step and is the same for all its ascent steps. Put it
    last in the chain, `chain(normalize(), scale_by_radius(rho), random_subset(beta, key))`, so that
    the norm is that of the full gradient.

    Args:
      beta: :math:`\beta`, the probability to keep an entry, in (0, 1]. 1 keeps all.
      key: a random key. Step t draws from `jax.random.fold_in(key, t)`.
      convention: "paper" (default) draws for each parameter, "official" for each whole array.
        Static.

    Returns:
      A transformation whose state is a step counter.

    Raises:
      TypeError: `beta` is not a real number, or `key` not a key.
      ValueError: `beta` is out of range, or `convention` is unknown.

    Example:
      >>> tx = random_subset(0.5, jax.random.key(0))
      >>> updates, _ = tx.update(jnp.ones(6), tx.init(jnp.ones(6)))
      >>> updates
      Array([2., 0., 2., 0., 2., 2.], dtype=float32)

    References:
      Du et al., `Efficient Sharpness-aware Minimization for Improved Training of Neural Networks
      <https://arxiv.org/abs/2110.03141>`_, 2022
    """
    checks.real("beta", beta, above=0.0, maximum=1.0)
    checks.random_key("key", key)
    checks.convention(convention)

    def init_fn(params: optax.Params) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        leaves, structure = jax.tree.flatten(updates)
        key_of_step = jax.random.fold_in(key, state.count)
        # In float32, so that the draw is the same with and without x64.
        probability = jnp.float32(beta)

        def keep(index: int, leaf: jax.Array) -> jax.Array:
            shape = jnp.shape(leaf) if convention == "paper" else ()
            drawn = jax.random.bernoulli(jax.random.fold_in(key_of_step, index), probability, shape)
            return jnp.where(drawn, leaf, 0.0)

        kept = [keep(index, leaf) for index, leaf in enumerate(leaves)]
        scaled = tree.scale(1.0 / beta, jax.tree.unflatten(structure, kept))
        return tree.cast_like(scaled, updates), advance(state)

    return optax.GradientTransformation(init_fn, update_fn)
