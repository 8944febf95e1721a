"""The method, the base optimizer after it, and its learning rate."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from examples.image_classification.config import Config
from examples.image_classification.methods import METHODS, Training, make_method


def make_schedule(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate: a linear rise, then a cosine down to zero."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = config.epochs * steps_per_epoch
    cosine = optax.cosine_decay_schedule(config.learning_rate, max(total - warmup, 1))
    if not warmup:
        return cosine
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([rise, cosine], [warmup])


def make_optimizer(
    config: Config, steps_per_epoch: int, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Returns the method in front of the base optimizer: the only part in which methods differ."""
    schedule = make_schedule(config, steps_per_epoch)
    if config.optimizer == "sgd":
        decay = optax.add_decayed_weights(config.weight_decay)
        base = optax.chain(decay, optax.sgd(schedule, momentum=config.momentum))
    else:
        base = optax.adamw(schedule, weight_decay=config.weight_decay)
    search = {
        "probe_every": config.probe_every or steps_per_epoch,
        "alpha_max": config.alpha_max,
        "num_alphas": config.num_alphas,
    }
    training = Training(config.rho_max, config.ascent_steps, search, base, schedule, key)
    method = make_method(config.method, config.rho, training, **config.method_args)
    return method if METHODS[config.method].has_base else optax.chain(method, keep_norm(), base)


def keep_norm() -> optax.GradientTransformation:
    """Returns the identity, which keeps the norm of what passes through it, for the log."""

    def init_fn(params: optax.Params) -> dict[str, jax.Array]:
        del params
        return {"sharp_gradient_norm": jnp.zeros(())}

    def update_fn(updates: optax.Updates, state: Any, params: Any = None) -> tuple[Any, Any]:
        del state, params
        return updates, {"sharp_gradient_norm": optax.tree.norm(updates).astype(jnp.float32)}

    return optax.GradientTransformation(init_fn, update_fn)
