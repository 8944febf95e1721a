"""The processes of a run, and the cache of compiled programs."""

import os
from pathlib import Path

import jax


def cache_compilations() -> None:
    """Caches compiled programs in the user's cache folder, unless JAX already has a folder."""
    option = "jax_compilation_cache_dir"
    if getattr(jax.config, option) is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update(option, str(folder / "xsam_jax" / "compiled"))


def initialize_distributed() -> None:
    """Joins the processes of a pod slice or cluster, which JAX detects.

    Where JAX detects none, it reads `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`.
    """

    def read_integer(name: str) -> int | None:
        return int(os.environ[name]) if name in os.environ else None

    jax.distributed.initialize(
        num_processes=read_integer("JAX_NUM_PROCESSES"), process_id=read_integer("JAX_PROCESS_ID")
    )


def is_main() -> bool:
    """Returns whether this process writes and prints."""
    return jax.process_index() == 0
