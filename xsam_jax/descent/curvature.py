"""Curvature along the ascent, from a gradient on either side of the start (CR-SAM)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from xsam_jax import checks, tree
from xsam_jax.base import AscentPath, GradFn


def add_curvature(
    gamma: float | jax.Array = 0.1, beta: float | jax.Array = 0.01
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of second and first differences of the loss along the ascent.

    With :math:`\epsilon = \theta_k - \theta_0`, :math:`g_+ = g_k` and
    :math:`g_- = \nabla L(\theta_0 - \epsilon)`,

    .. math:: g_+ + \gamma\,(g_+ + g_- - 2 g_0) + \beta\,(g_+ - g_-).

    This is the update of the official code. It takes one further gradient, :math:`g_-`.

    Args:
      gamma: the weight of the second difference, at least 0. May be traced.
      beta: the weight of the first difference, at least 0. May be traced.

    Returns:
      A stateless descent. It returns a float32 (float64 under x64) tree.

    Raises:
      TypeError: `gamma` or `beta` is not a real number.
      ValueError: one of them is negative or not finite; or, in `update`, `path` is missing.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> from xsam_jax.core import sharpness_aware
      >>> ascent = optax.chain(normalize(), scale_by_radius(0.1))
      >>> tx = sharpness_aware(ascent, add_curvature(gamma=0.1, beta=0.01))

    References:
      Wu et al., `CR-SAM: Curvature Regularized Sharpness-Aware Minimization
      <https://arxiv.org/abs/2312.13555>`_, 2024
    """
    checks.real("gamma", gamma, minimum=0.0)
    checks.real("beta", beta, minimum=0.0)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        path: AscentPath | None = None,
        grad_fn: GradFn | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        path = checks.ascent_path("add_curvature", path, params)
        grad_fn = checks.present(grad_fn, "grad_fn is missing: sharpness_aware passes it on")
        # The factor is -1, but makes the second gradient wait for the first. Else XLA takes both at
        # once, and holds the activations of both; a barrier does not keep it from that on CPU.
        factor = jnp.where(jnp.isfinite(tree.norm(updates)), -1.0, jnp.nan)
        opposite = optax.apply_updates(params, tree.scale(factor, path.displacement))
        plus, minus = updates, grad_fn(opposite)
        first = tree.combine(1.0, plus, -1.0, minus)
        second = tree.combine(1.0, tree.total([plus, minus]), -2.0, path.first_gradient)
        correction = tree.combine(gamma, second, beta, first)
        return tree.total([plus, correction]), state

    return optax.GradientTransformationExtraArgs(optax.identity().init, update_fn)
