"""SAM, and what looks from where it ends."""

from __future__ import annotations

import jax
import optax

from xsam_jax import checks
from xsam_jax.alias.climb import climb
from xsam_jax.base import Radius
from xsam_jax.core import sharpness_aware
from xsam_jax.descent import match_norm, slerp, slerp_to_maximum


def sam(rho: Radius, *, steps: int = 1) -> optax.GradientTransformationExtraArgs:
    r"""Sharpness-aware minimization (SAM): the gradient at the end of an ascent.

    .. math:: \theta_{i+1} = \theta_i + \rho_i\, g_i / \|g_i\|, \qquad
              \text{update } g_k = \nabla L(\theta_k).

    One step costs `steps` further gradients. At :math:`\rho = 0` it is the base optimizer.

    Args:
      rho: :math:`\rho \ge 0`, the length of one ascent step (divide a total by `steps` yourself);
        or a schedule of it over training steps; or a sequence of either, one per ascent step. A
        number may be traced. Typical: 0.05 to 0.2 for image classifiers.
      steps: :math:`k \ge 1`, the number of ascent steps. Static.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule. Gradients keep their dtype.

    Raises:
      TypeError: `rho` is not a real number or schedule, or `steps` is not an integer.
      ValueError: a radius is negative, NaN or infinite, there are not `steps` of them, or `steps`
        is less than 1. `update` raises what `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> tx = optax.chain(sam(rho=0.1), optax.sgd(0.1))
      >>> params = jnp.array([3.0, 4.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> updates
      Array([-0.612, -0.816], dtype=float32)

    References:
      Foret et al., `Sharpness-Aware Minimization for Efficiently Improving Generalization
      <https://arxiv.org/abs/2010.01412>`_, 2021
    """
    return sharpness_aware(climb(rho, steps), steps=steps)


def slerp_sam(
    rho: Radius, alpha: float | jax.Array, *, steps: int = 1, between: str = "displacement"
) -> optax.GradientTransformationExtraArgs:
    r"""SAM along a fixed direction between the ascent and the last gradient.

    The update is :math:`v(\alpha)\,\|g_k\|`, with :math:`v` the spherical interpolation from
    :math:`v_0 = (\theta_k-\theta_0)/\|\theta_k-\theta_0\|` to :math:`v_1 = g_k/\|g_k\|` (see
    `slerp`): XSAM with :math:`\alpha` chosen by hand. :math:`\alpha = 1` is `sam`;
    :math:`\alpha = 0` has the direction of the ascent and SAM's length.

    Args:
      rho: the length of one ascent step, as in `sam`.
      alpha: the interpolation factor, any real number; published searches run over [-1, 3]. May
        be traced.
      steps: :math:`k \ge 1`, the number of ascent steps. Static.
      between: "displacement", or "first" for :math:`v_0 = g_0/\|g_0\|`; the two agree at one step.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule. Gradients keep their dtype.

    Raises:
      TypeError: `rho` or `alpha` is not a real number, or `steps` not an integer.
      ValueError: a radius or `alpha` is out of range, `between` is unknown, or there are not
        `steps` radii. `update` raises what `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = slerp_sam(rho=0.1, alpha=2.0)
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['1.911', '8.807']

    References:
      `Revisiting Sharpness-Aware Minimization: A More Faithful and Effective Implementation`,
      ICLR 2026, section 5.2 (there "WSAM")
    """
    return sharpness_aware(
        climb(rho, steps),
        optax.chain(slerp(alpha, between=between), match_norm(unit=True)),
        steps=steps,
    )


def xsam(
    rho: Radius | None,
    rho_max: optax.ScalarOrSchedule,
    *,
    steps: int = 1,
    probe_every: int | jax.Array = 100,
    alpha_max: float | jax.Array = 2.0,
    num_alphas: int = 21,
    probe_batch_size: int | None = 1,
    scale: str = "last",
    search: str = "grid",
    ascent: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Explicit sharpness-aware minimization (XSAM): away from the highest loss in reach.

    SAM takes the gradient at the end of the ascent for the direction of the maximum. XSAM looks:
    after the ascent of `sam`, with :math:`v(\alpha)` the spherical interpolation from
    :math:`v_0 = (\theta_k-\theta_0)/\|\theta_k-\theta_0\|` to :math:`v_1 = g_k/\|g_k\|`,

    .. math:: \alpha^* = \arg\max_\alpha L(\theta_0 + \rho_m v(\alpha)), \qquad
              \text{update } v(\alpha^*)\,\|g_k\|,

    where :math:`\alpha^*` is sought every `probe_every` steps over
    `linspace(0, alpha_max, num_alphas)` on the batch of the step, and kept in between.

    Put it in front of the base optimizer, `optax.chain(xsam(...), optax.sgd(...))`: it returns a
    gradient. A step costs `steps` further gradients; a probe `num_alphas` forward passes on top, 7
    instead of 21 with `search="section"`. With a forward pass a third of a gradient and the
    defaults, that is 3.5 % (section: 1.2 %) of SAM's time; the paper probes once an epoch.

    Args:
      rho: the length of one ascent step, as in `sam`. (The published command line divides a total
        by the number of steps.) None where `ascent` is given.
      rho_max: :math:`\rho_m > 0`, the radius at which losses are probed, usually one to six times
        `rho`; twice is a good start. A number, which may be traced, or a schedule.
      steps: :math:`k \ge 1`, the number of ascent steps. Static.
      probe_every: the number of steps from one probe to the next; the first step probes. May be
        traced.
      alpha_max: the end of the grid, 2 to 4; if :math:`\alpha^*` sits there, raise it. May be
        traced.
      num_alphas: the number of grid points, 20 to 40. Static.
      probe_batch_size: how many losses are evaluated together by `jax.vmap`, None for the whole
        grid; see `slerp_to_maximum`. Static.
      scale: the length of the update: "last" :math:`\|g_k\|`, or "first", "mean", "max" of the
        gradient norms, or the "slope" of the loss to :math:`\theta_k` or ("slope_max") to the
        maximum; see `match_norm`. Static.
      search: "grid" or "section"; see `slerp_to_maximum`. Static.
      ascent: another map from gradient to perturbation, radius included, as in
        `xsam(None, rho_max=0.3, ascent=...)`. One that perturbs a subset still lets the update
        reach all parameters, through :math:`g_k`. Static.

    Returns:
      A gradient transformation. Its state holds `count`, `alpha` and `psi` (see
      `SlerpToMaximumState`): `optax.tree.get(opt_state, "alpha")` finds :math:`\alpha^*` in any
      chain. Gradients keep their dtype. Its update needs `value_fn`.

    Raises:
      TypeError: an argument is of the wrong type, or a static one is traced.
      ValueError: an argument is out of range, or there are not `steps` radii. `update` raises what
        `sharpness_aware` says, and a missing `value_fn`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(xsam(rho=0.1, rho_max=1.0), optax.sgd(0.05, momentum=0.9))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print(optax.tree.get(opt_state, "alpha"))
      2.0

    References:
      `Revisiting Sharpness-Aware Minimization: A More Faithful and Effective Implementation`,
      ICLR 2026, Algorithm 1
    """
    checks.radius_or_ascent(rho, ascent)
    return sharpness_aware(
        climb(rho, steps) if ascent is None else ascent,
        optax.chain(
            slerp_to_maximum(
                rho_max,
                probe_every=probe_every,
                alpha_max=alpha_max,
                num_alphas=num_alphas,
                probe_batch_size=probe_batch_size,
                search=search,
            ),
            match_norm(scale, rho_max if scale == "slope_max" else None, unit=True),
        ),
        steps=steps,
    )
