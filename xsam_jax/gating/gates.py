"""The gates: every k-th step, late in training, at random, and at large gradient norms."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax.gating.gated import Gate, GateFn


def every(k: int | jax.Array) -> GateFn:
    """Makes every k-th step sharpness-aware, `count % k == 0`.

    Args:
      k: at least 1. The first step is sharpness-aware.

    Returns:
      A gate.

    Raises:
      TypeError: `k` is not an integer.
      ValueError: `k` is less than 1.

    Example:
      >>> gate = every(3)
      >>> [bool(gate(count)) for count in range(5)]
      [True, False, False, True, False]
    """
    checks.integer("k", k, 1)
    return lambda count: count % k == 0


def after(step: int | jax.Array) -> GateFn:
    """Makes all steps sharpness-aware after a number of steps (SAM late in training).

    Args:
      step: the number of steps before, at least 0.

    Returns:
      A gate.

    Raises:
      TypeError: `step` is not an integer.
      ValueError: `step` is negative.

    Example:
      >>> gate = after(2)
      >>> [bool(gate(count)) for count in range(4)]
      [False, False, True, True]

    References:
      Zhou et al., `Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in Training
      <https://arxiv.org/abs/2410.10373>`_, 2024
    """
    checks.integer("step", step, 0)
    return lambda count: count >= step


def bernoulli(p: optax.ScalarOrSchedule, key: jax.Array) -> GateFn:
    """Makes random steps sharpness-aware (RST).

    Args:
      p: the probability that a step is sharpness-aware, in [0, 1], or a schedule of it.
      key: a random key. Step t draws from `jax.random.fold_in(key, t)`, so a resumed run, and the
        host, draw the same.

    Returns:
      A gate.

    Raises:
      TypeError: `p` is neither a real number nor a schedule, or `key` is not a key.
      ValueError: `p` is out of range.

    Example:
      >>> gate = bernoulli(0.5, jax.random.key(0))
      >>> [bool(gate(count)) for count in range(5)]
      [False, True, False, True, True]

    References:
      Zhao et al., `SS-SAM: Stochastic Scheduled Sharpness-Aware Minimization for Efficiently
      Training Deep Neural Networks <https://arxiv.org/abs/2203.09962>`_, 2022
    """
    checks.real("p", p, minimum=0.0, maximum=1.0, schedule=True)
    checks.random_key("key", key)

    def gate(count: Any) -> jax.Array:
        # In float32, to draw the same with and without x64.
        probability = jnp.float32(p(count) if callable(p) else p)
        return jax.random.bernoulli(jax.random.fold_in(key, count), probability)

    return gate


class GradientNormState(NamedTuple):
    """Moments of the squared gradient norm.

    Attributes:
      mean: its exponential moving average, float32 (float64 under x64) scalar.
      variance: that of its squared distance from the mean, of the same dtype.
    """

    mean: jax.Array
    variance: jax.Array


def gradient_norm(threshold: optax.ScalarOrSchedule, decay: float | jax.Array = 0.9) -> Gate:
    r"""Makes a step sharpness-aware if its gradient norm is large for its running mean (AE-SAM).

    With :math:`x_t = \|g_0\|^2` and, from :math:`\mu_0 = x_0` and :math:`\sigma_0^2 = 0` on,

    .. math:: \mu_t = \delta \mu_{t-1} + (1-\delta) x_t, \qquad
              \sigma_t^2 = \delta \sigma_{t-1}^2 + (1-\delta)(x_t - \mu_t)^2,

    a step is sharpness-aware if :math:`x_t \ge \mu_t + c_t \sigma_t`. The first step is. No
    official code is known. The host cannot evaluate this gate.

    Args:
      threshold: :math:`c_t`, any real number, or a schedule of it. A larger one makes fewer steps
        sharpness-aware. The published one is `optax.linear_schedule(1.0, -1.0, num_steps)`.
      decay: :math:`\delta`, in [0, 1] (default 0.9). A larger one averages over more steps.

    Returns:
      A `Gate` with state `GradientNormState`. If a gradient, or the fourth power of its norm, is
      not finite, the step is sharpness-aware and the state stays.

    Raises:
      TypeError: `threshold` or `decay` is not a real number.
      ValueError: `decay` is out of range, or `threshold` is not finite.

    Example:
      >>> from xsam_jax import gated, sam
      >>> tx = gated(sam(0.1), gradient_norm(optax.linear_schedule(1.0, -1.0, 1000)))

    References:
      Jiang et al., `An Adaptive Policy to Employ Sharpness-Aware Minimization
      <https://arxiv.org/abs/2304.14647>`_, 2023
    """
    checks.real("threshold", threshold, schedule=True)
    checks.real("decay", decay, minimum=0.0, maximum=1.0)

    def init_fn() -> GradientNormState:
        dtype = tree.accumulation_dtype()
        # An infinite mean marks the state before the first step.
        return GradientNormState(jnp.full((), jnp.inf, dtype), jnp.zeros((), dtype))

    def decide_fn(
        updates: optax.Updates, state: GradientNormState, count: jax.Array
    ) -> tuple[jax.Array, GradientNormState]:
        squared = tree.squared_norm(updates)
        started = jnp.isfinite(state.mean)
        mean = jnp.where(started, decay * state.mean + (1.0 - decay) * squared, squared)
        variance = decay * state.variance + (1.0 - decay) * jnp.square(squared - mean)
        level = threshold(count) if callable(threshold) else threshold
        finite = jnp.isfinite(variance)
        sharp = ~finite | (squared >= mean + level * jnp.sqrt(variance))
        kept = GradientNormState(
            jnp.where(finite, mean, state.mean), jnp.where(finite, variance, state.variance)
        )
        return sharp, kept

    return Gate(init_fn, decide_fn)
