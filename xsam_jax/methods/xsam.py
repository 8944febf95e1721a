"""Explicit SAM (XSAM), and its form with a fixed interpolation factor."""

from __future__ import annotations

import jax
import optax

from xsam_jax import _checks as checks
from xsam_jax._schedules import Radius
from xsam_jax.core import sharpness_aware
from xsam_jax.descent.alpha_search import BatchSize
from xsam_jax.descent.match_norm import match_norm
from xsam_jax.descent.slerp import BETWEEN, slerp
from xsam_jax.descent.slerp_to_maximum import slerp_to_maximum
from xsam_jax.methods._ascent_of_length import ascent_of_length


def xsam(
    rho: Radius,
    rho_max: optax.ScalarOrSchedule,
    *,
    direction: optax.GradientTransformation | None = None,
    steps: int = 1,
    probe_every: int | jax.Array = 100,
    alpha_max: float | jax.Array = 2.0,
    num_alphas: int = 21,
    probe_batch_size: BatchSize = None,
    scale: str = "last",
    search: str = "grid",
) -> optax.GradientTransformationExtraArgs:
    r"""Explicit sharpness-aware minimization (XSAM): steps away from the highest loss found.

    SAM uses the gradient at the end of the ascent as an estimate of the direction of the maximum.
    XSAM searches for that direction. It performs the ascent of `sam`, then rotates the update in
    one plane: :math:`v(\alpha)` is the spherical interpolation from the ascent,
    :math:`v_0 = (\theta_k-\theta_0)/\|\theta_k-\theta_0\|`, at :math:`\alpha = 0` to the last
    gradient, :math:`v_1 = g_k/\|g_k\|`, at :math:`\alpha = 1`, and beyond.

    .. math:: \alpha^* = \arg\max_\alpha L(\theta_0 + \rho_m v(\alpha)), \qquad
              \text{update } v(\alpha^*)\,\|g_k\|.

    Every `probe_every` steps, a probe searches for :math:`\alpha^*`: it evaluates the loss at
    `linspace(0, alpha_max, num_alphas)` on the batch of the step. Between probes
    :math:`\alpha^*` does not change.

    Use it in place of `sam` when `rho` is not tuned: at a fixed `rho_max` it depends less on `rho`
    (measured on digits, examples/experiments/RESULTS.md). Its largest gain over SAM is with several
    ascent steps of full length `rho` (section 4 there). SAM with one step is as good. A step costs
    `steps` further gradients. A probe costs `num_alphas` forward passes, or 7 of 21 with
    `search="section"`. If a forward pass takes a third of a gradient, the probes of the defaults
    add 3.5 % to the time of SAM. In all we measured up to 3 % on a ResNet-8, and 12 % on an MLP
    (docs/benchmarks.md). The paper probes once per epoch.

    Args:
      rho: the length of one ascent step, as in `sam`. (The published command line divides a total
        by the number of steps.)
      rho_max: :math:`\rho_m > 0`, the radius at which losses are evaluated, or a schedule of it.
        Usually `rho` to `6 * rho`. Start with `2 * rho`. A larger one compares losses further away.
      direction: the ascent without its radius: an Optax gradient transformation, such as
        `scale_by_magnitude(0.01)` for the ascent of ASAM. The default None is `normalize()`. If it
        perturbs a subset of the parameters, the update still changes all of them. Static.
      steps: :math:`k \ge 1`, the number of ascent steps (default 1). Each costs a gradient. Static.
      probe_every: the number of steps between two probes (default 100). The first step probes. More
        steps make training cheaper, and :math:`\alpha^*` older.
      alpha_max: the end of the grid, usually 2 (default) to 4. If :math:`\alpha^*` stays there,
        raise `alpha_max`.
      num_alphas: the number of grid points, 20 to 40 (default 21). More make the grid finer and a
        probe more expensive. Static.
      probe_batch_size: the number of losses that `jax.vmap` evaluates together, or "all" for the
        whole grid. The default None is 3 on GPU and TPU, and 1 on CPU and for more than 50 million
        parameters, see `slerp_to_maximum`. Static.
      scale: the norm of the update: "last" (default) is :math:`\|g_k\|`. "first", "mean" and "max"
        are other gradient norms. "slope" and "slope_max" are slopes of the loss. See `match_norm`.
        Static.
      search: "grid" (default) or "section", see `slerp_to_maximum`. Static.

    Returns:
      A gradient transformation. Its state holds `count`, `alpha` and `psi` (see
      `SlerpToMaximumState`). `optax.tree.get(opt_state, "alpha")` finds :math:`\alpha^*` in any
      chain. Its update needs `value_fn`.

    Raises:
      TypeError: an argument has the wrong type, or a static one is traced.
      ValueError: an argument is out of range, or there are not `steps` radii. In `update`,
        `value_fn` is missing.

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
      Chen and Zhou, `Revisiting Sharpness-Aware Minimization: A More Faithful and Effective
      Implementation <https://arxiv.org/abs/2603.10048>`_, ICLR 2026, Algorithm 1
    """
    return sharpness_aware(
        ascent_of_length(rho, steps, direction),
        optax.chain(
            slerp_to_maximum(
                rho_max,
                probe_every=probe_every,
                alpha_max=alpha_max,
                num_alphas=num_alphas,
                probe_batch_size=probe_batch_size,
                search=search,
                between=_between(steps, direction),
            ),
            match_norm(scale, rho_max if scale == "slope_max" else None, unit=True),
        ),
        steps=steps,
    )


def slerp_sam(
    rho: Radius, alpha: float | jax.Array, *, steps: int = 1, between: str = "displacement"
) -> optax.GradientTransformationExtraArgs:
    r"""XSAM with a fixed interpolation factor.

    The update is :math:`v(\alpha)\,\|g_k\|`, with :math:`v` the spherical interpolation from
    :math:`v_0 = (\theta_k-\theta_0)/\|\theta_k-\theta_0\|` to :math:`v_1 = g_k/\|g_k\|` (see
    `slerp`).

    Use it to study the direction of the update, or in place of `xsam` when :math:`\alpha^*` is
    known and probes are not wanted. :math:`\alpha = 1` is `sam`, and :math:`\alpha = 0` has the
    direction of the ascent and the norm of SAM's update. A step costs `steps` further gradients.

    Args:
      rho: the length of one ascent step, as in `sam`.
      alpha: the interpolation factor, any real number. A larger one turns the update further away
        from the ascent. Published searches run over [-1, 3].
      steps: :math:`k \ge 1`, the number of ascent steps (default 1). Static.
      between: "displacement" (default), or "first" for :math:`v_0 = g_0/\|g_0\|`. The two agree at
        one step. Static.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule.

    Raises:
      TypeError: `rho` or `alpha` is not a real number, or `steps` is not an integer.
      ValueError: a radius or `alpha` is out of range, `between` is unknown, or there are not
        `steps` radii.

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
      Chen and Zhou, `Revisiting Sharpness-Aware Minimization: A More Faithful and Effective
      Implementation <https://arxiv.org/abs/2603.10048>`_, ICLR 2026, section 5.2 (there "WSAM")
    """
    return sharpness_aware(
        ascent_of_length(rho, steps),
        optax.chain(slerp(alpha, between=_between(steps, between=between)), match_norm(unit=True)),
        steps=steps,
    )


def _between(
    steps: int,
    direction: optax.GradientTransformation | None = None,
    between: str = "displacement",
) -> str:
    """Returns the start of the plane, the one that needs no further array where two agree.

    After one step along the gradient, the displacement has its direction.
    """
    checks.choice("between", between, BETWEEN)
    return "first" if steps == 1 and direction is None else between
