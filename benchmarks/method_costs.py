"""The cost of the methods in gradients, of gates, and of compiling many arrays.

Supports three claims: a method costs as many gradients as its formula has, a gated step that is
not sharpness-aware costs one gradient, and compile time grows linearly with the number of arrays.
"""

import functools
import gc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import xsam_jax as xj
from benchmarks import steps
from benchmarks.measure import (
    Program,
    markdown,
    number,
    paired_ratios,
    progress,
    quotient,
    seconds,
)
from benchmarks.models import Problem
from benchmarks.step_costs import Bench
from xsam_jax.gating import every, gated

RHO = steps.RHO
TRANSFORMS: dict[str, optax.GradientTransformationExtraArgs] = {
    "sam": xj.sam(RHO),
    "sam, 2 steps": xj.sam(RHO, steps=2),
    "slerp_sam": xj.slerp_sam(RHO, 1.5),
    "asam": xj.asam(10 * RHO),
    "fisher_sam": xj.fisher_sam(RHO),
    "friendly_sam": xj.friendly_sam(RHO),
    "friendly_asam": xj.friendly_asam(10 * RHO),
    "vasso": xj.vasso(RHO, 0.4),
    "wsam": xj.wsam(RHO, 0.9),
    "gradient_norm_penalty": xj.gradient_norm_penalty(RHO, 0.8),
    "gsam": xj.gsam(RHO, 0.4),
    "msam, 2 steps": xj.msam(RHO, 2),
    "lsam, 2 steps": xj.lsam(RHO, 2),
    "cr_sam": xj.cr_sam(RHO),
    "gam": xj.gam(4 * RHO, RHO, 0.5, 0.6, 0.03),
}

# Methods whose steps are not all alike.
UNEQUAL_STEPS: dict[str, optax.GradientTransformationExtraArgs] = {
    "xsam": xj.xsam(RHO, steps.RHO_MAX),
    "look_sam": xj.look_sam(RHO, 0.7, 5),
}


def family_steps(problem: Problem) -> dict[str, steps.Step]:
    """Returns a step of each method of the family but XSAM, whose probes have rows of their own."""
    loss_fn = problem.loss_fn
    look_sam = UNEQUAL_STEPS["look_sam"]
    esam = xj.esam(RHO, 0.6, 0.5, jax.random.key(0))
    decoupled_wsam = xj.decoupled_wsam(steps.BASE, steps.LEARNING_RATE, RHO, 0.9)
    return {
        **{name: steps.ours(loss_fn, tx) for name, tx in TRANSFORMS.items()},
        "decoupled_wsam": steps.ours(loss_fn, decoupled_wsam, optax.identity()),
        "esam": steps.ours(loss_fn, esam, losses_fn=problem.losses_fn),
        "lookbehind, 2 steps": steps.ours(
            loss_fn, xj.lookbehind(steps.BASE, RHO, 2), optax.identity()
        ),
        "sampa": steps.looking_ahead(loss_fn, xj.sampa(steps.BASE, steps.LEARNING_RATE, RHO)),
        "momentum_sam": steps.looking_ahead(loss_fn, xj.momentum_sam(steps.BASE, 10 * RHO)),
        "async_sam": steps.looking_ahead(loss_fn, xj.async_sam(steps.BASE, RHO)),
        "look_sam, every fifth step": steps.ours(loss_fn, look_sam, sharp=True),
        "look_sam, other steps": steps.ours(loss_fn, look_sam, sharp=False),
    }


def family(bench: Bench) -> str:
    """Measures the methods whose steps are all alike, in units of a step of the base optimizer."""
    header = ["", *(f"{name}: {column}" for name in bench.names for column in _COLUMNS)]
    columns = [_costs(bench, name) for name in bench.names]
    rows = [
        [method, *(cell for column in columns for cell in column[method])] for method in columns[0]
    ]
    return markdown(header, rows)


_COLUMNS = ("FLOPs", "time", "copies")


def _costs(bench: Bench, name: str) -> dict[str, list[str]]:
    problem = bench.problem(name)
    compile_step = functools.partial(_compile, bench, problem)
    base = compile_step(steps.gradient(problem.loss_fn))
    programs = {method: compile_step(step) for method, step in family_steps(problem).items()}
    times = paired_ratios(programs, base, bench.fewer_rounds(name), f"{name}: family")
    copy = 4 * optax.tree.size(problem.params)

    def copies(program: Program) -> float | None:
        if program.temporary_bytes is None or base.temporary_bytes is None:
            return None
        return (program.temporary_bytes - base.temporary_bytes) / copy

    return {
        method: [
            number(quotient(program.flops, base.flops), 3),
            number(float(np.median(times[method]))),
            number(copies(program)),
        ]
        for method, program in programs.items()
    }


def gate(bench: Bench) -> str:
    """Times gated steps with and without SAM, decided in the program and on the host."""
    rows = [_gate_row(bench, name) for name in bench.names]
    header = ["step time / base step", "cond, shut", "cond, open", "host, shut", "host, open"]
    return markdown(header, rows)


def _gate_row(bench: Bench, name: str) -> list[str]:
    problem = bench.problem(name)
    base = _compile(bench, problem, steps.gradient(problem.loss_fn))
    tx = gated(xj.sam(RHO), every(2))

    def program(count: int, **decision: Any) -> Program:
        step = steps.ours(problem.loss_fn, tx, **decision)
        opt_state = steps.at_count(step.init(problem.params), count)
        return bench.compile(step.step, problem.params, opt_state, problem.batch)

    runs: dict[str, Callable[[], Any]] = {
        "cond, shut": program(1),
        "cond, open": program(0),
        "host, shut": program(1, sharp=False),
        "host, open": program(0, sharp=True),
    }
    ratios = paired_ratios(runs, base, bench.fewer_rounds(name), f"{name}: gate")
    return [name, *(number(float(np.median(ratios[run]))) for run in runs)]


def _compile(bench: Bench, problem: Problem, step: steps.Step) -> Program:
    return bench.compile(step.step, problem.params, step.init(problem.params), problem.batch)


LEAVES = {"tiny": 20, "full": 500, "large": 500}


def compile_time(bench: Bench) -> str:
    """Times trace, lowering and compilation of a step of a network with many small arrays."""
    leaves = LEAVES[bench.size]
    params = [jnp.full((16, 16) if i % 2 == 0 else (16,), 0.1) for i in range(leaves)]
    batch = jnp.ones((8, 16)), jnp.ones((8, 16))

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        x, y = batch
        for weight, bias in zip(params[::2], params[1::2], strict=True):
            x = x + jnp.tanh(x @ weight + bias)
        return jnp.mean((x - y) ** 2)

    def measured(step: steps.Step) -> float:
        # As in a new process: the caches of earlier programs slow later ones.
        jax.clear_caches()
        gc.collect()
        return seconds(lambda: bench.compile(step.step, params, step.init(params), batch).compiled)

    competitors = {
        "gradient": steps.gradient(loss_fn),
        "hand-written SAM": steps.hand_written_sam(loss_fn),
        **{name: steps.ours(loss_fn, tx) for name, tx in {**TRANSFORMS, **UNEQUAL_STEPS}.items()},
    }
    names = list(competitors)
    times = {names[i]: measured(competitors[names[i]]) for i in progress(len(names), "compile")}
    rows = [[name, number(t, 1), number(t / times["sam"])] for name, t in times.items()]
    return markdown(["", "seconds", "over sam"], rows)
