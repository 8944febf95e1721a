"""Benchmarks of `xsam_jax`: step time, memory, probes, searches, compile time, as Markdown.

    python benchmarks/run.py                                    # everything, about 25 minutes
    python benchmarks/run.py --size tiny --rounds 2             # does it run?
    python benchmarks/run.py --only memory --models resnet,vit

All ratios are between runs of one process that stand next to each other in time.
"""

import argparse
import datetime
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jaxlib
import optax

# Run as a script, the repository is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import analysis, family, search, tables, trainer
from benchmarks.models import MODELS, SIZES

TABLES: dict[str, tuple[str, Callable[[tables.Bench], str]]] = {
    "step": ("Step time", tables.step_time),
    "memory": ("FLOPs and memory", tables.memory),
    "probe": ("Probing by chunk size", tables.probe),
    "search": ("Grid and section search", search.search),
    "family": ("The family", family.family),
    "gate": ("Gates", family.gate),
    "trainer": ("An epoch of training", trainer.trainer),
    "analysis": ("Curvature", analysis.curvature),
    "compile": ("Compile time over the number of ascent steps", tables.compile_time),
    "leaves": ("Compile time with many arrays", family.compile_time),
}

# So many pairs that everything takes about 25 minutes on two cores.
ROUNDS = {"mlp": 40, "resnet": 12, "vit": 12}


def names(known: dict[str, object]) -> Callable[[str], list[str]]:
    """Returns a parser of comma-separated names."""

    def parse(text: str) -> list[str]:
        chosen = [name.strip() for name in text.split(",")]
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"unknown: {', '.join(unknown)}; known: {', '.join(known)}"
            )
        return chosen

    return parse


def positive(text: str) -> int:
    """Parses an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="full", help="of the models")
    parser.add_argument(
        "--rounds", type=positive, help="pairs per comparison (default: by model, see ROUNDS)"
    )
    parser.add_argument(
        "--models", type=names(dict(MODELS)), default=list(MODELS), help=",".join(MODELS)
    )
    parser.add_argument(
        "--only", type=names(dict(TABLES)), default=list(TABLES), help=",".join(TABLES)
    )
    parser.add_argument("--out", type=Path, metavar="FILE.md", help="write the tables there too")
    return parser.parse_args(arguments)


def heading(size: str) -> str:
    """Returns where and with what this runs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{datetime.date.today()}, {jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"{cores} CPU cores, jax {jax.__version__}, jaxlib {jaxlib.__version__}, "
        f"optax {optax.__version__}, {size} models"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the tables, each as soon as it is done."""
    options = parse_arguments(arguments)
    # A program found in a cache would make its compile time the time of reading a file.
    jax.config.update("jax_enable_compilation_cache", False)
    rounds = {name: options.rounds or ROUNDS[name] for name in MODELS}
    bench = tables.Bench(options.models, options.size, rounds)
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
