"""The direction of the highest loss between the ascent and the last gradient (XSAM)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax import _value_fn
from xsam_jax._devices import MeanOverGroups, one_group, varying_like
from xsam_jax._schedules import at_count
from xsam_jax._value_fn import ValueFn
from xsam_jax.core import AscentPath
from xsam_jax.descent.alpha_search import BatchSize, check_batch_size, grid_search, section_search
from xsam_jax.descent.slerp import BETWEEN, Plane

SEARCHES = ("grid", "section")


class SlerpToMaximumState(NamedTuple):
    r"""The state of XSAM.

    Attributes:
      count: the number of steps taken, int32 scalar.
      alpha: :math:`\alpha^*`, float32 (float64 under x64) scalar. It starts at 1, which is SAM.
      psi: the angle :math:`\psi` of the last step in radians, of the same dtype. It starts at 0.
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
    probe_batch_size: BatchSize = None,
    search: str = "grid",
    between: str = "displacement",
) -> optax.GradientTransformationExtraArgs:
    r"""Returns the unit direction of the highest loss on a circle (XSAM).

    Every `probe_every` steps, with :math:`v(\alpha)` as in `slerp`,

    .. math:: \alpha^* = \arg\max_{\alpha \in \mathrm{linspace}(0, a, n)}
              L(\theta_0 + \rho_m v(\alpha))

    on the batch of the step. The first maximum wins. In other steps :math:`\alpha^*` stays. The
    direction is :math:`v(\alpha^*)`.

    Losses that are NaN or infinite never win. If none is finite, or there is no plane to probe (as
    in `slerp`, or :math:`v_0` and :math:`v_1` equal to rounding), :math:`\alpha^*` stays until the
    next probe.

    A probe costs `num_alphas` forward passes. It is in a `jax.lax.cond`, so other steps do not pay
    for it. Under `jax.vmap`, keep `count` unbatched (axis None). Otherwise the conditional becomes
    a select, and every step pays.

    Args:
      rho_max: :math:`\rho_m > 0`, the radius of the circle, or a schedule of it.
      probe_every: the number of steps between two probes, at least 1 (default 100). The first step
        probes.
      alpha_max: :math:`a > 0`, the end of the grid (default 2).
      num_alphas: :math:`n \ge 2`, the number of grid points, both ends included (default 21).
        Static.
      probe_batch_size: the number of losses that `jax.vmap` evaluates together, or "all" for the
        whole grid. Memory grows with it. The default None is 3 on GPU and TPU, where a probe then
        needs no more memory than a gradient (compiled for TPU: a ResNet-18 and a ViT-Ti), and 1 on
        CPU, where vmapped convolutions are slow, and for more than 50 million trained parameters.
        "section" has none. Static.
      search: "grid" (default) evaluates every point. "section", a Fibonacci search, evaluates 7 of
        21 points. It finds the same point if the loss over the grid rises, then falls. Static.
      between: where :math:`v_0` points, as in `slerp`: "displacement" (default) or "first". Static.

    Returns:
      A descent with state `SlerpToMaximumState`. Follow it with `match_norm(unit=True)`. Its update
      needs `value_fn`.

    Raises:
      TypeError: an argument is of the wrong type, or a static one is traced.
      ValueError: an argument is out of range, or "section" has a `probe_batch_size`. In `update`,
        `path` or `value_fn` is missing.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> from xsam_jax.core import sharpness_aware
      >>> from xsam_jax.descent import match_norm
      >>> ascent = optax.chain(normalize(), scale_by_radius(0.1))
      >>> descent = optax.chain(slerp_to_maximum(0.2, probe_every=10), match_norm(unit=True))
      >>> tx = sharpness_aware(ascent, descent)

    References:
      Chen and Zhou, `Revisiting Sharpness-Aware Minimization: A More Faithful and Effective
      Implementation <https://arxiv.org/abs/2603.10048>`_, ICLR 2026, equation 7 and Algorithm 1
    """
    checks.real("rho_max", rho_max, above=0.0, schedule=True)
    checks.integer("probe_every", probe_every, 1)
    checks.real("alpha_max", alpha_max, above=0.0)
    checks.static_integer("num_alphas", num_alphas, 2)
    check_batch_size(probe_batch_size)
    checks.choice("search", search, SEARCHES)
    if search == "section" and probe_batch_size is not None:
        raise ValueError(
            "probe_batch_size is for search='grid', leave it out: the section search evaluates one "
            "alpha at a time"
        )
    checks.choice("between", between, BETWEEN)

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
        mean_over_groups: MeanOverGroups = one_group,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SlerpToMaximumState]:
        del extra_args
        path = checks.ascent_path("slerp_to_maximum", path, params)
        value_fn = _value_fn.require_value_fn("slerp_to_maximum probes losses", value_fn)
        plane = Plane.of_path(path, updates, between)
        # At a radius of zero, two gradients of one point differ by rounding.
        moved = sum(tree.squared_norm(perturbation) for perturbation in path.perturbations) > 0
        # A group without a plane has the same loss at all alphas.
        can_be_probed = (plane.can_be_probed & moved).astype(plane.psi.dtype)
        probed, psi = mean_over_groups((can_be_probed, plane.psi))
        radius = jnp.asarray(at_count(rho_max, state))

        def loss_at(alpha: jax.Array) -> jax.Array:
            loss = _value_fn.value_at(value_fn, params, plane.direction(alpha, radius))
            return mean_over_groups(loss)

        def probe(alpha: jax.Array) -> jax.Array:
            fractions = jnp.arange(num_alphas, dtype=alpha.dtype) / (num_alphas - 1)
            alphas = varying_like(fractions * jnp.asarray(alpha_max, alpha.dtype), alpha)
            if search == "grid":
                num_params = optax.tree.size(params)
                index, loss = grid_search(loss_at, alphas, probe_batch_size, num_params)
            else:
                index, loss = section_search(loss_at, alphas)
            return jnp.where(jnp.isfinite(loss), alphas[index], alpha)

        # Under vmap the inner conditional depends on the gradients and becomes a select. The outer
        # one depends on the counter alone and stays a conditional. Both return a number only, so
        # that the direction is computed together with what the optimizer makes of it.
        is_due = state.count % jnp.asarray(probe_every) == 0
        alpha = jax.lax.cond(
            is_due,
            lambda alpha: jax.lax.cond(probed > 0, probe, lambda alpha: alpha, alpha),
            lambda alpha: alpha,
            varying_like(state.alpha, psi),
        )
        count = optax.safe_increment(state.count)
        return plane.direction(alpha), SlerpToMaximumState(count, alpha, psi)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
