"""Curvature along the ascent, from gradients on both sides of the start (CR-SAM)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax._value_fn import GradFn
from xsam_jax.core import AscentPath


def add_curvature(
    gamma: float | jax.Array = 0.1, beta: float | jax.Array = 0.01
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradients of the first and second differences of the loss along the ascent.

    With :math:`\epsilon = \theta_k - \theta_0`, :math:`g_+ = g_k` and
    :math:`g_- = \nabla L(\theta_0 - \epsilon)`,

    .. math:: g_+ + \gamma\,(g_+ + g_- - 2 g_0) + \beta\,(g_+ - g_-).

    This is the update of the official code. It evaluates one further gradient, :math:`g_-`.

    Args:
      gamma: the weight of the second difference, at least 0 (default 0.1).
      beta: the weight of the first difference, at least 0 (default 0.01).

    Returns:
      A stateless descent.

    Raises:
      TypeError: `gamma` or `beta` is not a real number.
      ValueError: one of them is negative or not finite. In `update`, `path` is missing.

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
        # The factor is -1. It depends on the first gradient, so the second is computed after it.
        # Otherwise XLA on CPU computes both at once and holds the activations of both (306
        # parameter copies in place of 4 on a ResNet). `optimization_barrier` does not prevent it.
        factor = jnp.where(jnp.isfinite(tree.norm(updates)), -1.0, jnp.nan)
        opposite = optax.apply_updates(params, tree.scale(factor, path.displacement))
        plus, minus = updates, grad_fn(opposite)
        first = tree.combine(1.0, plus, -1.0, minus)
        second = tree.combine(1.0, tree.total([plus, minus]), -2.0, path.first_gradient)
        correction = tree.combine(gamma, second, beta, first)
        return tree.total([plus, correction]), state

    return optax.GradientTransformationExtraArgs(optax.identity().init, update_fn)
