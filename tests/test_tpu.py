"""Steps compiled for TPUs, where the compiler is installed (`pip install libtpu`)."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the compiler: pip install libtpu"
)
ROOT = Path(__file__).parent.parent
STEPS = ("gradient", "hand-written SAM", "sam", "slerp_sam", "xsam")


def compiled(*options):
    """The cells of the table by step and column."""
    command = [sys.executable, "-m", "benchmarks.tpu", "--only", *STEPS, *options]
    # Without the options by which the tests compile for CPU.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, _, header, _, *rows = done.stdout.splitlines()
    names = [name.strip() for name in header.strip("| ").split("|")]
    table = {}
    for row in rows:
        step, *cells = [cell.strip() for cell in row.strip().strip("|").split("|")]
        numbers = [float(cell.replace(",", "")) if cell else None for cell in cells]
        table[step] = dict(zip(names, numbers, strict=True))
    return table


def test_step_with_large_parameters():
    table = compiled("--models", "mlp")
    by_hand, sam, slerp_sam, xsam = (table[name] for name in STEPS[1:])
    for column in ("GFLOP", "MB accessed", "temporary MB", "collectives", "their MB"):
        assert sam[column] == pytest.approx(by_hand[column], rel=0.01)
    assert slerp_sam["MB accessed"] <= 1.08 * sam["MB accessed"]
    assert slerp_sam["collectives"] == sam["collectives"]
    assert xsam["collectives"] == sam["collectives"] + 1  # the mean of the probe's losses
    assert xsam["peak MB"] <= table["gradient"]["peak MB"]
    assert xsam["estimated Mcycles, least"] < xsam["most"]


def test_step_with_sharded_parameters_on_a_pod():
    table = compiled("--size", "tiny", "--topology", "v5e:16x16", "--fsdp")
    assert table["sam"]["collectives"] == table["hand-written SAM"]["collectives"]
