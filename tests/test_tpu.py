"""Programs for TPUs, compiled where the compiler is installed (`pip install libtpu`)."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.program_text import collectives, estimated_cycles

needs_compiler = pytest.mark.skipif(
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


@needs_compiler
def test_step_with_large_parameters():
    table = compiled("--models", "mlp")
    by_hand, sam, slerp_sam, xsam = (table[name] for name in STEPS[1:])
    for column in ("GFLOP", "MB accessed", "temporary MB", "collectives", "their MB"):
        assert sam[column] == pytest.approx(by_hand[column], rel=0.01)
    assert slerp_sam["MB accessed"] <= 1.08 * sam["MB accessed"]
    assert slerp_sam["collectives"] == sam["collectives"]
    assert xsam["collectives"] == sam["collectives"] + 1  # the mean of the probe's losses
    assert xsam["peak MB"] <= table["gradient"]["peak MB"]
    assert xsam["peak MB"] <= 1.01 * slerp_sam["peak MB"]
    assert xsam["temporary MB"] <= 2 * slerp_sam["temporary MB"]
    assert xsam["estimated Mcycles, least"] < xsam["most"]


@needs_compiler
def test_step_with_sharded_parameters_on_a_pod():
    table = compiled("--size", "tiny", "--topology", "v5e:16x16", "--fsdp")
    assert table["sam"]["collectives"] == table["hand-written SAM"]["collectives"]
    assert table["xsam"]["collectives"] > table["slerp_sam"]["collectives"]


PROGRAM = """HloModule step

%body (arg: f32[8]) -> f32[8] {
  %a = f32[8]{0} fusion(%arg), backend_config={"estimated_cycles":"10"}
  %b = f32[8]{0} all-reduce(%a), to_apply=%sum
}

%condition (arg: f32[8]) -> pred[] {
  %limit = s32[] constant(7)
}

%probe (arg: f32[8]) -> f32[8] {
  %w = f32[8]{0} while(%arg), condition=%condition, body=%body
}

%keep (arg: f32[8]) -> f32[8] {
  %k = f32[8]{0} copy(%arg), backend_config={"estimated_cycles":"3"}
}

ENTRY %main (x: f32[8], due: s32[]) -> f32[8] {
  %g = (f32[2,8]{1,0:T(8,128)}, bf16[4]{0}) all-reduce(%x, %y), to_apply=%sum
  %s = (f32[8]{0}, f32[64]{0}) all-gather-start(%x), dimensions={0}
  %d = f32[64]{0} all-gather-done(%s)
  %f = f32[8]{0} fusion(%g), backend_config={"estimated_cycles":"100"}
  ROOT %c = f32[8]{0} conditional(%due, %f, %f), branch_computations={%keep, %probe}
}
"""


def test_collectives_of_a_program_and_their_bytes():
    assert collectives(PROGRAM) == (3, 4 * 8 + 4 * 2 * 8 + 2 * 4 + 4 * 64)


def test_estimated_cycles_count_trips_of_loops_and_one_branch_of_conditionals():
    assert estimated_cycles(PROGRAM) == (100 + 3, 100 + 7 * 10)
