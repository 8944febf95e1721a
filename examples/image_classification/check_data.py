"""Error messages for damaged data."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


@contextmanager
def naming_damage(name: str | Path) -> Iterator[None]:
    """Raises OSError with the name of what was read, in place of any error in a reader."""
    try:
        yield
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise OSError(
            f"{name} cannot be read ({reason}): it may be damaged, prepare it again"
        ) from error


def check_labels(labels: np.ndarray, num_classes: int, name: str) -> None:
    """Raises ValueError where a label is no class. One-hot targets would silently be zero."""
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.size:
        raise ValueError(
            f"{name} must be from 0 to {num_classes - 1}, got {wrong.ravel()[0]} "
            f"({wrong.size} of {labels.size} are wrong)"
        )


def check_finite(values: np.ndarray, name: str) -> None:
    """Raises ValueError where a value is not finite. The loss would be blamed on the settings."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{name} of the data must be finite")
