"""Directions by spherical interpolation between the ascent and the last gradient (XSAM)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xsam_jax import checks, tree
from xsam_jax.base import AscentPath, ValueFn, at_count, value_at, varying_like
from xsam_jax.descent import search as alpha_search
from xsam_jax.descent.stateless import stateless

BETWEEN = ("displacement", "first")
SEARCHES = ("grid", "section")


def slerp(
    alpha: float | jax.Array, *, between: str = "displacement"
) -> optax.GradientTransformationExtraArgs:
    r"""Returns the unit direction at a fixed fraction of the way from the ascent to the gradient.

    With :math:`v_0 = (\theta_k - \theta_0)/\|\theta_k - \theta_0\|`, :math:`v_1 = g_k / \|g_k\|`
    and :math:`\psi` the angle between them,

    .. math:: v(\alpha) = \frac{\sin((1-\alpha)\psi)\, v_0 + \sin(\alpha\psi)\, v_1}{\sin\psi},

    of length 1 for every :math:`\alpha`. Where the two span no plane (an angle of more than
    :math:`\pi - 10^{-3}`, a zero displacement or gradient) the direction is that of :math:`g_k`.

    Args:
      alpha: the interpolation factor, any real number: 0 is :math:`v_0`, 1 is :math:`v_1` (SAM),
        more than 1 extrapolates. May be traced.
      between: what :math:`v_0` is: "displacement", or "first" for :math:`g_0 / \|g_0\|`. The two
        agree for a single normalized step.

    Returns:
      A stateless descent. It returns a float32 (float64 under x64) tree of norm 1; follow it with
      `match_norm`.

    Raises:
      TypeError: `alpha` is not a real number.
      ValueError: `alpha` is not finite, `between` is unknown; or, in `update`, `path` is missing.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> from xsam_jax.core import sharpness_aware
      >>> from xsam_jax.descent import match_norm
      >>> ascent = optax.chain(normalize(), scale_by_radius(0.1))
      >>> tx = sharpness_aware(ascent, optax.chain(slerp(alpha=1.5), match_norm(unit=True)))

    References:
      `Revisiting Sharpness-Aware Minimization: A More Faithful and Effective Implementation`,
      ICLR 2026, equations 5 and 6
    """
    checks.real("alpha", alpha)
    checks.choice("between", between, BETWEEN)

    def direction(updates: optax.Updates, path: AscentPath) -> optax.Updates:
        start = path.displacement if between == "displacement" else path.first_gradient
        return _Plane.spanned_by(start, updates).direction(jnp.asarray(alpha))

    return stateless("slerp", direction)


class SlerpToMaximumState(NamedTuple):
    r"""What XSAM remembers between steps.

    Attributes:
      count: the number of steps taken, int32 scalar.
      alpha: :math:`\alpha^*`, float32 (float64 under x64) scalar; initially 1, which is SAM.
      psi: the angle :math:`\psi` of the last step in radians, likewise; initially 0.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as in Optax
    alpha: jax.Array
    psi: jax.Array


