"""Compiles training steps for TPUs, without a TPU, and reads their costs.

    pip install libtpu
    python -m benchmarks.tpu                                   # the MLP on 8 chips, 5 minutes
    python -m benchmarks.tpu --models resnet vit --only gradient sam xsam     # an hour
    python -m benchmarks.tpu --topology v5e:16x16 --fsdp       # a pod of 256 chips

The compiler of TPUs runs on any Linux machine. It tells the operations, memory and collectives of a
program, and an estimate of its cycles. docs/benchmarks.md has the tables. `benchmarks.tpu_memory`
compares the memory of all methods.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

import xsam_jax as xj
from benchmarks import steps
from benchmarks.measure import markdown
from benchmarks.method_costs import family_steps
from benchmarks.models import MODELS, Problem, build
from benchmarks.program_text import collectives, estimated_cycles
from benchmarks.steps import RHO, RHO_MAX
from examples.experiments.command_line import read_options
from examples.training.check_name import check_name
from examples.training.devices import choose_sharding

jax.config.update("jax_platforms", "cpu")  # the compiler needs no device
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # the lock is for devices

IMAGES_PER_CHIP = 128
PROBES: dict[str, dict[str, Any]] = {
    "xsam": {},
    "xsam, probes one by one": {"probe_batch_size": 1},
    "xsam, probes 7 together": {"probe_batch_size": 7},
    "xsam, probes all together": {"probe_batch_size": "all"},
    "xsam, section": {"search": "section"},
}


@dataclass(frozen=True)
class Options:
    """The command line."""

    models: tuple[str, ...] = ("mlp",)
    """Models: mlp (3 x 2048), resnet (ResNet-18), vit (ViT-Ti), on images of 32 x 32."""
    only: tuple[str, ...] = ()
    """Steps to compile. Without a name, all of them."""
    topology: str = "v5e:2x4"
    """Chips, such as v5e:2x4 or v5e:16x16."""
    fsdp: bool = False
    """Shard parameters and optimizer state over the chips instead of replicating them."""
    size: Literal["tiny", "large"] = "large"
    """Size of the models."""
    out: Path | None = None
    """Markdown file for the tables, beside stdout."""

    def __post_init__(self) -> None:
        """Checks the names."""
        for name in self.models:
            check_name("model", name, MODELS)


@functools.cache
def topology(name: str = "v5e:2x4") -> Any:
    """Returns the description of some TPU chips, or ends the program without the compiler."""
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("The compiler of TPUs is missing: pip install libtpu")
    return topologies.get_topology_desc(platform="tpu", topology_name=name)


def all_steps(problem: Problem) -> dict[str, steps.Step]:
    """Returns every step by the name it has in the table."""
    loss_fn = problem.loss_fn
    by_hand = ("gradient", "hand-written SAM", "optax.contrib.sam")
    competitors = steps.competitors(loss_fn)
    probes = {
        name: steps.ours(loss_fn, xj.xsam(RHO, RHO_MAX, **options))
        for name, options in PROBES.items()
    }
    probes["probe alone"] = steps.probe_alone(loss_fn)
    return {name: competitors[name] for name in by_hand} | probes | family_steps(problem)


def compile_for_tpu(
    step: steps.Step, params: Any, batch: Any, chips: Sequence[Any], fsdp: bool = False
) -> Any:
    """Returns the compiled program of a step, with donated buffers, as in training.

    Args:
      step: the step.
      params: the parameters, or their shapes.
      batch: the batch of all chips together, or its shapes.
      chips: some devices of `topology`.
      fsdp: whether to shard parameters and state over the chips.
    """
    mesh = Mesh(np.array(chips), ("data",))

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = choose_sharding(leaf.shape, fsdp, mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def divide(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, P("data"))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.tree.map(place, (params, jax.eval_shape(step.init, params)))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    out_shardings = (*shardings, NamedSharding(mesh, P()))
    jitted = jax.jit(step.step, donate_argnums=(0, 1), out_shardings=out_shardings)
    return jitted.lower(*state, jax.tree.map(divide, batch)).compile()


def row(name: str, compiled: Any) -> list[str]:
    """Returns the cells of a step."""
    cost, memory, text = compiled.cost_analysis(), compiled.memory_analysis(), compiled.as_text()
    number, total = collectives(text)
    least, most = estimated_cycles(text)
    return [
        name,
        f"{cost['flops'] / 1e9:,.1f}",
        f"{cost['bytes accessed'] / 1e6:,.0f}",
        f"{memory.temp_size_in_bytes / 1e6:,.1f}",
        f"{memory.peak_memory_in_bytes / 1e6:,.1f}",
        f"{number}",
        f"{total / 1e6:,.1f}",
        f"{least / 1e6:,.2f}",
        f"{most / 1e6:,.2f}" if most > 1.01 * least else "",
    ]


HEADER = [
    *("", "GFLOP", "MB accessed", "temporary MB", "peak MB", "collectives", "their MB"),
    *("estimated Mcycles, least", "most"),
]


def main(arguments: list[str] | None = None) -> None:
    """Prints a table for each model."""
    options = read_options(Options, arguments)
    chips, parts = topology(options.topology).devices, list[str]()
    images = IMAGES_PER_CHIP * len(chips)
    for model in options.models:
        problem = build(model, options.size)
        competitors = all_steps(problem)
        for name in options.only:
            check_name("step", name, competitors)
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((images, *leaf.shape[1:]), leaf.dtype),
            problem.batch,
        )
        sharded = ", parameters sharded" if options.fsdp else ""
        title = f"{model} on {options.topology}{sharded}, {IMAGES_PER_CHIP} images a chip"
        rows = []
        for name in tqdm(options.only or competitors, desc=model, leave=False):
            step = competitors[name]
            compiled = compile_for_tpu(step, problem.params, batch, chips, options.fsdp)
            rows.append(row(name, compiled))
            table = f"## {title}\n\n{markdown(HEADER, rows)}"
            if options.out is not None:  # after each row, since a program can take minutes
                options.out.write_text("\n\n".join([*parts, table]) + "\n")
        parts.append(table)
        print(table, flush=True)


if __name__ == "__main__":
    main()
