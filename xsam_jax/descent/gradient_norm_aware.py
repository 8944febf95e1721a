"""First-order flatness: the largest gradient norm in a neighborhood (GAM)."""

from typing import Any

import jax
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax._schedules import advance, at_count, schedule_state
from xsam_jax._value_fn import GradFn
from xsam_jax.core import AscentPath


def gradient_norm_aware(
    rho: optax.ScalarOrSchedule,
    beta_0: float | jax.Array,
    beta_1: float | jax.Array,
    gamma: float | jax.Array,
    *,
    convention: str = "official",
) -> optax.GradientTransformationExtraArgs:
    r"""Descends from the largest gradient norm, not from the highest loss (GAM).

    After an ascent of one step, of length :math:`r' = \|\theta_1 - \theta_0\|`, with
    :math:`h = g_1 - g_0` the change of the gradient,

    .. math:: \theta_2 = \theta_0 + r\,h/\|h\|, \qquad g_2 = \nabla L(\theta_2), \qquad
              g_3 = \nabla L(\theta_2 + r' g_2/\|g_2\|),

    .. math:: h_- = g_0 + (1-\beta_0)\,g_2, \qquad h_+ = \beta_1 g_1 + (1-\beta_1)\,g_3,

    and the result is :math:`h_+` minus :math:`\gamma` times the component of :math:`h_-`
    orthogonal to :math:`h_+`. It evaluates two further gradients, :math:`g_2` and :math:`g_3`.

    Args:
      rho: :math:`r \ge 0`, the radius of the search for the largest gradient norm, or a schedule
        of it.
      beta_0: :math:`\beta_0`, in [0, 1].
      beta_1: :math:`\beta_1`, in [0, 1].
      gamma: :math:`\gamma`, at least 0.
      convention: "official" (default), as above, or "paper", with
        :math:`h_- = \beta_0 g_0 + (1-\beta_0)\,g_2`. Static.

    Returns:
      A descent for an ascent of one step. Its state is a step counter if `rho` is a schedule, and
      empty otherwise.

    Raises:
      TypeError: a numeric argument is not a real number.
      ValueError: an argument is out of range, `convention` is unknown. In `update`, `path` is
        missing.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> from xsam_jax.core import sharpness_aware
      >>> ascent = optax.chain(normalize(), scale_by_radius(0.02))
      >>> tx = sharpness_aware(ascent, gradient_norm_aware(0.2, 0.5, 0.6, 0.03))

    References:
      Zhang et al., `Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
      Generalization <https://arxiv.org/abs/2303.03108>`_, 2023
    """
    checks.real("rho", rho, minimum=0.0, schedule=True)
    checks.real("beta_0", beta_0, minimum=0.0, maximum=1.0)
    checks.real("beta_1", beta_1, minimum=0.0, maximum=1.0)
    checks.real("gamma", gamma, minimum=0.0)
    checks.convention(convention)

    def init_fn(params: optax.Params) -> optax.OptState:
        del params
        return schedule_state(rho)

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        path: AscentPath | None = None,
        grad_fn: GradFn | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        path = checks.ascent_path("gradient_norm_aware", path, params)
        grad_fn = checks.present(grad_fn, "grad_fn is missing: sharpness_aware passes it on")

        def move(point: optax.Params, length: Any, direction: Any) -> optax.Params:
            return optax.apply_updates(point, tree.with_norm(length, direction))

        g_0, g_1 = path.first_gradient, updates
        change = tree.combine(1.0, g_1, -1.0, g_0)
        longest = move(params, at_count(rho, state), change)
        g_2 = grad_fn(longest)
        g_3 = grad_fn(move(longest, tree.norm(path.displacement), g_2))
        share = beta_0 if convention == "paper" else 1.0
        h_minus = tree.combine(share, g_0, 1.0 - beta_0, g_2)
        h_plus = tree.combine(beta_1, g_1, 1.0 - beta_1, g_3)
        orthogonal = tree.reject(h_minus, h_plus)
        return tree.combine(1.0, h_plus, -gamma, orthogonal), advance(state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
