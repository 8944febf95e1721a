"""Runs of the trainer on the digits, started, stopped and read by tests."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from examples.image_classification.config import Config
from examples.image_classification.presets import settings_for
from examples.training.progress import Progress, Stopped, StopRequest
from examples.training.train import train

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "examples.image_classification"]
# One worker trains the fixture `whole` for all tests.
uses_whole = pytest.mark.xdist_group("whole")


def digits(out, **changes):
    """A run that takes a second."""
    method = changes.get("method", "xsam")
    search = {"num_alphas": 5} if method == "xsam" else {}
    settings = settings_for(None, "digits", "mlp", method) | search | {"epochs": 3}
    return Config(**{**settings, "train_size": 320, "validation_size": 100, **changes}, out=out)


def arguments(config):
    """The command line that gives this configuration."""
    default = Config(**settings_for(None, config.dataset, config.model, config.method))
    words = ["--method", config.method]
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        if value != getattr(default, field.name):
            words.append(f"--{field.name.replace('_', '-')}")
            if value is not True:
                words += value if isinstance(value, tuple) else [str(value)]
    return words


def environment(**variables):
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    # What this process compiles has to be what a subprocess compiles, bit for bit.
    name = "jax_disable_most_optimizations"
    quick = {name.upper(): str(jax.config.read(name))}
    return os.environ | cache | quick | {"PYTHONPATH": str(ROOT)} | variables


def start(config, before=(), extra=(), **variables):
    return subprocess.Popen(
        [*before, *COMMAND, *arguments(config), *extra],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def last_state(folder):
    """The arrays of the last checkpoint."""
    with ocp.CheckpointManager(Path(folder) / "checkpoints") as manager:
        step = manager.latest_step()
        return manager.restore(step, args=ocp.args.StandardRestore())


def records(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def numbers(records):
    """The metrics of a run without timings."""
    timings = ("seconds", "images_per_second")
    return [{name: r[name] for name in r if name not in timings} for r in records]


def assert_bit_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_equal_to_rounding(actual, expected, rtol=2e-3):
    for measured, reference in zip(numbers(actual), numbers(expected), strict=True):
        # Sums in another order, over a few steps.
        chex.assert_trees_all_close(measured, reference, rtol=rtol)


def train_with_few_checkpoints(config):
    return train(dataclasses.replace(config, checkpoint_every=20), show=False)


def stop_at(last, config, monkeypatch):
    """Trains up to a step."""
    update, reached = Progress.update, []

    def counted(self, metrics, epoch):
        update(self, metrics, epoch)
        reached.append(self._done + len(metrics["train_loss"]))

    def requested(self):
        self.is_agreed = reached[-1] == last
        return self.is_agreed

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", counted)
        patch.setattr(StopRequest, "requested", requested)
        with pytest.raises(Stopped, match=f"stopped after step {last}, which is saved"):
            train(config, show=False)


def wait_for(lines, config, process=None):
    """Waits until a run has finished so many epochs."""
    deadline = time.monotonic() + 120
    while not (config.out / "metrics.jsonl").exists() or len(records(config.out)) < lines:
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def signal_after(number, lines, config):
    """Sends this process a signal after so many epochs of a run that it is going to train."""

    def wait_and_send():
        wait_for(lines, config)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait_and_send, daemon=True).start()
