"""Directions from an average of past gradients (Friendly SAM, VaSSO)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax._devices import MeanOverGroups, one_group


class GradientAverageState(NamedTuple):
    """An exponential moving average of gradients.

    Attributes:
      count: the number of training steps, int32 scalar.
      average: the average, float32 (float64 under x64), with the structure of the parameters.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as in Optax
    average: Any


def subtract_ema(
    decay: float | jax.Array = 0.9,
    sigma: float | jax.Array | str = 1.0,
    *,
    convention: str = "paper",
) -> optax.GradientTransformationExtraArgs:
    r"""Subtracts the moving average of gradients, which leaves the noise of the batch (F-SAM).

    With :math:`m_{-1} = 0` and, in each training step,

    .. math:: m_t = \lambda m_{t-1} + (1-\lambda) g_t, \qquad d_t = g_t - \sigma m_t,

    it returns :math:`d_t`. Follow it with `normalize` or `scale_by_magnitude`. The official code
    starts with :math:`m_0 = d_0 = g_0` and subtracts the average from before the step,
    :math:`d_t = g_t - \sigma m_{t-1}`. At :math:`\sigma = 1` the two directions agree except for
    the start of the average.

    Args:
      decay: :math:`\lambda`, in [0, 1] (default 0.9). A larger one averages over more steps.
      sigma: :math:`\sigma`, any real number (default 1). A larger one subtracts more. 0 keeps the
        gradient. "cosine" is that of the angle between gradient and average (equation 11 of the
        paper).
      convention: "paper" (default) or "official". Static.

    Returns:
      A transformation with state `GradientAverageState`. A gradient that is not finite does not
      enter the average.

    Raises:
      TypeError: `decay` or `sigma` is not a real number.
      ValueError: `decay` is out of range, `sigma` is not finite or another text, or `convention`
        is unknown.

    Example:
      >>> tx = subtract_ema(decay=0.5)
      >>> state = tx.init(jnp.zeros(2))
      >>> first, state = tx.update(jnp.array([1.0, 0.0]), state)
      >>> second, state = tx.update(jnp.array([0.0, 1.0]), state)
      >>> first, second
      (Array([0.5, 0. ], dtype=float32), Array([-0.25,  0.5 ], dtype=float32))

    References:
      Li et al., `Friendly Sharpness-Aware Minimization <https://arxiv.org/abs/2403.12350>`_, 2024,
      Algorithm 1
    """
    checks.real("decay", decay, minimum=0.0, maximum=1.0)
    if isinstance(sigma, str):
        checks.choice("sigma", sigma, ("cosine",))
    else:
        checks.real("sigma", sigma)
    checks.convention(convention)

    def update_fn(
        updates: optax.Updates,
        state: GradientAverageState,
        params: optax.Params | None = None,
        *,
        mean_over_groups: MeanOverGroups = one_group,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GradientAverageState]:
        del params, extra_args
        average = tree.combine(decay, state.average, 1.0 - decay, updates)
        # Before the first step the average is zero, so that the official direction is the gradient.
        subtracted = state.average if convention == "official" else average
        factor = tree.cosine(subtracted, updates) if isinstance(sigma, str) else sigma
        direction = tree.combine(1.0, updates, -factor, subtracted)
        if convention == "official":
            average = optax.tree.where(state.count == 0, tree.scale(1.0, updates), average)
        return tree.cast_like(direction, updates), _advance(
            state, average, updates, mean_over_groups
        )

    return optax.GradientTransformationExtraArgs(_init, update_fn)


def ema_of_gradients(theta: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the gradient by its moving average over training steps (VaSSO).

    With :math:`d_0 = g_0`, the weight :math:`\beta` (`theta`) and, in each later training step,

    .. math:: d_t = (1-\beta) d_{t-1} + \beta g_t,

    it returns :math:`d_t`. Follow it with `normalize` or `scale_by_magnitude`.

    Args:
      theta: :math:`\beta`, the weight of the new gradient, in [0, 1]. The paper calls it theta. 1
        returns the gradient itself. A smaller one averages over more steps. F-SAM's `decay` is one
        minus such a weight.

    Returns:
      A transformation with state `GradientAverageState`. A gradient that is not finite does not
      enter the average.

    Raises:
      TypeError: `theta` is not a real number.
      ValueError: `theta` is out of range.

    Example:
      >>> tx = ema_of_gradients(theta=0.25)
      >>> state = tx.init(jnp.zeros(2))
      >>> first, state = tx.update(jnp.array([1.0, 0.0]), state)
      >>> second, state = tx.update(jnp.array([0.0, 1.0]), state)
      >>> first, second
      (Array([1., 0.], dtype=float32), Array([0.75, 0.25], dtype=float32))

    References:
      Li and Giannakis, `Enhancing Sharpness-Aware Optimization Through Variance Suppression
      <https://arxiv.org/abs/2309.15639>`_, 2023
    """
    checks.real("theta", theta, minimum=0.0, maximum=1.0)

    def update_fn(
        updates: optax.Updates,
        state: GradientAverageState,
        params: optax.Params | None = None,
        *,
        mean_over_groups: MeanOverGroups = one_group,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GradientAverageState]:
        del params, extra_args
        weight = jnp.where(state.count == 0, 1.0, theta)
        average = tree.combine(1.0 - weight, state.average, weight, updates)
        return tree.cast_like(average, updates), _advance(state, average, updates, mean_over_groups)

    return optax.GradientTransformationExtraArgs(_init, update_fn)


def _init(params: optax.Params) -> GradientAverageState:
    dtype = tree.accumulation_dtype()
    zeros = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=dtype), params)
    return GradientAverageState(jnp.zeros((), jnp.int32), zeros)


def _advance(
    state: GradientAverageState,
    average: Any,
    updates: optax.Updates,
    mean_over_groups: MeanOverGroups,
) -> GradientAverageState:
    average, norm = mean_over_groups((average, tree.norm(updates)))
    # A NaN would stay in the average forever, out of reach of apply_if_finite.
    finite = jnp.isfinite(norm)
    # Count all steps, also those that are not finite: under vmap all seeds share one count.
    count = optax.safe_increment(state.count)
    return GradientAverageState(count, optax.tree.where(finite, average, state.average))
