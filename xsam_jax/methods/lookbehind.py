"""Lookbehind."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax._schedules import Radius
from xsam_jax.core import AscentPath, init_slot, sharpness_aware
from xsam_jax.methods._ascent_of_length import ascent_of_length


class LookbehindState(NamedTuple):
    """The state of the descent of Lookbehind.

    Attributes:
      base: the state of the base optimizer, advanced by `steps` in each training step.
    """

    base: optax.OptState


def lookbehind(
    optimizer: optax.GradientTransformation,
    rho: Radius,
    steps: int = 2,
    alpha: float | jax.Array | str = 0.5,
    *,
    direction: optax.GradientTransformation | None = None,
    convention: str = "paper",
) -> optax.GradientTransformationExtraArgs:
    r"""Lookbehind: one step of the optimizer after each ascent step, then a part of the way back.

    From :math:`u_0 = w_0 = \theta`, for :math:`i = 1, \ldots, k`

    .. math:: u_i = u_{i-1} + \rho\, g_{i-1} / \|g_{i-1}\|, \qquad g_i = \nabla L(u_i), \qquad
              w_i = w_{i-1} + \mathrm{optimizer}(g_i),

    and the update moves :math:`\theta` a part of the way, to
    :math:`\theta + \alpha (w_k - \theta)`.

    Use it in place of `sam` with several ascent steps, where the gradient at the end alone is a
    poor direction, according to the paper. A step costs `steps` further gradients, and moves
    further than one of `sam`: a smaller learning rate may be needed. `lsam` and `msam` sum the
    gradients of the same ascent, before the optimizer.

    It is an optimizer with the base optimizer inside: put nothing after it.

    Args:
      optimizer: the base optimizer. Its state advances by `steps` in each training step, and so do
        its schedules.
      rho: the length of one ascent step, as in `sam`.
      steps: :math:`k \ge 1` (default 2), published 2 to 10. Static.
      alpha: :math:`\alpha` in [0, 1] (default 0.5), or "adaptive" for
        :math:`(1 + \cos(w_1 - \theta, w_k - \theta)) / 2`, which is smaller if the steps turn.
      direction: the ascent without its radius, as in `xsam`, such as `scale_by_magnitude(0.01)`
        for the ascent of ASAM. The default None is `normalize()`. Static.
      convention: with "adaptive", "paper" (default) has one cosine over all parameters, "official"
        one for each array. Static.

    Returns:
      An optimizer with state `SharpnessAwareState`. Its update needs `value_fn` or `grad_fn`, see
      `sharpness_aware`. Extra arguments reach `optimizer`.

    Raises:
      TypeError: `optimizer` is not a gradient transformation, or another argument has the wrong
        type.
      ValueError: an argument is out of range, or there are not `steps` radii.

    Example:
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = lookbehind(optax.sgd(0.05), rho=0.1, steps=2, alpha=0.5)
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.104', '-0.458']

    References:
      Mordido et al., `Lookbehind-SAM: k steps back, 1 step forward
      <https://arxiv.org/abs/2307.16704>`_, 2024
    """
    checks.transformation("optimizer", optimizer)
    checks.convention(convention)
    if isinstance(alpha, str):
        checks.choice("alpha", alpha, ("adaptive",))
    else:
        checks.real("alpha", alpha, minimum=0.0, maximum=1.0)
    base = optax.with_extra_args_support(optimizer)

    def init_fn(params: optax.Params) -> LookbehindState:
        return LookbehindState(init_slot("optimizer", base, params))

    def update_fn(
        updates: optax.Updates,
        state: LookbehindState,
        params: optax.Params | None = None,
        *,
        path: AscentPath | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LookbehindState]:
        del updates
        path = checks.ascent_path("lookbehind", path, params)
        point, inner, taken = params, state.base, []
        for gradient in path.gradients[1:]:
            step, inner = base.update(gradient, inner, point, **extra_args)
            point = optax.apply_updates(point, step)
            taken.append(step)
        way = tree.total(taken)
        if not isinstance(alpha, str):
            return tree.scale(alpha, way), LookbehindState(inner)
        if convention == "official":
            return jax.tree.map(_part, taken[0], way), LookbehindState(inner)
        return _part(taken[0], way), LookbehindState(inner)

    descent = optax.GradientTransformationExtraArgs(init_fn, update_fn)
    return sharpness_aware(ascent_of_length(rho, steps, direction), descent, steps=steps)


def _part(first: Any, way: Any) -> Any:
    """Returns the adaptive part of the way."""
    return tree.scale((1.0 + jnp.clip(tree.cosine(first, way), -1.0, 1.0)) / 2.0, way)
