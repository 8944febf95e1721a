"""Tests that run on eight virtual devices, in a process of their own."""

import os

# The number of devices is fixed when JAX starts.
EIGHT_DEVICES = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
STARTED = os.environ.items() >= EIGHT_DEVICES.items()


def on_eight_devices(test):
    """Collects a test in the process with eight devices only."""
    return test if STARTED else None
