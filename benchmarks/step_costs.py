"""The tables on steps, memory, probes, and compile time over ascent steps, in Markdown.

Supports the claims that a step of `sam` costs as much as one written by hand and as
`optax.contrib.sam`, that XSAM adds a few percent between its probes and at most one parameter copy
of additional memory, and that on CPU probing alphas one by one is fastest.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import steps
from benchmarks.measure import (
    Program,
    Training,
    compile_program,
    compile_training,
    markdown,
    number,
    paired_ratios,
    progress,
    quotient,
    seconds,
    spread,
)
from benchmarks.models import Batch, build
from xsam_jax import sam, xsam
from xsam_jax.descent.alpha_search import BatchSize

NUM_ALPHAS = 21
HORIZONS = (100, 400)
# In training a step finds in the caches what the last one left. A step of the MLP is so short that
# this counts.
STEPS_PER_RUN = {"mlp": 10}
PROBE_BATCH_SIZES: tuple[BatchSize, ...] = (1, 3, 7, "all")
ASCENT_STEPS = {"tiny": (1, 2), "full": (1, 2, 4, 8), "large": (1, 2, 4, 8)}
# The tiny models only show that everything runs.
COMPILER_OPTIONS = {"tiny": {"xla_backend_optimization_level": 0}, "full": {}, "large": {}}


class Bench:
    """The models behind every table, compiled once.

    Attributes:
      names: the models.
      size: "tiny", "full" or "large".
      rounds: the number of pairs by model, for the step time. Longer runs use a quarter of them.
      compiler_options: options of XLA.
    """

    def __init__(self, names: list[str], size: str, rounds: dict[str, int]) -> None:
        self.names, self.size, self.rounds = names, size, rounds
        self.compiler_options = COMPILER_OPTIONS[size]
        self.compile = functools.partial(compile_program, options=self.compiler_options)
        self.problem = functools.cache(functools.partial(build, size=size))
        self.programs = functools.cache(self._programs)
        self.probe = functools.cache(self._probe)

    def _programs(self, name: str) -> dict[str, Program]:
        problem = self.problem(name)
        competitors = list(steps.competitors(problem.loss_fn).items())
        programs = {}
        for i in progress(len(competitors), f"{name}: compile"):
            step_name, step = competitors[i]
            opt_state = step.init(problem.params)
            programs[step_name] = self.compile(step.step, problem.params, opt_state, problem.batch)
        return programs

    def _probe(self, name: str, probe_batch_size: BatchSize, search: str) -> Program:
        """Compiles XSAM's update with both gradients given, which costs as much as a probe."""
        problem = self.problem(name)
        tx = xsam(
            steps.RHO,
            steps.RHO_MAX,
            num_alphas=NUM_ALPHAS,
            probe_batch_size=probe_batch_size,
            search=search,
        )

        def update(params: Any, state: Any, first: Any, last: Any, batch: Batch) -> Any:
            return tx.update(
                first,
                state,
                params,
                value_fn=lambda params: problem.loss_fn(params, batch),
                grad_fn=lambda _: last,
            )

        first, last = (
            optax.tree.random_like(key, problem.params)
            for key in jax.random.split(jax.random.key(0))
        )
        state = tx.init(problem.params)
        return self.compile(update, problem.params, state, first, last, problem.batch)

    def fewer_rounds(self, name: str) -> int:
        """The number of pairs where one run is as long as a probe."""
        return max(2, self.rounds[name] // 4)


def step_time(bench: Bench) -> str:
    """Times every step against hand-written SAM."""
    columns = {name: _step_ratios(bench, name) for name in bench.names}
    rows = list(dict.fromkeys(row for ratios in columns.values() for row in ratios))
    return markdown(
        ["step time / hand-written SAM", *bench.names],
        [
            [row, *(spread(ratios[row]) if row in ratios else "-" for ratios in columns.values())]
            for row in rows
        ],
    )


def _step_ratios(bench: Bench, name: str) -> dict[str, np.ndarray]:
    problem = bench.problem(name)
    competitors = steps.competitors(problem.loss_fn)

    def training(step: steps.Step, count: int = 0) -> Training:
        opt_state = step.init(problem.params)
        if count:
            opt_state = steps.at_count(opt_state, count)
        arguments = problem.params, opt_state, problem.batch
        return compile_training(step.step, *arguments, options=bench.compiler_options)

    def xsam_step(**options: Any) -> steps.Step:
        return steps.ours(problem.loss_fn, xsam(steps.RHO, steps.RHO_MAX, **options))

    reference = training(competitors["hand-written SAM"])
    runs = {
        step: training(competitors[step])
        for step in ("gradient", "optax.contrib.sam", "sam", "slerp_sam")
    }
    for search in ("grid", "section"):
        # Each row is one kind of step. The step with count 0 always probes.
        seldom = xsam_step(search=search, probe_every=2**30)
        runs[f"xsam, {search}, not probing"] = training(seldom, count=1)
        runs[f"xsam, {search}, probing"] = training(xsam_step(search=search, probe_every=1))
    several = STEPS_PER_RUN.get(name, 1)
    measured = paired_ratios(
        {step: _in_a_row(run, several) for step, run in runs.items()},
        _in_a_row(reference, several),
        bench.rounds[name],
        f"{name}: step time",
    )

    ratios = {"2 x gradient": 2 * measured.pop("gradient")} | measured
    for step in ("xsam, grid", "xsam, section"):
        still, probing = measured[f"{step}, not probing"], measured[f"{step}, probing"]
        for horizon in HORIZONS:
            ratios[f"{step}, T = {horizon}"] = ((horizon - 1) * still + probing) / horizon
    if name == "mlp":
        # The check of the formula, with the default `probe_every`: one step of a hundred probes.
        ratios |= paired_ratios(
            {"xsam, grid, 100 real steps": _in_a_row(training(competitors["xsam, grid"]), 100)},
            _in_a_row(reference, 100),
            bench.fewer_rounds(name),
            f"{name}: 100 steps",
        )
    return ratios


def _in_a_row(training: Training, number: int) -> Callable[[], Any]:
    """Returns a run of several steps, each waited for."""
    return lambda: [jax.block_until_ready(training()) for _ in range(number)][-1]


def memory(bench: Bench) -> str:
    """Reads FLOPs and temporary memory off the compiled steps."""
    rows = []
    for name in bench.names:
        programs = bench.programs(name)
        params = bench.problem(name).params
        copy = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        two_gradients = programs["gradient"].flops
        two_gradients = None if two_gradients is None else 2 * two_gradients
        reference = programs["hand-written SAM"].temporary_bytes
        for step, program in programs.items():
            used = program.temporary_bytes
            more = None if used is None or reference is None else (used - reference) / copy
            rows.append(
                [
                    name,
                    step,
                    number(quotient(program.flops, two_gradients), 4),
                    number(quotient(used, 1e6)),
                    "-" if more is None else f"{more:+.2f}",
                ]
            )
    header = ["model", "step", "FLOPs / 2 gradients", "temporary MB", "- hand-written, in copies"]
    return markdown(header, rows)


def probe(bench: Bench) -> str:
    """Times a probe by chunk size against as many plain forward passes."""
    rows = []
    for name in bench.names:
        problem = bench.problem(name)
        forward = bench.compile(problem.loss_fn, problem.params, problem.batch)
        gradient = bench.programs(name)["gradient"]
        probes = {str(size): bench.probe(name, size, "grid") for size in PROBE_BATCH_SIZES}

        def forwards(forward: Program = forward) -> None:
            for _ in range(NUM_ALPHAS):
                jax.block_until_ready(forward())

        ratios = paired_ratios(probes, forwards, bench.fewer_rounds(name), f"{name}: probe")
        for size, program in probes.items():
            used = program.temporary_bytes
            rows.append(
                [
                    name,
                    size,
                    spread(ratios[size], 2),
                    number(quotient(used, 1e6)),
                    number(quotient(used, forward.temporary_bytes)),
                    number(quotient(used, gradient.temporary_bytes)),
                ]
            )
    forward_passes = f"{NUM_ALPHAS} forward passes"
    header = [
        "model",
        "probe_batch_size",
        f"time / {forward_passes}",
        "temporary MB",
        "/ a forward pass's",
        "/ a gradient step's",
    ]
    return markdown(header, rows)


def compile_time(bench: Bench) -> str:
    """Times trace, lowering and compilation over the number of ascent steps, on the ResNet."""
    problem = bench.problem("resnet")
    rounds = 3 if bench.size == "full" else 1

    def ours(k: int) -> steps.Step:
        return steps.ours(problem.loss_fn, sam(steps.RHO, steps=k))

    def theirs(k: int) -> steps.Step:
        return steps.contrib_sam(problem.loss_fn, steps=k)

    def measured(step: steps.Step) -> float:
        opt_state = step.init(problem.params)
        # A new function, of which nothing is cached.
        return seconds(
            lambda: bench.compile(step.step, problem.params, opt_state, problem.batch).compiled
        )

    # JAX traces some functions once and keeps them, which is not part of the comparison.
    measured(ours(1)), measured(theirs(1))
    times: dict[int, list[tuple[float, float]]] = {k: [] for k in ASCENT_STEPS[bench.size]}
    for i in progress(rounds, "resnet: compile time"):
        for k in times:
            if i % 2:
                other, own = measured(theirs(k)), measured(ours(k))
            else:
                own, other = measured(ours(k)), measured(theirs(k))
            times[k].append((own, other))

    rows = []
    for k, pairs in times.items():
        own_times, other_times = np.array(pairs).T
        rows.append(
            [
                str(k),
                spread(own_times, 2),
                spread(other_times, 2),
                spread(own_times / other_times, 2),
            ]
        )
    header = ["k", "sam, seconds", "optax.contrib.sam, seconds", "ratio"]
    return markdown(header, rows)