def slerp_to_maximum(
    rho_max: optax.ScalarOrSchedule,
    *,
    probe_every: int | jax.Array = 100,
    alpha_max: float | jax.Array = 2.0,
    num_alphas: int = 21,
    probe_batch_size: int | None = 1,
    search: str = "grid",
) -> optax.GradientTransformationExtraArgs:
    r"""Returns the unit direction towards the highest loss found on a circle: the heart of XSAM.

    Every `probe_every` steps, with :math:`v(\alpha)` as in `slerp`,

    .. math:: \alpha^* = \arg\max_{\alpha \in \mathrm{linspace}(0, a, n)}
              L(\theta_0 + \rho_m v(\alpha)),

    the first maximum winning, on the batch and the loss function of the step; otherwise
    :math:`\alpha^*` stays. The direction is :math:`v(\alpha^*)`.

    Losses that are NaN or infinite never win. Where none is finite, or there is no plane to probe
    (as in `slerp`, or :math:`v_0` and :math:`v_1` equal to rounding), :math:`\alpha^*` stays until
    the next probe is due.

    A probe costs `num_alphas` forward passes ("grid"); it stands in a `jax.lax.cond`, so that
    other steps pay nothing. Under `jax.vmap`, keep `count` unbatched (axis None), or the
    conditional becomes a select that pays every step.

    Args:
      rho_max: :math:`\rho_m > 0`, the radius of the neighborhood whose maximum is sought; a
        number, which may be traced, or a schedule.
      probe_every: the number of steps from one probe to the next, at least 1; the first step
        probes. May be traced.
      alpha_max: :math:`a > 0`, the end of the grid. May be traced.
      num_alphas: :math:`n \ge 2`, the number of grid points, both ends included. Static.
      probe_batch_size: how many losses are evaluated together, by `jax.vmap`; None for the whole
        grid. Memory grows with it. A larger one pays for small models on accelerators; it does
        not for convolutions. Static; "section" has no use for it.
      search: "grid" evaluates every point; "section", a Fibonacci search, evaluates 7 of 21
        points, and finds the same one where the loss over the grid rises, then falls. Static.

    Returns:
      A descent with state `SlerpToMaximumState`; follow it with `match_norm(unit=True)`.
      Needs `value_fn`.

    Raises:
      TypeError: an argument is of the wrong type, or a static one is traced.
      ValueError: an argument is out of range; or, in `update`, `path` or `value_fn` is missing.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> from xsam_jax.core import sharpness_aware
      >>> from xsam_jax.descent import match_norm
      >>> ascent = optax.chain(normalize(), scale_by_radius(0.1))
      >>> descent = optax.chain(slerp_to_maximum(0.2, probe_every=10), match_norm(unit=True))
      >>> tx = sharpness_aware(ascent, descent)

    References:
      `Revisiting Sharpness-Aware Minimization: A More Faithful and Effective Implementation`,
      ICLR 2026, equation 7 and Algorithm 1
    """
    checks.real("rho_max", rho_max, above=0.0, schedule=True)
    checks.integer("probe_every", probe_every, 1)
    checks.real("alpha_max", alpha_max, above=0.0)
    checks.static_integer("num_alphas", num_alphas, 2)
    if probe_batch_size is not None:
        checks.static_integer("probe_batch_size", probe_batch_size, 1)
    checks.choice("search", search, SEARCHES)

    def init_fn(params: optax.Params) -> SlerpToMaximumState:
        del params
        dtype = tree.accumulation_dtype()
        return SlerpToMaximumState(
            count=jnp.zeros((), jnp.int32), alpha=jnp.ones((), dtype), psi=jnp.zeros((), dtype)
        )

    def update_fn(
        updates: optax.Updates,
        state: SlerpToMaximumState,
        params: optax.Params | None = None,
        *,
        path: AscentPath | None = None,
        value_fn: ValueFn | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SlerpToMaximumState]:
        del extra_args
        path = checks.ascent_path("slerp_to_maximum", path, params)
        value_fn = checks.loss_needed("slerp_to_maximum probes losses", value_fn)
        plane = _Plane.spanned_by(path.displacement, updates)
        radius = jnp.asarray(at_count(rho_max, state))

        def loss_at(alpha: jax.Array) -> jax.Array:
            return value_at(value_fn, params, plane.direction(alpha, radius))

        def probe(alpha: jax.Array) -> jax.Array:
            fractions = jnp.arange(num_alphas, dtype=alpha.dtype) / (num_alphas - 1)
            alphas = varying_like(fractions * jnp.asarray(alpha_max, alpha.dtype), alpha)
            if search == "grid":
                index, loss = alpha_search.grid(loss_at, alphas, probe_batch_size)
            else:
                index, loss = alpha_search.section(loss_at, alphas)
            return jnp.where(jnp.isfinite(loss), alphas[index], alpha)

        def due(alpha: jax.Array) -> tuple[jax.Array, Any]:
            return directed(jax.lax.cond(plane.can_be_probed, probe, lambda alpha: alpha, alpha))

        def directed(alpha: jax.Array) -> tuple[jax.Array, Any]:
            return alpha, plane.direction(alpha)

        # Under vmap the inner conditional, which looks at the gradients, becomes a select; this
        # one, which looks at the counter alone, stays. The direction comes out of it so that what
        # it is made of need not outlive the probe.
        is_due = state.count % jnp.asarray(probe_every) == 0
        last_alpha = varying_like(state.alpha, plane.psi)
        alpha, direction = jax.lax.cond(is_due, due, directed, last_alpha)
        count = optax.safe_increment(state.count)
        return direction, SlerpToMaximumState(count, alpha, plane.psi)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class _Plane(NamedTuple):
    """The plane of two trees, and the angle between them.

    It keeps the trees as they are, with one divisor each, not their unit directions: a conditional
    holds what its branches read, and these two are in memory anyway.
    """

    start: Any
    end: Any
    start_length: jax.Array
    end_length: jax.Array
    psi: jax.Array

    @classmethod
    def spanned_by(cls, start: Any, end: Any) -> "_Plane":
        lengths = tree.divisor(start), tree.divisor(end)
        return cls(start, end, *lengths, tree.angle(start, end))

    @property
    def exists(self) -> jax.Array:
        # Past pi - 1e-3 the weights exceed 1000, and a float32 direction is noise.
        nonzero = jnp.isfinite(self.start_length) & jnp.isfinite(self.end_length)
        return nonzero & (self.psi <= jnp.pi - 1e-3)

    @property
    def can_be_probed(self) -> jax.Array:
        # Where both are equal to rounding every alpha is one direction, and its maximum noise.
        return self.exists & (self.psi > 8 * jnp.finfo(self.psi.dtype).eps)

    def direction(self, alpha: jax.Array, length: Any = 1.0) -> Any:
        weights = tree.slerp_weights(alpha.astype(self.psi.dtype), self.psi)
        # Divided last: XLA repeats cheaper operations on scalars in the program of each leaf.
        start_weight = length * jnp.where(self.exists, weights[0], 0.0) / self.start_length
        end_weight = length * jnp.where(self.exists, weights[1], 1.0) / self.end_length
        return tree.combine(start_weight, self.start, end_weight, self.end)
