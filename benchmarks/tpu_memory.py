"""Measures the memory of the methods on a TPU, in copies of the parameters, without a TPU.

    pip install libtpu
    python -m benchmarks.tpu_memory      # about 10 minutes

It compiles a training step for TPU v5e by `jax.experimental.topologies`, and reads the peak memory
of the program, less that of SGD. The model is an MLP whose parameters need far more memory than its
activations. docs/at_scale.md has the table.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

import xsam_jax as xj
from benchmarks.measure import markdown, number
from benchmarks.method_costs import TRANSFORMS, UNEQUAL_STEPS
from benchmarks.steps import RHO, RHO_MAX, Step
from benchmarks.tpu import compile_for_tpu, topology

WIDTH, LAYERS, BATCH, DEVICES = 1024, 8, 64, 8
METHODS = {
    "sgd": optax.with_extra_args_support(optax.identity()),
    **TRANSFORMS,
    **UNEQUAL_STEPS,
    "xsam, probes one by one": xj.xsam(RHO, RHO_MAX, probe_batch_size=1),
    "xsam, 2 steps": xj.xsam(RHO, RHO_MAX, steps=2),
}


def loss_fn(params: Any, batch: jax.Array) -> jax.Array:
    """Returns the loss of an MLP."""
    hidden = batch
    for layer in params:
        hidden = jnp.tanh(hidden.astype(layer.dtype) @ layer)
    return jnp.mean(jnp.square(hidden.astype(jnp.float32)))


@functools.cache
def peak(
    method: Any, dtype: Any = jnp.float32, devices: int = 1, fsdp: bool = False, groups: int = 1
) -> float:
    """Returns the peak memory of a device in bytes."""
    tx = optax.chain(xj.per_group(method) if groups > 1 else method, optax.sgd(0.1))

    def step(params: Any, state: Any, batch: Any) -> Any:
        if groups > 1:
            parts = xj.split_into_groups(batch, groups)
            grads = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(params, parts)
            updates, state = tx.update(grads, state, params, value_fn=loss_fn, groups=parts)
        else:
            grads = jax.grad(loss_fn)(params, batch)
            updates, state = tx.update(
                grads, state, params, value_fn=lambda params: loss_fn(params, batch)
            )
        return optax.apply_updates(params, updates), state, None

    params = [jax.ShapeDtypeStruct((WIDTH, WIDTH), dtype) for _ in range(LAYERS)]
    batch = jax.ShapeDtypeStruct((BATCH, WIDTH), dtype)
    chips = topology().devices[:devices]
    compiled = compile_for_tpu(Step(tx.init, step), params, batch, chips, fsdp)
    return compiled.memory_analysis().peak_memory_in_bytes


def copies(name: str, column: str) -> str:
    """Returns a cell: memory beyond that of SGD, in copies of all parameters."""
    method, base, settings = METHODS[name], METHODS["sgd"], SETTINGS[column]
    if name == "look_sam" and "groups" in settings:
        return "no groups"
    if "in_float32" in column:
        method = xj.in_float32(method)
    dtype = settings.get("dtype", jnp.float32)
    size = LAYERS * WIDTH**2 * jnp.dtype(dtype).itemsize
    base_settings = {key: settings[key] for key in settings if key != "groups"}
    return number((peak(method, **settings) - peak(base, **base_settings)) / size)


SETTINGS: dict[str, dict[str, Any]] = {
    "1 device": {},
    "8 devices": {"devices": DEVICES},
    "8, FSDP": {"devices": DEVICES, "fsdp": True},
    "8, a group each": {"devices": DEVICES, "groups": DEVICES},
    "1, bfloat16": {"dtype": jnp.bfloat16},
    "1, `in_float32`": {"dtype": jnp.bfloat16},
}


def state_copies(name: str) -> str:
    """Returns the size of the state in copies of the parameters, counters left out."""
    params = [jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32) for _ in range(LAYERS)]
    state = jax.eval_shape(METHODS[name].init, params)
    return str(sum(leaf.size for leaf in jax.tree.leaves(state)) // (LAYERS * WIDTH**2))


def main() -> None:
    """Prints the table."""
    rows = []
    for name in tqdm(METHODS, leave=False):
        if name != "sgd":
            rows.append([name, state_copies(name), *(copies(name, c) for c in SETTINGS)])
    print(markdown(["", "state", *SETTINGS], rows))


if __name__ == "__main__":
    main()
