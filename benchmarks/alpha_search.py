"""The two searches for alpha: evaluations, time, and agreement.

Supports the claim that `search="section"` takes a third of the time of a probe, and finds the same
alpha as the grid.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from benchmarks.measure import markdown, paired_ratios, progress, spread
from benchmarks.models import MLP, Batch, Problem, classification
from benchmarks.step_costs import Bench
from benchmarks.steps import BASE
from xsam_jax import sharpness_aware, xsam
from xsam_jax.ascent import normalize, scale_by_radius
from xsam_jax.descent import slerp

SEARCHES = ("grid", "section")
GRIDS = ((2.0, 21), (4.0, 41))
RHO = 0.3
RHO_MAX = 0.6
TRAINING_IMAGES = 1000
BATCH = 125
LABEL_NOISE = 0.4


class Agreement(NamedTuple):
    """The results of the two searches at the same states, of shape (number of probes,).

    Attributes:
      alphas: by search.
      losses: by search, the highest loss that it found.
    """

    alphas: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]

    def row(self) -> list[str]:
        """Returns the cells: probes, alphas, the share of equal ones, and the gap of the rest."""
        differ = self.alphas["grid"] != self.alphas["section"]
        gaps = (self.losses["grid"] - self.losses["section"]) / self.losses["grid"]
        gap = f"{np.median(gaps[differ]):.1e}, {gaps[differ].max():.1e}" if differ.any() else "-"
        alphas = spread(self.alphas["grid"], 1)
        return [str(differ.size), alphas, f"{100 * (1 - differ.mean()):.1f} %", gap]


def search(bench: Bench) -> str:
    """Counts, times and compares the searches."""
    rows = []
    for alpha_max, num_alphas in GRIDS:
        evaluations = [
            str(count_evaluations(alpha_max, num_alphas, search=search)) for search in SEARCHES
        ]
        agreement = compare(bench, alpha_max, num_alphas)
        rows.append([f"{num_alphas} in [0, {alpha_max:g}]", *evaluations, *agreement.row()])
    header = [
        "alphas",
        "losses evaluated, grid",
        "section",
        "probes",
        "alpha*, grid",
        "same alpha*",
        "loss lost where not: median, max",
    ]
    times = [
        [
            name,
            spread(
                paired_ratios(
                    {"section": bench.probe(name, 1, "section")},
                    bench.probe(name, 1, "grid"),
                    bench.fewer_rounds(name),
                    f"{name}: search",
                )["section"],
                2,
            ),
        ]
        for name in bench.names
    ]
    header_of_times = ["model", "time of a probe, section / grid, 21 alphas"]
    return f"{markdown(header, rows)}\n\n{markdown(header_of_times, times)}"


def count_evaluations(alpha_max: float, num_alphas: int, search: str) -> int:
    """Returns the number of losses that one probe evaluates, counted at run time."""
    calls = []

    def value_fn(params: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sum(params**2 * jnp.array([1.0, 4.0]))

    tx = xsam(0.1, 0.2, alpha_max=alpha_max, num_alphas=num_alphas, search=search)
    params = jnp.array([1.0, 1.0])

    @jax.jit
    def update(first: jax.Array, last: jax.Array) -> Any:
        # Both gradients are given, so that only the probe evaluates the loss.
        state = tx.init(params)
        return tx.update(first, state, params, value_fn=value_fn, grad_fn=lambda _: last)

    jax.block_until_ready(update(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])))
    jax.effects_barrier()
    return len(calls)


def noisy_digits(size: str) -> tuple[Problem, Iterator[Batch]]:
    """Returns an MLP on the digits, and endless batches."""
    rng = np.random.default_rng(0)
    digits = load_digits()
    chosen = rng.permutation(len(digits.data))[:TRAINING_IMAGES]
    images = np.asarray(digits.data[chosen] / 16, np.float32).reshape(-1, 8, 8, 1)
    replaced = rng.random(TRAINING_IMAGES) < LABEL_NOISE
    labels = np.where(replaced, rng.integers(0, 10, TRAINING_IMAGES), digits.target[chosen])

    def batches() -> Iterator[Batch]:
        while True:
            for indices in rng.permutation(TRAINING_IMAGES).reshape(-1, BATCH):
                yield Batch(jnp.asarray(images[indices]), jnp.asarray(labels[indices]))

    network = MLP((32, 32) if size == "tiny" else (512, 512))
    stream = batches()
    return classification("digits", network, next(stream)), stream


def compare(bench: Bench, alpha_max: float, num_alphas: int) -> Agreement:
    """Trains with the grid search, probes every step, and runs both searches at each state."""
    problem, batches = noisy_digits(bench.size)
    methods = {
        search: xsam(
            RHO,
            RHO_MAX,
            probe_every=1,
            alpha_max=alpha_max,
            num_alphas=num_alphas,
            search=search,
        )
        for search in SEARCHES
    }

    @partial(jax.jit, compiler_options=bench.compiler_options)
    def step(params: Any, state: Any, base_state: Any, batch: Batch) -> Any:
        def value_fn(params: Any) -> jax.Array:
            return problem.loss_fn(params, batch)

        grads = jax.grad(value_fn)(params)
        alphas, losses, results = {}, {}, {}
        for search, tx in methods.items():
            results[search] = tx.update(grads, state, params, value_fn=value_fn)
            alphas[search] = optax.tree.get(results[search][1], "alpha")
            losses[search] = _loss_at(alphas[search], value_fn, grads, params)
        updates, state = results["grid"]
        updates, base_state = BASE.update(updates, base_state, params)
        return optax.apply_updates(params, updates), state, base_state, alphas, losses

    params, found = problem.params, []
    state, base_state = methods["grid"].init(params), BASE.init(params)
    steps = 20 if bench.size == "tiny" else 500
    for _ in progress(steps, f"digits: {num_alphas} alphas"):
        params, state, base_state, alphas, losses = step(params, state, base_state, next(batches))
        found.append((alphas, losses))
    alphas, losses = jax.tree.map(lambda *leaves: np.array(leaves), *found)
    return Agreement(alphas, losses)


def _loss_at(alpha: jax.Array, value_fn: Any, grads: Any, params: Any) -> jax.Array:
    ascent = optax.chain(normalize(), scale_by_radius(RHO))
    tx = sharpness_aware(ascent, slerp(alpha))
    direction, _ = tx.update(grads, tx.init(params), params, value_fn=value_fn)
    return value_fn(jax.tree.map(lambda p, d: p + RHO_MAX * d, params, direction))
