"""All devices as one mesh: where parameters and images lie."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

FEW = 1024  # elements; smaller arrays are copied rather than sharded


class Devices:
    """The devices of all processes in a row, over which the images of a batch are divided.

    Attributes:
      count: the number of devices.
      replicated: the sharding of what every device has a copy of.
      batch: the sharding of arrays whose first axis is the batch.
      steps: the sharding of arrays of several batches, whose first axis is the step.
    """

    def __init__(self) -> None:
        self.count = jax.device_count()
        self._mesh = jax.make_mesh((self.count,), ("data",), (AxisType.Auto,))
        self.replicated = NamedSharding(self._mesh, P())
        self.batch = NamedSharding(self._mesh, P("data"))
        self.steps = NamedSharding(self._mesh, P(None, "data"))

    def place(self, array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        """Places an array that every process has in full."""
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def join_batch(self, array: np.ndarray) -> jax.Array:
        """Joins what each process has of a batch."""
        return jax.make_array_from_process_local_data(self.batch, array)

    def join_steps(self, array: np.ndarray) -> jax.Array:
        """Joins what each process has of several batches, whose first axis is the step."""
        return jax.make_array_from_process_local_data(self.steps, array)

    def shardings(self, state: Any, fsdp: bool) -> Any:
        """Returns a sharding for every leaf of the state, of which shapes suffice.

        With `fsdp` an array is divided along its longest axis that the devices divide.
        """

        def sharding(leaf: Any) -> NamedSharding:
            axes = [axis for axis, size in enumerate(leaf.shape) if size % self.count == 0]
            if not fsdp or not axes or leaf.size < FEW:
                return self.replicated
            longest = max(axes, key=lambda axis: leaf.shape[axis])
            return NamedSharding(self._mesh, P(*[None] * longest, "data"))

        return jax.tree.map(sharding, state)


def cache_compilations() -> None:
    """Keeps compiled programs in the user's cache, unless JAX is already told where to."""
    option = "jax_compilation_cache_dir"
    if getattr(jax.config, option) is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update(option, str(folder / "xsam_jax" / "compiled"))


def initialize_distributed() -> None:
    """Joins the processes of a pod slice or cluster, which JAX detects.

    On other machines `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` say it.
    """

    def number(name: str) -> int | None:
        return int(os.environ[name]) if name in os.environ else None

    jax.distributed.initialize(
        num_processes=number("JAX_NUM_PROCESSES"), process_id=number("JAX_PROCESS_ID")
    )


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0
