"""The devices of a run: how batches and the state are divided over them."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MIN_SHARDED = 1024  # elements; smaller arrays are replicated


def device_mesh() -> Mesh:
    """Returns the devices of all processes in a row, over which each batch is divided."""
    return jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Places an array that every process has in full."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def join(parts: Any, sharding: NamedSharding) -> Any:
    """Joins the parts that the processes have of the arrays of a batch."""
    return jax.tree.map(lambda part: jax.make_array_from_process_local_data(sharding, part), parts)


def choose_sharding(shape: tuple[int, ...], fsdp: bool, mesh: Mesh | None = None) -> NamedSharding:
    """Returns the sharding of an array of the state, on all devices unless there is a `mesh`.

    With `fsdp` it is divided along its longest axis that is a multiple of the number of devices.
    """
    mesh = device_mesh() if mesh is None else mesh
    axes = [axis for axis, size in enumerate(shape) if size % mesh.size == 0]
    if not fsdp or not axes or math.prod(shape) < MIN_SHARDED:
        return NamedSharding(mesh, P())
    longest = max(axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, P(*[None] * longest, "data"))
