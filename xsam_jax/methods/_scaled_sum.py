"""The descent that MSAM and LSAM share."""

import optax

from xsam_jax import _checks as checks
from xsam_jax.descent.match_norm import match_norm
from xsam_jax.descent.sum_of_path import sum_of_path


def scaled_sum(
    scale: str | None, *, normalize: bool, include_first: bool
) -> optax.GradientTransformation:
    """Returns the sum of the gradients of an ascent, rescaled as `match_norm` does."""
    checks.choice("scale", scale, ("last", "first", "mean", "max", "slope", None))
    total = sum_of_path(normalize=normalize, include_first=include_first)
    return total if scale is None else optax.chain(total, match_norm(scale))
