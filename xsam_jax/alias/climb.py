"""The ascent that the methods share."""

import optax

from xsam_jax import checks
from xsam_jax.ascent import normalize, scale_by_radius
from xsam_jax.base import Radius


def climb(
    rho: Radius | None, steps: int = 1, *directions: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Returns the ascent of length `rho` along `directions`, or along the gradient.

    Args:
      rho: the radius, as in `sam`.
      steps: the number of ascent steps, for which there must be radii. Static.
      *directions: what makes the direction, `normalize()` where there is none.

    Returns:
      The chain of them.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = climb(0.1)
      >>> updates, _ = tx.update(jnp.array([3.0, 4.0]), tx.init(None))
      >>> updates
      Array([0.06      , 0.08000001], dtype=float32)
    """
    checks.static_integer("steps", steps, 1)
    checks.radius("rho", rho, steps)
    return optax.chain(*(directions or (normalize(),)), scale_by_radius(rho))
