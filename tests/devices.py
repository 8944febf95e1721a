"""Tests that run on eight virtual devices, in a process of their own."""

import os
import re
from collections import Counter

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

# The number of devices is fixed when JAX starts.
EIGHT_DEVICES = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
STARTED = os.environ.items() >= EIGHT_DEVICES.items()


def on_eight_devices(test):
    """Collects a test in the process with eight devices only."""
    return test if STARTED else None


def make_mesh(axis_type=AxisType.Auto, sizes=(8,)):
    names = ("data", "member")[: len(sizes)]
    return jax.make_mesh(sizes, names, axis_types=(axis_type,) * len(sizes))


def in_shard_map(step, mesh=None, **kwargs):
    """A step of parameters, state and a batch, which is sharded over all axes."""
    mesh = mesh or make_mesh()
    specs = {"in_specs": (P(), P(), P(mesh.axis_names)), "out_specs": P()}
    return jax.shard_map(step, mesh=mesh, **(specs | kwargs))


def place(tree, mesh, spec):
    return jax.device_put(tree, NamedSharding(mesh, spec))


def count_collectives(compiled):
    """The number of collectives of each kind in a compiled program."""
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    return Counter(re.findall(rf" ({kinds})(?:-start)?\(", compiled.as_text()))
