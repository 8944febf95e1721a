"""Spherical interpolation between the ascent and the last gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax.core import AscentPath
from xsam_jax.descent.stateless import stateless

_STARTS = {
    "displacement": lambda path: path.displacement,
    "first": lambda path: path.first_gradient,
}
BETWEEN = tuple(_STARTS)


def slerp(
    alpha: float | jax.Array, *, between: str = "displacement"
) -> optax.GradientTransformationExtraArgs:
    r"""Returns a unit direction on the circle through the ascent and the last gradient.

    With :math:`v_0 = (\theta_k - \theta_0)/\|\theta_k - \theta_0\|`, :math:`v_1 = g_k / \|g_k\|`
    and :math:`\psi` the angle between them,

    .. math:: v(\alpha) = \frac{\sin((1-\alpha)\psi)\, v_0 + \sin(\alpha\psi)\, v_1}{\sin\psi},

    of norm 1 for every :math:`\alpha`. If the two span no plane (an angle above
    :math:`\pi - 0.03`, a zero displacement or gradient), the result is :math:`v_1`.

    Args:
      alpha: the interpolation factor, any real number. 0 is :math:`v_0`, 1 is :math:`v_1` (SAM),
        and more than 1 extrapolates.
      between: "displacement" (default), or "first" for :math:`v_0 = g_0 / \|g_0\|`. The two agree
        for a single normalized step.

    Returns:
      A stateless descent. Follow it with `match_norm(unit=True)`.

    Raises:
      TypeError: `alpha` is not a real number.
      ValueError: `alpha` is not finite, `between` is unknown. In `update`, `path` is missing.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> from xsam_jax.core import sharpness_aware
      >>> from xsam_jax.descent import match_norm
      >>> ascent = optax.chain(normalize(), scale_by_radius(0.1))
      >>> tx = sharpness_aware(ascent, optax.chain(slerp(alpha=1.5), match_norm(unit=True)))

    References:
      Chen and Zhou, `Revisiting Sharpness-Aware Minimization: A More Faithful and Effective
      Implementation <https://arxiv.org/abs/2603.10048>`_, ICLR 2026, equations 5 and 6
    """
    checks.real("alpha", alpha)
    checks.choice("between", between, BETWEEN)

    def direction(updates: optax.Updates, path: AscentPath) -> optax.Updates:
        return Plane.of_path(path, updates, between).direction(jnp.asarray(alpha))

    return stateless("slerp", direction)


class Plane(NamedTuple):
    """The plane of two trees, and the angle between them.

    It keeps the trees themselves and their lengths, not their unit directions. The trees are in
    memory anyway, and a conditional holds every array that its branches read.
    """

    start: Any
    end: Any
    start_length: jax.Array
    end_length: jax.Array
    half_sine: jax.Array
    half_cosine: jax.Array

    @classmethod
    def of_path(cls, path: AscentPath, end: Any, between: str) -> "Plane":
        """Returns the plane of the start that `between` names, and of `end`."""
        start = _STARTS[between](path)
        lengths = tree.divisor(start), tree.divisor(end)
        return cls(start, end, *lengths, *tree.half_angle(start, end, *lengths))

    @property
    def psi(self) -> jax.Array:
        """The angle between the two trees, in radians."""
        return 2 * jnp.arctan2(self.half_sine, self.half_cosine)

    @property
    def exists(self) -> jax.Array:
        """Whether both trees have a direction, and the two are not opposite."""
        nonzero = jnp.isfinite(self.start_length) & jnp.isfinite(self.end_length)
        return nonzero & (self.psi <= tree.LARGEST_ANGLE)

    @property
    def can_be_probed(self) -> jax.Array:
        """Whether different alphas give different directions."""
        # If both are equal to rounding, all alphas give one direction, and the maximum is noise.
        return self.exists & (self.psi > 8 * jnp.finfo(self.psi.dtype).eps)

    def direction(self, alpha: jax.Array, length: Any = 1.0) -> Any:
        """Returns `length` times the unit direction at `alpha`, or along `end` without a plane."""
        alpha = alpha.astype(self.psi.dtype)
        weights = tree.slerp_weights(alpha, self.half_sine, self.half_cosine)
        # Divide last: XLA on CPU repeats cheap scalar operations in the kernel of each leaf.
        start_weight = length * jnp.where(self.exists, weights[0], 0.0) / self.start_length
        end_weight = length * jnp.where(self.exists, weights[1], 1.0) / self.end_length
        return tree.combine(start_weight, self.start, end_weight, self.end)
