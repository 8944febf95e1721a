"""The loss on lines and planes around a point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax.analysis._objective import (
    Batches,
    Objective,
    Progress,
    check_like,
    checked_finite,
)


def loss_surface(
    value_fn: Callable[..., Any],
    params: Any,
    direction_x: Any,
    direction_y: Any,
    xs: Any,
    ys: Any,
    *,
    batches: Batches = None,
    points_per_call: int = 1,
    progress: Progress = None,
) -> np.ndarray:
    r"""Evaluates the loss on a plane, :math:`L(\theta + x\,d_x + y\,d_y)`.

    It costs `len(xs) * len(ys)` forward passes over all batches, in one pass through the data. It
    needs the memory of one parameter copy beside :math:`\theta, d_x, d_y` and of the activations,
    times `points_per_call`.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta`, the origin of the plane.
      direction_x: :math:`d_x`, a tree with the structure and shapes of `params`, such as a result
        of `random_direction`, `top_eigenpairs` or `ascent_plane`, or the difference of two
        networks. It is not normalized. Its length is the unit of `xs`.
      direction_y: :math:`d_y`, with the same structure and shapes.
      xs: of shape (width,).
      ys: of shape (height,).
      batches: a re-iterable of batches, or None.
      points_per_call: the number of losses that `jax.vmap` evaluates together (default 1). A larger
        one is faster for small models on accelerators, and slower for convolutions on CPU.
      progress: called with the number of losses evaluated since its last call, such as
        `tqdm(total=len(xs) * len(ys) * len(batches)).update`.

    Returns:
      A float64 NumPy array of shape (height, width), as for matplotlib's `contour`. Losses that are
      infinite or NaN are returned as they are.

    Raises:
      TypeError: as in `make_hvp`, or a direction does not have the structure and shapes of
        `params`, or `xs` or `ys` is not a list of real numbers.
      ValueError: as in `make_hvp`, or a direction is zero, or `xs` or `ys` is empty.
      FloatingPointError: no loss is finite, or a direction is not.

    Example:
      >>> loss_fn = lambda params: params[0] ** 2 + 10 * params[1] ** 2
      >>> x, y = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
      >>> loss_surface(loss_fn, jnp.zeros(2), x, y, xs=[0.0, 1.0, 2.0], ys=[0.0, 1.0])
      array([[ 0.,  1.,  4.],
             [10., 11., 14.]])

    References:
      Li et al., `Visualizing the Loss Landscape of Neural Nets
      <https://arxiv.org/abs/1712.09913>`_, 2018, and Chen and Zhou, `Revisiting Sharpness-Aware
      Minimization <https://arxiv.org/abs/2603.10048>`_, 2026, figures 1a, 5 to 10 and 15
    """
    xs, ys = as_coordinates("xs", xs), as_coordinates("ys", ys)
    checks.static_integer("points_per_call", points_per_call, 1)
    objective = Objective(value_fn, params, batches)
    for name, direction in (("direction_x", direction_x), ("direction_y", direction_y)):
        _check_direction(name, direction, objective.params)
    grid = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    losses = losses_on_plane(objective, direction_x, direction_y, grid, points_per_call, progress)
    return losses.reshape(len(ys), len(xs))


def loss_line(
    value_fn: Callable[..., Any],
    params: Any,
    direction: Any,
    xs: Any,
    *,
    batches: Batches = None,
    points_per_call: int = 1,
    progress: Progress = None,
) -> np.ndarray:
    r"""Evaluates the loss on a line, :math:`L(\theta + x\,d)`.

    It is `loss_surface` at y = 0, with the same cost and errors.

    Args:
      value_fn: the loss, as in `make_hvp`, as are `params` and `batches`.
      params: :math:`\theta`.
      direction: :math:`d`, a tree with the structure and shapes of `params`.
      xs: of shape (points,).
      batches: a re-iterable of batches, or None.
      points_per_call: the number of losses evaluated together.
      progress: called with the number of losses evaluated since its last call.

    Returns:
      A float64 NumPy array of shape (points,).

    Example:
      >>> loss_line(lambda params: jnp.sum(params**2), jnp.ones(2), jnp.ones(2), [-1.0, 0.0, 1.0])
      array([0., 2., 8.])
    """
    surface = loss_surface(
        value_fn,
        params,
        direction,
        direction,
        xs,
        [0.0],
        batches=batches,
        points_per_call=points_per_call,
        progress=progress,
    )
    return surface[0]


def place_on_plane(shared: Any, point: jax.Array) -> Any:
    """Returns the parameters at coordinates (x, y) of a plane."""
    params, direction_x, direction_y = shared

    def moved(leaf: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return (leaf + point[0] * x + point[1] * y).astype(leaf.dtype)

    return jax.tree.map(moved, params, direction_x, direction_y)


def losses_on_plane(
    objective: Objective,
    direction_x: Any,
    direction_y: Any,
    points: np.ndarray,
    points_per_call: int,
    progress: Progress,
) -> np.ndarray:
    """Returns the losses at points of a plane, and raises if none is finite."""
    shared = objective.params, tree.scale(1.0, direction_x), tree.scale(1.0, direction_y)
    rows = [jnp.asarray(point, tree.accumulation_dtype()) for point in points]
    losses = objective.values(place_on_plane, shared, rows, points_per_call, progress)
    if not np.isfinite(losses).any():
        raise FloatingPointError("the loss is not finite at any of the points")
    return losses


def as_coordinates(name: str, values: Any) -> np.ndarray:
    """Returns a list of finite real numbers as a float64 vector."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        array = np.array(None)
    if array.ndim != 1 or array.dtype != np.float64:
        raise TypeError(f"{name} must be a list of real numbers, got {values!r}")
    if not array.size:
        raise ValueError(f"{name} is empty")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {values!r}")
    return array


def _check_direction(name: str, direction: Any, params: Any) -> None:
    check_like(name, direction, params)
    length = float(tree.norm(direction))
    checked_finite(f"the norm of {name}", length)
    if length == 0.0:
        raise ValueError(f"{name} is zero")
