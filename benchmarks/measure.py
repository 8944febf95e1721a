"""Compiled programs, their cost, and ratios of their times that are robust to drift."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

Run = Callable[[], Any]


@dataclass(frozen=True)
class Program:
    """A compiled function and the arguments it is timed with."""

    compiled: jax.stages.Compiled
    arguments: tuple[Any, ...]

    def __call__(self) -> Any:
        """Runs it, without waiting for the result."""
        return self.compiled(*self.arguments)

    @property
    def flops(self) -> float | None:
        """The operations that XLA counts, None where the platform does not tell."""
        analysis = self.compiled.cost_analysis()
        return analysis.get("flops") if isinstance(analysis, Mapping) else None

    @property
    def temporary_bytes(self) -> int | None:
        """The memory beside arguments and results, None where the platform does not tell."""
        return getattr(self.compiled.memory_analysis(), "temp_size_in_bytes", None)


def compile_program(
    function: Callable[..., Any], *arguments: Any, options: dict[str, Any] | None = None
) -> Program:
    """Compiles `function` for `arguments`, donating nothing, with these options of XLA."""
    return Program(jax.jit(function).lower(*arguments).compile(options), arguments)


def compile_training(
    step: Callable[..., Any],
    params: Any,
    opt_state: Any,
    batch: Any,
    options: dict[str, Any] | None = None,
) -> "Training":
    """Compiles a training step with donated parameters and state, with these options of XLA."""
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, opt_state, batch)
    return Training(lowered.compile(options), params, opt_state, batch)


class Training:
    """A compiled step that runs on its own results, with donated buffers, as in training."""

    def __init__(
        self, compiled: jax.stages.Compiled, params: Any, opt_state: Any, batch: Any
    ) -> None:
        self._compiled, self._batch = compiled, batch
        # Copies, since the first call frees them.
        self._state = jax.tree.map(lambda leaf: leaf.copy(), (params, opt_state))

    def __call__(self) -> Any:
        """Performs a step, without waiting for the result."""
        *self._state, loss = self._compiled(*self._state, self._batch)
        return self._state, loss


def seconds(run: Run) -> float:
    """Returns the wall time of one run, its results ready."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def paired_ratios(
    candidates: Mapping[str, Run], reference: Run, rounds: int, label: str
) -> dict[str, np.ndarray]:
    """Times every candidate against a run of the reference right beside it, `rounds` times.

    The speed of a machine drifts by more than the differences of interest. Therefore each run is
    compared with its neighbor only. The order of the two alternates from round to round.

    Args:
      candidates: the runs to time, by name.
      reference: the run that each is compared with.
      rounds: the number of pairs of each.
      label: the text of the progress bar.

    Returns:
      For each candidate the ratios of its times to those of the reference, of shape (rounds,).
    """
    for run in (reference, *candidates.values()):
        jax.block_until_ready(run())
    ratios: dict[str, list[float]] = {name: [] for name in candidates}
    for i in progress(rounds, label):
        for name, run in candidates.items():
            if i % 2:
                own, other = seconds(run), seconds(reference)
            else:
                other, own = seconds(reference), seconds(run)
            ratios[name].append(own / other)
    return {name: np.array(values) for name, values in ratios.items()}


def progress(rounds: int, label: str) -> Any:
    """Returns `range(rounds)` with a progress bar on stderr, which vanishes at the end."""
    return tqdm(range(rounds), desc=label, leave=False)


def spread(values: np.ndarray, digits: int = 3) -> str:
    """Returns the median and, in brackets, the quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def number(value: float | None, digits: int = 2) -> str:
    """Returns the number as text, "-" for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def quotient(value: float | None, by: float | None) -> float | None:
    """Returns `value / by`, None where either is unknown or there is nothing to divide by."""
    return None if value is None or not by else value / by


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown, the first column to the left and the others to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])
