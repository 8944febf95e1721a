"""Statistics over seeds: a mean with its spread, a difference with its standard error."""

import math
from collections.abc import Collection

import numpy as np
from scipy import stats

ENOUGH = 5  # seeds for an interval; with fewer it would be of no use


def spread(values: np.ndarray, digits: int = 1) -> str:
    """Returns the mean over seeds, and the standard deviation where there are several."""
    width = digits + 4
    deviation = f" ± {np.std(values, ddof=1):{width - 1}.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):{width}.{digits}f}{deviation}"


def difference(first: np.ndarray, second: np.ndarray, digits: int = 1) -> str:
    """Returns the difference of the means as text. A tie is at most two standard errors."""
    by = first.mean() - second.mean()
    if min(len(first), len(second)) == 1:
        return f"{by:+.{digits}f}, of a single seed"
    error = math.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second))
    verdict = "tie" if abs(by) <= 2 * error else "more than two standard errors"
    return f"{by:+.{digits}f}, standard error {error:.{digits}f}: {verdict}"


def band(values: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % confidence interval of the mean, or the range of fewer seeds."""
    if len(values) < ENOUGH:
        return values.min(), values.max()
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return values.mean() - half, values.mean() + half


def name_of_band(numbers: Collection[int]) -> str:
    """Returns what the bands of so many seeds each show."""
    kinds = ["all seeds"] if min(numbers) < ENOUGH else []
    return " or ".join(kinds + ["95 % interval"] * (max(numbers) >= ENOUGH))


def paired_difference(first: np.ndarray, second: np.ndarray, digits: int = 1) -> str:
    """Returns the mean difference over the same seeds, with its 95 % confidence interval.

    The interval is that of Student's t. It is a tie if it contains zero.
    """
    by = first - second
    half = stats.t.ppf(0.975, len(by) - 1) * stats.sem(by)
    low, high = by.mean() - half, by.mean() + half
    verdict = "tie" if low <= 0 <= high else "they differ"
    interval = f"[{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"{by.mean():+.{digits}f} {interval}, {len(by)} seeds: {verdict}"
