"""The method and the optimizer behind it, and the metrics in their state."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from examples.training.methods import METHODS, Training, make_method, method_arguments
from examples.training.settings import Settings
from xsam_jax import per_group
from xsam_jax.gating import every, gated

STATE_METRICS = ("sharp_gradient_norm", "alpha", "psi")  # in the state, with some methods


def make_schedule(config: Settings, steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate: a linear rise, then a fall by `config.schedule`."""
    warmup = config.warmup_steps or round(config.warmup_epochs * steps_per_epoch)
    total = config.epochs * steps_per_epoch
    fall = optax.cosine_decay_schedule(config.learning_rate, max(total - warmup, 1))
    if config.schedule == "inverse_sqrt":
        start = max(warmup, 1)

        def fall(step: Any) -> jax.Array:
            after = jnp.maximum(step, 0)  # negative in the warmup, where it is not used
            return config.learning_rate * jnp.sqrt(start / (start + after))

    elif config.cosine_every == "epoch":
        of_step = fall
        fall = lambda step: of_step(step // steps_per_epoch * steps_per_epoch)  # noqa: E731
    if not warmup:
        return fall
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([rise, fall], [warmup])


def make_optimizer(
    config: Settings, steps_per_epoch: int, key: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Returns the method in front of the base optimizer, the only part in which methods differ."""
    schedule = make_schedule(config, steps_per_epoch)
    if config.optimizer == "sgd":
        decay = optax.add_decayed_weights(config.weight_decay)
        base = optax.chain(decay, optax.sgd(schedule, momentum=config.momentum))
    else:
        base = optax.adamw(schedule, b2=config.beta_2, weight_decay=config.weight_decay)
    search = {
        "probe_every": config.probe_every or max(1, steps_per_epoch // config.sharp_every),
        "alpha_max": config.alpha_max,
        "num_alphas": config.num_alphas,
        "search": config.search,
        "probe_batch_size": config.probe_batch_size,
    }
    training = Training(config.rho_max, config.ascent_steps, search, base, schedule, key)
    method = make_method(config.method, config.rho, training, **config.method_args)
    if config.sharp_every > 1:
        method = gated(method, every(config.sharp_every))
    if config.groups > 1:
        loop = "unrolled" if jax.default_backend() == "cpu" else "map"
        method = per_group(method, evaluation=loop if config.accumulate > 1 else "vmap")
    return method if METHODS[config.method].has_base else optax.chain(method, record_norm(), base)


def sharp_period(config: Settings) -> int:
    """Returns the number of steps from one sharpness-aware step to the next."""
    return read_number(config, "every") if config.method == "look_sam" else config.sharp_every


def read_number(config: Settings, argument: str) -> int:
    """Returns an argument of the method, an integer, for the trainer's own use."""
    return int({**method_arguments(config.method), **config.method_args}[argument])


def record_norm() -> optax.GradientTransformation:
    """Returns the identity, which keeps the norm of the sharpness-aware gradient for the log."""

    def init_fn(params: optax.Params) -> dict[str, jax.Array]:
        del params
        return {"sharp_gradient_norm": jnp.zeros(())}

    def update_fn(updates: optax.Updates, state: Any, params: Any = None) -> tuple[Any, Any]:
        del state, params
        return updates, {"sharp_gradient_norm": optax.tree.norm(updates).astype(jnp.float32)}

    return optax.GradientTransformation(init_fn, update_fn)


def state_metrics(opt_state: Any) -> dict[str, jax.Array]:
    """Returns the metrics that the method keeps in the state of the optimizer."""
    found = {name: optax.tree.get(opt_state, name) for name in STATE_METRICS}
    found |= optax.tree.get(opt_state, "diagnostics") or {}
    return {name: value for name, value in found.items() if value is not None}
