"""The rise of the loss around a point: on average, at worst, and in the plane of XSAM."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax.analysis._objective import (
    Batches,
    Objective,
    Progress,
    mean_and_standard_error,
)
from xsam_jax.analysis.ascent_plane import losses_over_alpha, value_and_nonzero_gradient
from xsam_jax.analysis.random_direction import NORMALIZATIONS, random_direction
from xsam_jax.ascent.normalize import normalize
from xsam_jax.ascent.scale_by_radius import scale_by_radius
from xsam_jax.core import ascend, init_slot


def average_sharpness(
    value_fn: Callable[..., Any],
    params: Any,
    radius: float,
    *,
    num_directions: int = 250,
    normalization: str = "filter",
    key: jax.Array,
    batches: Batches = None,
    points_per_call: int = 1,
    progress: Progress = None,
) -> tuple[float, float]:
    r"""Estimates the average rise of the loss at a distance, over random directions.

    .. math:: \frac{1}{m} \sum_{j=1}^m L(\theta + r\, d_j) - L(\theta)

    with :math:`d_j` from `random_direction`. With "filter" and "element" the radius is relative to
    the weights, so networks with weights of different size can be compared. For a quadratic with
    Hessian :math:`H` the expectation is :math:`r^2 / 2` times :math:`\mathrm{tr}(H) / n`
    ("global"), :math:`\sum_e H_{ee} \theta_e^2` ("element"), :math:`\sum_f \|\theta_f\|^2
    \mathrm{tr}(H_{ff}) / n_f` ("filter", "layer").

    In float32 a rise below 1e-7 of the loss is rounding. Then use a larger radius, or x64.

    It costs `num_directions` + 1 forward passes over all batches, in one pass through the data, and
    one more for :math:`L(\theta)`. It needs the memory of two parameter copies and the activations,
    times `points_per_call`. Directions are not stored.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta`.
      radius: :math:`r > 0`.
      num_directions: :math:`m \ge 2` (default 250, as in the XSAM paper).
      normalization: "filter" (default), "element", "layer" or "global", as in `random_direction`.
      key: a random key. Direction j draws from `jax.random.fold_in(key, j)`. With the same
        key, radii and networks are compared in the same directions.
      batches: a re-iterable of batches, or None.
      points_per_call: the number of losses that `jax.vmap` evaluates together (default 1). A larger
        one is faster for small models on accelerators, and slower for convolutions on CPU.
      progress: called with the number of losses evaluated since its last call, such as
        `tqdm().update`.

    Returns:
      The mean and its standard error.

    Raises:
      TypeError: as in `make_hvp`, or an argument is of the wrong type.
      ValueError: as in `make_hvp`, or an argument is out of range, or the directions are all zero.
      FloatingPointError: the loss at `params`, or at one of the points, is not finite.

    Example:
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> arguments = {"normalization": "global", "key": jax.random.key(0)}
      >>> mean, error = average_sharpness(loss_fn, jnp.zeros(10), 0.5, **arguments)
      >>> print(f"{mean:.3f}")
      0.250

    References:
      Chen and Zhou, `Revisiting Sharpness-Aware Minimization <https://arxiv.org/abs/2603.10048>`_,
      2026, appendix E.5 and figure 16, and Foret et al., `Sharpness-Aware Minimization for
      Efficiently Improving Generalization <https://arxiv.org/abs/2010.01412>`_, 2021
    """
    checks.real("radius", radius, above=0.0)
    checks.static_integer("num_directions", num_directions, 2)
    checks.choice("normalization", normalization, NORMALIZATIONS)
    checks.random_key("key", key)
    checks.static_integer("points_per_call", points_per_call, 1)
    objective = Objective(value_fn, params, batches)
    at_center = objective.value()
    keys = [jax.random.fold_in(key, j) for j in range(num_directions)]
    one = random_direction(objective.params, normalization=normalization, key=key)
    if float(tree.norm(one)) == 0.0:
        raise ValueError(
            f"normalization {normalization!r} moves none of these parameters (filter and layer: "
            "leaves of less than two axes; element: zeros): take 'global', or another one"
        )
    shared = objective.params, jnp.asarray(radius, tree.accumulation_dtype())
    place = _along_random(normalization)
    rises = objective.values(place, shared, keys, points_per_call, progress) - at_center
    if bad := int((~np.isfinite(rises)).sum()):
        raise FloatingPointError(
            f"the loss is not finite at {bad} of {num_directions} points: use a smaller radius "
            f"than {radius:g}"
        )
    return mean_and_standard_error(rises)


def worst_case_sharpness(
    value_fn: Callable[..., Any],
    params: Any,
    radius: float,
    *,
    steps: int = 1,
    ascent: optax.GradientTransformation | None = None,
    batches: Batches = None,
) -> float:
    r"""Returns the largest rise of the loss along an ascent, the quantity that SAM minimizes.

    With :math:`\theta_{i+1} = \theta_i + \frac{r}{k}\,\mathrm{ascent}(g_i)` and
    :math:`g_i = \nabla L(\theta_i)`,

    .. math:: \max_{0 \le i \le k} L(\theta_i) - L(\theta_0),

    a lower bound of :math:`\max_{\|\delta\| \le r} L(\theta_0 + \delta) - L(\theta_0)`, never
    negative, which more steps improve. Here the radius is that of the whole ascent. In `sam` it is
    that of a step.

    It costs steps + 1 gradients, and the memory of a gradient and of 2 steps + 3 parameter copies.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta_0`.
      radius: :math:`r > 0`.
      steps: :math:`k \ge 1` (default 1).
      ascent: a direction of `xsam_jax.ascent`, without its radius. The default None is
        `normalize()`. With `scale_by_magnitude()`, as in ASAM, the radius is in units of the
        weights. It starts from its initial state.
      batches: a re-iterable of batches, or None.

    Returns:
      A float.

    Raises:
      TypeError: as in `make_hvp`, or an argument is of the wrong type.
      ValueError: as in `make_hvp`, or an argument is out of range, or the gradient at `params` is
        zero.
      FloatingPointError: a loss or gradient is not finite.

    Example:
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> print(f"{worst_case_sharpness(loss_fn, jnp.array([3.0, 4.0]), 1.0, steps=2):.3f}")
      11.000

    References:
      Foret et al., `Sharpness-Aware Minimization for Efficiently Improving Generalization
      <https://arxiv.org/abs/2010.01412>`_, 2021
    """
    checks.real("radius", radius, above=0.0)
    checks.static_integer("steps", steps, 1)
    ascent = normalize() if ascent is None else ascent
    checks.transformation("ascent", ascent)
    objective = Objective(value_fn, params, batches)
    step = optax.with_extra_args_support(optax.chain(ascent, scale_by_radius(radius / steps)))
    state = init_slot("ascent", step, objective.params)
    value, gradient = value_and_nonzero_gradient(objective, objective.params)
    path, _ = ascend(
        step,
        state,
        objective.value_and_gradient,
        objective.params,
        gradient,
        steps=steps,
        value=value,
    )
    return float(max(path.values)) - value


def max_alpha_sharpness(
    value_fn: Callable[..., Any],
    params: Any,
    *,
    rho: float,
    rho_max: float,
    steps: int = 1,
    alpha_max: float = 2.0,
    num_alphas: int = 21,
    batches: Batches = None,
) -> tuple[float, float]:
    r"""Returns the largest rise of the loss over the interpolation factor, as XSAM searches it.

    .. math:: \max_{\alpha \in \mathrm{linspace}(0, a, n)}
              L(\theta_0 + \rho_m v(\alpha)) - L(\theta_0)

    with :math:`v(\alpha)` as in `alpha_profile`: :math:`\alpha = 0` is the direction of the ascent,
    and 1 that of SAM's gradient. If the maximum is at `alpha_max`, raise that. It costs steps + 1
    gradients and `num_alphas` forward passes.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta_0`.
      rho: the length of an ascent step, > 0.
      rho_max: :math:`\rho_m > 0`.
      steps: the number of ascent steps, at least 1.
      alpha_max: :math:`a > 0`.
      num_alphas: :math:`n \ge 2`.
      batches: a re-iterable of batches, or None.

    Returns:
      The rise, and its :math:`\alpha^*`. The first maximum wins. As in `xsam`, a loss that is not
      finite never wins.

    Raises:
      TypeError: as in `make_hvp`, or an argument is of the wrong type.
      ValueError: as in `alpha_profile`.
      FloatingPointError: as in `alpha_profile`.

    Example:
      >>> loss_fn = lambda params: params[0] ** 2 + 10 * params[1] ** 2
      >>> params = jnp.array([1.0, 0.1])
      >>> radii = {"rho": 0.1, "rho_max": 0.5}
      >>> rise, alpha = max_alpha_sharpness(loss_fn, params, **radii, alpha_max=4.0)
      >>> print(f"{rise:.2f} at {alpha:.1f}")
      3.59 at 2.6

    References:
      Chen and Zhou, `Revisiting Sharpness-Aware Minimization: A More Faithful and Effective
      Implementation <https://arxiv.org/abs/2603.10048>`_, ICLR 2026, equation 7
    """
    checks.real("alpha_max", alpha_max, above=0.0)
    checks.static_integer("num_alphas", num_alphas, 2)
    objective = Objective(value_fn, params, batches)
    alphas = np.linspace(0.0, alpha_max, num_alphas)
    losses, at_center = losses_over_alpha(objective, alphas, rho, rho_max, steps)
    best = int(np.argmax(np.where(np.isfinite(losses), losses, -np.inf)))
    return float(losses[best]) - at_center, float(alphas[best])


@functools.cache
def _along_random(normalization: str) -> Callable[[Any, Any], Any]:
    def place(shared: Any, key: jax.Array) -> Any:
        params, radius = shared
        direction = random_direction(params, normalization=normalization, key=key)
        return optax.apply_updates(params, tree.scale(radius, direction))

    return place
