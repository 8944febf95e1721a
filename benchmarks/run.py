"""Measures the cost of `xsam_jax`: time, memory and compile time, as tables in Markdown.

    python -m benchmarks.run                                    # everything, about an hour
    python -m benchmarks.run --size tiny --rounds 2             # to see that it runs
    python -m benchmarks.run --only memory --models resnet vit

docs/benchmarks.md explains the tables and has measured numbers.
All ratios are between runs of one process, one right after the other.
"""

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jaxlib
import optax

from benchmarks import alpha_search, analysis, method_costs, step_costs, trainer
from benchmarks.models import MODELS
from examples.experiments.command_line import read_options
from examples.training.check_name import check_name

TABLES: dict[str, tuple[str, Callable[[step_costs.Bench], str]]] = {
    "step": ("Step time", step_costs.step_time),
    "memory": ("FLOPs and memory", step_costs.memory),
    "probe": ("Probing by chunk size", step_costs.probe),
    "search": ("Grid and section search", alpha_search.search),
    "family": ("The family", method_costs.family),
    "gate": ("Gates", method_costs.gate),
    "trainer": ("An epoch of training", trainer.trainer),
    "overhead": ("The trainer and a bare loop", trainer.overhead),
    "analysis": ("Curvature", analysis.curvature),
    "compile": ("Compile time over the number of ascent steps", step_costs.compile_time),
    "leaves": ("Compile time with many arrays", method_costs.compile_time),
}

# With these everything takes about an hour on two cores.
ROUNDS = {"mlp": 40, "resnet": 12, "vit": 12}


@dataclass(frozen=True)
class Options:
    """The command line."""

    size: Literal["tiny", "full", "large"] = "full"
    """Size of the models."""
    rounds: int | None = None
    """Pairs of runs per comparison. None: 40 for the MLP, 12 for the others."""
    models: tuple[str, ...] = tuple(MODELS)
    """Models to measure."""
    only: tuple[str, ...] = tuple(TABLES)
    """Tables to measure."""
    out: Path | None = None
    """Markdown file for the tables, beside stdout."""

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.rounds is not None and self.rounds < 1:
            raise ValueError(f"--rounds must be at least 1, not {self.rounds}")
        for name in self.models:
            check_name("model", name, MODELS)
        for name in self.only:
            check_name("table", name, TABLES)


def heading(size: str) -> str:
    """Returns the date, the device, and the versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{datetime.date.today()}, {jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"{cores} CPU cores, jax {jax.__version__}, jaxlib {jaxlib.__version__}, "
        f"optax {optax.__version__}, {size} models"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the tables, each as soon as it is done."""
    options = read_options(Options, arguments)
    # With the cache, a compile time would be the time to read a file.
    jax.config.update("jax_enable_compilation_cache", False)
    rounds = {name: options.rounds or ROUNDS[name] for name in MODELS}
    bench = step_costs.Bench(list(options.models), options.size, rounds)
    parts: list[str] = []

    def report(part: str) -> None:
        parts.append(part)
        print(f"{part}\n", flush=True)
        if options.out is not None:
            options.out.write_text("\n\n".join(parts) + "\n")

    report(heading(options.size))
    for name in options.only:
        title, measure = TABLES[name]
        report(f"## {title}\n\n{measure(bench)}")


if __name__ == "__main__":
    main()
