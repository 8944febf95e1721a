"""The loss in the plane of an ascent and its last gradient, where XSAM searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax.analysis._objective import Batches, Objective, Progress
from xsam_jax.analysis.loss_surface import as_coordinates, losses_on_plane
from xsam_jax.ascent.normalize import normalize
from xsam_jax.ascent.scale_by_radius import scale_by_radius
from xsam_jax.core import AscentPath, ascend


class AscentPlane(NamedTuple):
    r"""The plane of an ascent and its last gradient, in which XSAM searches.

    Attributes:
      direction_x: a tree of norm 1, along the component of :math:`g_k` orthogonal to `direction_y`.
      direction_y: a tree of norm 1, along the displacement :math:`\theta_k - \theta_0`. For a
        single step this is the direction of :math:`g_0`.
      path: coordinates (x, y) of :math:`\theta_0, \ldots, \theta_k`, projected, of shape
        (k + 1, 2).
      gradients: coordinates of :math:`g_0, \ldots, g_k`, of shape (k + 1, 2), projected.
      psi: the angle of :math:`g_k` and the displacement in radians.
    """

    direction_x: Any
    direction_y: Any
    path: np.ndarray
    gradients: np.ndarray
    psi: float

    def point(self, alpha: Any, radius: float) -> np.ndarray:
        r"""Returns the coordinates of :math:`\rho_m v(\alpha)`, of shape (..., 2).

        Args:
          alpha: the interpolation factor, or an array of them.
          radius: :math:`\rho_m`.
        """
        turned = np.asarray(alpha, np.float64) * self.psi
        return radius * np.stack([np.sin(turned), np.cos(turned)], axis=-1)


def ascent_plane(
    value_fn: Callable[..., Any],
    params: Any,
    *,
    rho: float,
    steps: int = 1,
    batches: Batches = None,
) -> AscentPlane:
    r"""Performs the ascent of SAM, and returns the plane of its displacement and last gradient.

    With :math:`\theta_{i+1} = \theta_i + \rho\, g_i / \|g_i\|`, the Y axis is the direction of
    :math:`\theta_k - \theta_0`, and the X axis that of the component of :math:`g_k` orthogonal to
    it. In these coordinates XSAM's :math:`v(\alpha)` is :math:`(\sin \alpha\psi, \cos \alpha\psi)`.
    `loss_surface` evaluates the loss on the plane, `plots.ascent_plane` draws both.

    It costs steps + 1 gradients, and the memory of a gradient and of 2 steps + 4 parameter copies.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta_0`.
      rho: :math:`\rho > 0`, the length of a step, as in `xsam`.
      steps: :math:`k \ge 1`.
      batches: a re-iterable of batches, or None.

    Returns:
      An `AscentPlane`.

    Raises:
      TypeError: as in `make_hvp`, or an argument is of the wrong type.
      ValueError: as in `make_hvp`, or an argument is out of range, or the gradient at `params` is
        zero, or the last gradient and the ascent are parallel and span no plane.
      FloatingPointError: a loss or gradient is not finite.

    Example:
      >>> loss_fn = lambda params: params[0] ** 2 + 10 * params[1] ** 2
      >>> plane = ascent_plane(loss_fn, jnp.array([1.0, 0.1]), rho=0.1)
      >>> print(f"{np.degrees(plane.psi):.0f} degrees")
      13 degrees

    References:
      Chen and Zhou, `Revisiting Sharpness-Aware Minimization <https://arxiv.org/abs/2603.10048>`_,
      2026, figures 1a and 5 to 10
    """
    plane, _ = _plane_of_ascent(Objective(value_fn, params, batches), rho, steps)
    if plane.psi == 0.0:
        raise ValueError("the ascent and the gradient at its end span no plane: their angle is 0")
    return plane


def alpha_profile(
    value_fn: Callable[..., Any],
    params: Any,
    alphas: Any,
    *,
    rho: float,
    rho_max: float,
    steps: int = 1,
    batches: Batches = None,
    progress: Progress = None,
) -> np.ndarray:
    r"""Evaluates the loss over the interpolation factor, :math:`L(\theta_0 + \rho_m v(\alpha))`.

    With :math:`v_0 = (\theta_k - \theta_0) / \|\theta_k - \theta_0\|` after k ascent steps of
    length :math:`\rho`, :math:`v_1 = g_k / \|g_k\|` and :math:`\psi` the angle between them,

    .. math:: v(\alpha) = \frac{\sin((1-\alpha)\psi)\, v_0 + \sin(\alpha\psi)\, v_1}{\sin\psi}.

    XSAM searches for the maximum of this function. If the two are parallel (one parameter, a linear
    loss), every :math:`\alpha` gives the same direction. It costs steps + 1 gradients and
    `len(alphas)` forward passes, and the memory of `ascent_plane`.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta_0`.
      alphas: the interpolation factors, of shape (points,): 0 is :math:`v_0`, 1 is :math:`v_1`.
      rho: :math:`\rho > 0`, the length of an ascent step, as in `xsam`.
      rho_max: :math:`\rho_m > 0`.
      steps: :math:`k \ge 1`, the number of ascent steps.
      batches: a re-iterable of batches, or None.
      progress: called with the number of losses evaluated since its last call.

    Returns:
      A float64 NumPy array of shape (points,). Losses that are infinite or NaN are returned as they
      are.

    Raises:
      TypeError: as in `make_hvp`, or an argument is of the wrong type.
      ValueError: as in `make_hvp`, or an argument is out of range, or `alphas` is empty, or a
        gradient is zero, or the last gradient is opposite to the ascent.
      FloatingPointError: a loss or gradient of the ascent is not finite, or no loss over
        :math:`\alpha` is.

    Example:
      >>> loss_fn = lambda params: params[0] ** 2 + 10 * params[1] ** 2
      >>> params = jnp.array([1.0, 0.1])
      >>> losses = alpha_profile(loss_fn, params, [0.0, 1.0, 2.0], rho=0.1, rho_max=0.5)
      >>> print(", ".join(f"{loss:.2f}" for loss in losses))
      3.89, 4.34, 4.63

    References:
      Chen and Zhou, `Revisiting Sharpness-Aware Minimization <https://arxiv.org/abs/2603.10048>`_,
      2026, figures 2 and 13
    """
    objective = Objective(value_fn, params, batches)
    return losses_over_alpha(objective, alphas, rho, rho_max, steps, progress)[0]


def gradient_gap(
    value_fn: Callable[..., Any],
    params: Any,
    rhos: Any,
    rho_maxs: Any,
    *,
    batches: Batches = None,
    progress: Progress = None,
) -> np.ndarray:
    r"""Evaluates the loss along SAM's gradient minus the loss along the gradient.

    .. math:: L(\theta_0 + \rho_m g_1 / \|g_1\|) - L(\theta_0 + \rho_m g_0 / \|g_0\|), \qquad
              g_1 = \nabla L(\theta_0 + \rho\, g_0 / \|g_0\|)

    For a quadratic with a positive definite Hessian, if :math:`g_0` is not an eigenvector, it is
    positive for all :math:`\rho_m` above a threshold (proposition 1 of the XSAM paper). For small
    :math:`\rho_m` it is negative, because :math:`g_0` is the steepest direction at
    :math:`\theta_0`.

    It costs `1 + len(rhos)` gradients and `(1 + len(rhos)) * len(rho_maxs)` forward passes.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta_0`.
      rhos: the lengths :math:`\rho > 0` of the ascent, of shape (rows,).
      rho_maxs: the distances :math:`\rho_m`, of shape (columns,).
      batches: a re-iterable of batches, or None.
      progress: called with the number of losses evaluated since its last call.

    Returns:
      A float64 NumPy array of shape (rows, columns), with infinite or NaN entries if losses are
      infinite or NaN.

    Raises:
      TypeError: as in `make_hvp`, or an argument is of the wrong type.
      ValueError: as in `make_hvp`, or a `rho` is out of range, or there is none, or the gradient at
        `params`, or after an ascent, is zero.
      FloatingPointError: a loss or gradient of an ascent is not finite, or no loss in a
        direction is.

    Example:
      >>> loss_fn = lambda params: params[0] ** 2 + 10 * params[1] ** 2
      >>> gaps = gradient_gap(loss_fn, jnp.array([1.0, 0.1]), [0.1], [0.01, 1.0])
      >>> print(f"{gaps[0, 0]:.4f} {gaps[0, 1]:.4f}")
      -0.0005 1.8876

    References:
      Chen and Zhou, `Revisiting Sharpness-Aware Minimization <https://arxiv.org/abs/2603.10048>`_,
      2026, proposition 1, figures 11 and 12
    """
    rhos, rho_maxs = as_coordinates("rhos", rhos), as_coordinates("rho_maxs", rho_maxs)
    objective = Objective(value_fn, params, batches)
    _, first = value_and_nonzero_gradient(objective, objective.params)

    def losses_along(gradient: Any) -> np.ndarray:
        unit = tree.unit(gradient)
        points = np.stack([rho_maxs, np.zeros_like(rho_maxs)], axis=-1)
        return losses_on_plane(objective, unit, unit, points, 1, progress)

    along_first = losses_along(first)
    rows = []
    for rho in rhos:
        last = _ascend(objective, first, rho).last_gradient
        check_gradient(last, "at the end of the ascent")
        rows.append(losses_along(last) - along_first)
    return np.stack(rows)


def losses_over_alpha(
    objective: Objective,
    alphas: Any,
    rho: float,
    rho_max: float,
    steps: int,
    progress: Progress = None,
) -> tuple[np.ndarray, float]:
    """Returns the losses of `alpha_profile`, and the loss at the parameters.

    Args:
      objective: the loss.
      alphas: as in `alpha_profile`, as are the others.
      rho: the length of a step.
      rho_max: the distance.
      steps: the number of steps.
      progress: called with the number of losses evaluated since its last call.

    Example:
      >>> objective = Objective(lambda params: params[0] ** 2 + params[1], jnp.ones(2), None)
      >>> losses, at_center = losses_over_alpha(objective, [1.0], 0.1, 0.2, 1)
      >>> print(f"{at_center:.2f} {losses[0]:.2f}")
      2.00 2.48
    """
    alphas = as_coordinates("alphas", alphas)
    checks.real("rho_max", rho_max, above=0.0)
    plane, at_center = _plane_of_ascent(objective, rho, steps)
    points = plane.point(alphas, rho_max)
    losses = losses_on_plane(objective, plane.direction_x, plane.direction_y, points, 1, progress)
    return losses, at_center


def _plane_of_ascent(objective: Objective, rho: float, steps: int) -> tuple[AscentPlane, float]:
    """Returns the plane of an ascent, and the loss at the parameters."""
    checks.static_integer("steps", steps, 1)
    value, first = value_and_nonzero_gradient(objective, objective.params)
    path = _ascend(objective, first, rho, steps)
    check_gradient(path.last_gradient, "at the end of the ascent")
    displacements = [tree.total(path.perturbations[:i]) for i in range(1, steps + 1)]
    psi = float(tree.angle(displacements[-1], path.last_gradient))
    y = tree.unit(displacements[-1])
    # As in slerp_to_maximum: if both are parallel, the orthogonal component is rounding.
    rounding = 8 * float(jnp.finfo(tree.accumulation_dtype()).eps)
    if psi > tree.LARGEST_ANGLE:
        raise ValueError(
            f"the ascent and the gradient at its end span no plane: their angle is {psi:.5f}"
        )
    if psi <= rounding:
        psi, x = 0.0, tree.scale(0.0, y)
    else:
        x = tree.unit(tree.reject(tree.unit(path.last_gradient), y))

    def coordinates(trees: Sequence[Any]) -> np.ndarray:
        pairs = [[float(tree.dot(u, x)), float(tree.dot(u, y))] for u in trees]
        return np.array(pairs).reshape(-1, 2)

    points = np.concatenate([np.zeros((1, 2)), coordinates(displacements)])
    return AscentPlane(x, y, points, coordinates(path.gradients), psi), value


def _ascend(objective: Objective, gradient: Any, rho: float, steps: int = 1) -> AscentPath:
    """Returns the path of SAM's ascent from the parameters."""
    checks.real("rho", rho, above=0.0)
    ascent = optax.chain(normalize(), scale_by_radius(rho))
    state, params = ascent.init(objective.params), objective.params
    return ascend(ascent, state, objective.value_and_gradient, params, gradient, steps=steps)[0]


def value_and_nonzero_gradient(objective: Objective, params: Any) -> tuple[float, Any]:
    """Returns loss and gradient, or raises a ValueError if the gradient is zero."""
    value, gradient = objective.value_and_gradient(params)
    check_gradient(gradient)
    return value, gradient


def check_gradient(gradient: Any, where: str = "at params") -> None:
    """Raises a ValueError where the gradient is zero."""
    if float(tree.norm(gradient)) == 0.0:
        raise ValueError(f"the gradient {where} is zero, so that no direction leads uphill")
