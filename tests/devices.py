"""Tests that run on eight virtual devices, in a process of their own."""

import os
import re
from collections import Counter

import jax
from jax.sharding import NamedSharding

# The number of devices is fixed when JAX starts.
EIGHT_DEVICES = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
STARTED = os.environ.items() >= EIGHT_DEVICES.items()


def on_eight_devices(test):
    """Collects a test in the process with eight devices only."""
    return test if STARTED else None


def place(tree, mesh, spec):
    return jax.device_put(tree, NamedSharding(mesh, spec))


def count_collectives(compiled):
    """The number of collectives of each kind in a compiled program."""
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    return Counter(re.findall(rf" ({kinds})(?:-start)?\(", compiled.as_text()))
