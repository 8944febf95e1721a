"""XSAM in Flax linen, with BatchNorm and Dropout: digits with 40 % wrong training labels.

    python -m examples.03_flax_linen        (or: make linen; --method sgd or sam to compare)

The `TrainState` of `xsam_jax.flax_linen` passes `value_fn` to the optimizer. BatchNorm's statistics
advance once per step, and both passes of a step share one dropout mask.
Takes a quarter of a minute. Expect a test accuracy of about 94 % with XSAM, 92 % with SAM
and 85 % with SGD.
"""

from typing import Any, Literal

import jax
import numpy as np
import optax
import tyro
from flax import linen as nn
from sklearn.datasets import load_digits

from xsam_jax import flax_linen, sam, xsam

BATCH, STEPS = 64, 20  # steps per epoch


class Network(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(256)(x))
        x = nn.Dropout(0.2, deterministic=not train)(nn.relu(x))
        return nn.Dense(10)(x)


class TrainState(flax_linen.TrainState):
    batch_stats: Any
    key: jax.Array


@jax.jit
def train_step(state: TrainState, images: jax.Array, labels: jax.Array) -> Any:
    dropout_key = jax.random.fold_in(state.key, state.step)

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        logits, new = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), new["batch_stats"]

    (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    new_state = state.apply_gradients(
        grads=grads, batch_stats=batch_stats, value_fn=lambda params: loss_fn(params)[0]
    )
    return new_state, loss


@jax.jit
def accuracy(state: TrainState, images: jax.Array, labels: jax.Array) -> jax.Array:
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, images, train=False)
    return 100 * (logits.argmax(axis=-1) == labels).mean()


def main(
    method: Literal["sgd", "sam", "xsam"] = "xsam",
    rho: float = 0.3,
    epochs: int = 30,
    search: Literal["grid", "section"] = "grid",
    probe_batch_size: int | Literal["all"] | None = None,
) -> None:
    """Train a network with BatchNorm and Dropout on digits with wrong labels.

    Args:
        method: what stands in front of SGD
        rho: radius of the ascent; XSAM probes at twice this distance
        epochs: passes through the training images
        search: XSAM's search, all values of alpha or a third of them
        probe_batch_size: values of alpha evaluated together; None is 3 on GPU and TPU, 1 on CPU
    """
    if not (0 < rho < np.inf and epochs >= 1):
        raise SystemExit(f"rho must be above 0 and epochs at least 1, got {rho} and {epochs}")
    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    images, labels = images[order].astype(np.float32) / 16, labels[order].astype(np.int32)
    train_images, train_labels, test = images[:-500], labels[:-500].copy(), slice(-500, None)
    wrong = rng.permutation(len(train_labels)) < 0.4 * len(train_labels)
    train_labels[wrong] = (train_labels[wrong] + rng.integers(1, 10, wrong.sum())) % 10

    probe: Any = {"search": search, "probe_batch_size": probe_batch_size, "probe_every": STEPS}
    sharp: Any = {
        "sgd": optax.identity(),
        "sam": sam(rho),
        "xsam": xsam(rho, 2 * rho, **probe),
    }
    schedule = optax.cosine_decay_schedule(0.05, epochs * STEPS)
    tx = optax.chain(
        sharp[method], optax.add_decayed_weights(1e-3), optax.sgd(schedule, momentum=0.9)
    )
    model, key = Network(), jax.random.key(0)
    variables = model.init(key, images[:1], train=False)
    state = TrainState.create(apply_fn=model.apply, tx=tx, key=key, **variables)
    for epoch in range(1, epochs + 1):
        for batch in rng.permutation(len(train_labels))[: STEPS * BATCH].reshape(STEPS, BATCH):
            state, loss = train_step(state, train_images[batch], train_labels[batch])
        if epoch % 10 == 0 or epoch == epochs:
            percent = accuracy(state, images[test], labels[test])
            print(f"epoch {epoch:3}  loss {loss:.3f}  test accuracy {percent:.1f} %")


if __name__ == "__main__":
    tyro.cli(main)
