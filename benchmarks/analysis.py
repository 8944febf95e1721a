"""The cost of curvature: Hessian-vector products and the largest eigenvalues.

Supports the costs in the docstrings of `xsam_jax.analysis` and in docs/analysis.md: a product takes
about two gradients and up to twice the memory of one, and λ1 to λ5 take 15 to 40 products.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measure import compile_program, markdown, number, paired_ratios, quotient, spread
from benchmarks.models import Problem, cnn
from benchmarks.step_costs import Bench
from xsam_jax.analysis import make_hvp, top_eigenvalues
from xsam_jax.analysis._objective import add_product, add_value_and_gradient

BATCHES = 4
NUM = 5
HEADER = [
    *("", "parameters", "images", "product / gradient, time", "FLOPs"),
    *("additional memory of a product, parameter copies", "of a gradient"),
    *("products", "seconds"),
]


def curvature(bench: Bench) -> str:
    """Returns the table."""
    problems = [cnn(bench.size), *map(bench.problem, bench.names)]
    return markdown(HEADER, [_row(bench, problem) for problem in problems])


def _row(bench: Bench, problem: Problem) -> list[str]:
    params, batch, loss_fn = problem.params, problem.batch, problem.loss_fn
    leaves = jax.tree.leaves(params)
    size = sum(leaf.size for leaf in leaves)
    zeros = jax.tree.map(jnp.zeros_like, params)
    options = {"options": bench.compiler_options}
    gradient = compile_program(
        functools.partial(add_value_and_gradient, loss_fn),
        (jnp.zeros(()), zeros),
        params,
        batch,
        **options,
    )
    product = compile_program(
        functools.partial(add_product, loss_fn), zeros, params, params, batch, **options
    )

    def copies(of_bytes: int | None) -> str:
        return number(quotient(of_bytes, 4 * size), 1)

    ratios = paired_ratios({"": product}, gradient, bench.rounds.get(problem.name, 12), "product")
    make_hvp(loss_fn, params, batches=[batch])(params)  # compiles
    counts: list[int] = []
    started = time.perf_counter()
    arguments: dict[str, Any] = {"key": jax.random.key(0), "batches": [batch] * BATCHES}
    top_eigenvalues(loss_fn, params, NUM, progress=counts.append, **arguments)
    took = time.perf_counter() - started
    return [
        problem.name,
        f"{size:,}",
        f"{len(batch.labels)}",
        spread(ratios[""], 2),
        number(quotient(product.flops, gradient.flops)),
        copies(product.temporary_bytes),
        copies(gradient.temporary_bytes),
        f"{len(counts)}",
        f"{took:.1f}",
    ]
