"""The ascent that the methods share: a direction and a radius."""

import optax

from xsam_jax import _checks as checks
from xsam_jax._schedules import Radius
from xsam_jax.ascent.normalize import normalize
from xsam_jax.ascent.scale_by_radius import scale_by_radius


def ascent_of_length(
    rho: Radius, steps: int = 1, direction: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    """Returns the ascent of length `rho` along a direction, after checking both numbers.

    Args:
      rho: the radius, as in `sam`.
      steps: the number of ascent steps. A sequence of radii must have this length. Static.
      direction: maps a gradient to a direction. The default None is `normalize()`.

    Returns:
      The chain of direction and radius.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = ascent_of_length(0.1)
      >>> updates, _ = tx.update(jnp.array([3.0, 4.0]), tx.init(None))
      >>> updates
      Array([0.06      , 0.08000001], dtype=float32)
    """
    checks.static_integer("steps", steps, 1)
    checks.radius("rho", rho, steps)
    direction = normalize() if direction is None else direction
    checks.transformation("direction", direction)
    return optax.chain(direction, scale_by_radius(rho))
