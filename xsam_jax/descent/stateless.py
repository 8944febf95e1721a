"""Descents without a state, made from a function."""

from collections.abc import Callable
from typing import Any

import optax

from xsam_jax import _checks as checks
from xsam_jax.core import AscentPath


def stateless(
    name: str, function: Callable[[optax.Updates, AscentPath], optax.Updates]
) -> optax.GradientTransformationExtraArgs:
    """Makes a stateless descent from a function of the gradient and the path.

    Args:
      name: the name in error messages.
      function: `function(updates, path)`, which returns the new updates.

    Returns:
      A stateless descent.

    Raises:
      ValueError: in `update`, `path` is missing.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> from xsam_jax.core import sharpness_aware
      >>> def first(updates, path):
      ...     return path.first_gradient
      >>> ascent = optax.chain(normalize(), scale_by_radius(0.1))
      >>> tx = sharpness_aware(ascent, stateless("first", first))  # the base optimizer
    """

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        path: AscentPath | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        return function(updates, checks.ascent_path(name, path, params)), state

    return optax.GradientTransformationExtraArgs(optax.identity().init, update_fn)
