"""SAM with another direction of ascent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from xsam_jax.alias.climb import climb
from xsam_jax.ascent import (
    ema_of_gradients,
    normalize,
    scale_by_fisher,
    scale_by_magnitude,
    subtract_ema,
)
from xsam_jax.base import Radius
from xsam_jax.core import sharpness_aware

Mask = Any | Callable[[optax.Params], Any]


def asam(
    rho: Radius, eta: float | jax.Array = 0.01, *, mask: Mask | None = None, steps: int = 1
) -> optax.GradientTransformationExtraArgs:
    r"""Adaptive SAM (ASAM): large parameters are moved further.

    With the diagonal :math:`T_i = |\theta_i| + \eta` on leaves that `mask` selects, else 1,

    .. math:: \theta_{i+1} = \theta_i + \rho_i\, T_i^2 g_i / \|T_i g_i\|, \qquad
              \text{update } g_k.

    With :math:`\eta = 0` it does not change when a layer is scaled up and the next one down. One
    step costs `steps` further gradients.

    Args:
      rho: the radius in units of :math:`T`, so larger than SAM's: published 0.5 (CIFAR-10) and 1
        (CIFAR-100); otherwise as in `sam`.
      eta: :math:`\eta \ge 0`. May be traced.
      mask: a pytree of booleans with the structure of `params`, or a prefix of it, or a function
        of `params` that returns one; None selects all leaves. Static. The official code selects
        what is named "weight", so no biases. Where :math:`T` is 1 everywhere it is `sam`.
      steps: :math:`k \ge 1`, the number of ascent steps. Static.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule. Gradients keep their dtype.

    Raises:
      TypeError: `rho` or `eta` is not a real number, `steps` is not an integer; in `update`, `mask`
        holds something else than booleans.
      ValueError: an argument is out of range, or there are not `steps` radii; in `update`, `mask`
        does not fit `params`. `update` also raises what `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(asam(rho=0.5), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.224', '-1.192']

    References:
      Kwon et al., `ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of
      Deep Neural Networks <https://arxiv.org/abs/2102.11600>`_, 2021. Ports without :math:`\eta`
      that scale biases too need a radius about four times as large.
    """
    return sharpness_aware(climb(rho, steps, scale_by_magnitude(eta, mask=mask)), steps=steps)


def fisher_sam(rho: Radius, eta: float | jax.Array = 1.0) -> optax.GradientTransformationExtraArgs:
    r"""Fisher SAM: an ascent that is short where the gradient is large.

    With :math:`f = 1/(1 + \eta g_0^2)`, elementwise,

    .. math:: \theta_1 = \theta_0 + \rho\, f g_0 \,/\, \sqrt{\textstyle\sum f g_0^2}, \qquad
              \text{update } g_1.

    No official code is known; this is the formula of third-party ports, with the square of the
    batch-mean gradient for the Fisher information. One step costs one further gradient.

    Args:
      rho: the radius in the metric :math:`1/f`, as in `sam` otherwise.
      eta: :math:`\eta \ge 0`, in units of an inverse squared gradient; 0 is `sam`. May be traced.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule. Gradients keep their dtype.

    Raises:
      TypeError: `rho` or `eta` is not a real number.
      ValueError: one of them is out of range. `update` raises what `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(fisher_sam(rho=0.1), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.206', '-0.807']

    References:
      Kim et al., `Fisher SAM: Information Geometry and Sharpness Aware Minimisation
      <https://arxiv.org/abs/2206.04920>`_, 2022
    """
    return sharpness_aware(climb(rho, 1, scale_by_fisher(eta)))


def friendly_sam(
    rho: Radius,
    decay: float | jax.Array = 0.9,
    sigma: float | jax.Array = 1.0,
    *,
    convention: str = "paper",
) -> optax.GradientTransformationExtraArgs:
    r"""Friendly SAM (F-SAM): the ascent follows the noise of the batch, not the full gradient.

    With :math:`m_{-1} = 0` and, in each training step,

    .. math:: m_t = \lambda m_{t-1} + (1-\lambda) g_t, \qquad d_t = g_t - \sigma m_t,
              \qquad \theta_1 = \theta_0 + \rho\, d_t / \|d_t\|, \qquad \text{update } g_1.

    One step costs one further gradient.

    Args:
      rho: the length of the ascent, as in `sam`.
      decay: :math:`\lambda`, in [0, 1]. (VaSSO's `theta` means the opposite.) May be traced.
      sigma: :math:`\sigma`, any real number; 0 is `sam`. May be traced.
      convention: "paper", or "official" for :math:`m_0 = d_0 = g_0` and later
        :math:`d_t = g_t - \sigma m_{t-1}`; at :math:`\sigma = 1` the two directions agree up to
        the start of the average. Static.

    Returns:
      A gradient transformation. Its state holds the average, one copy of the parameters. Gradients
      keep their dtype.

    Raises:
      TypeError: a numeric argument is not a real number.
      ValueError: an argument is out of range, or `convention` is unknown. `update` raises what
        `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(friendly_sam(rho=0.1), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.205', '-0.878']

    References:
      Li et al., `Friendly Sharpness-Aware Minimization <https://arxiv.org/abs/2403.12350>`_, 2024,
      Algorithm 1
    """
    direction = subtract_ema(decay, sigma, convention=convention)
    return sharpness_aware(climb(rho, 1, direction, normalize()))


def friendly_asam(
    rho: Radius,
    decay: float | jax.Array = 0.9,
    sigma: float | jax.Array = 1.0,
    eta: float | jax.Array = 0.01,
    *,
    mask: Mask | None = None,
    convention: str = "paper",
) -> optax.GradientTransformationExtraArgs:
    r"""Friendly ASAM (F-ASAM): the direction of `friendly_sam` in the geometry of `asam`.

    With :math:`d_t` as in `friendly_sam` and :math:`T` as in `asam`,

    .. math:: \theta_1 = \theta_0 + \rho\, T^2 d_t / \|T d_t\|, \qquad \text{update } g_1.

    One step costs one further gradient. The official code has :math:`\eta = 0`.

    Args:
      rho: the radius in units of :math:`T`, as in `asam`.
      decay: :math:`\lambda`, in [0, 1], as in `friendly_sam`. May be traced.
      sigma: :math:`\sigma`, any real number; 0 is `asam`. May be traced.
      eta: :math:`\eta \ge 0`, as in `asam`. May be traced.
      mask: the leaves that :math:`T` scales, as in `asam`. Static.
      convention: "paper" or "official", as in `friendly_sam`. Static.

    Returns:
      A gradient transformation. Its state holds the average, one copy of the parameters. Gradients
      keep their dtype.

    Raises:
      TypeError: a numeric argument is not a real number; in `update`, `mask` holds something else
        than booleans.
      ValueError: an argument is out of range, or `convention` is unknown; in `update`, `mask` does
        not fit `params`. `update` also raises what `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(friendly_asam(rho=0.5), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.224', '-1.192']

    References:
      Li et al., `Friendly Sharpness-Aware Minimization <https://arxiv.org/abs/2403.12350>`_, 2024
    """
    direction = subtract_ema(decay, sigma, convention=convention)
    return sharpness_aware(climb(rho, 1, direction, scale_by_magnitude(eta, mask=mask)))


def vasso(rho: Radius, theta: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    r"""Variance-suppressed SAM (VaSSO): the ascent follows an average of gradients.

    With :math:`d_0 = g_0` and, in each later training step,

    .. math:: d_t = (1-\theta) d_{t-1} + \theta g_t, \qquad
              \theta_1 = \theta_0 + \rho\, d_t / \|d_t\|, \qquad \text{update } g_1.

    One step costs one further gradient.

    Args:
      rho: the length of the ascent, as in `sam`.
      theta: the weight of the new gradient, in [0, 1]; 1 is `sam`. (F-SAM's `decay` means the
        opposite.) The official scripts have 0.9, the literature also 0.4, so there is no default.
        May be traced.

    Returns:
      A gradient transformation. Its state holds the average, one copy of the parameters. Gradients
      keep their dtype.

    Raises:
      TypeError: `rho` or `theta` is not a real number.
      ValueError: one of them is out of range. `update` raises what `sharpness_aware` says.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(vasso(rho=0.1, theta=0.4), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.205', '-0.878']

    References:
      Li and Giannakis, `Enhancing Sharpness-Aware Optimization Through Variance Suppression
      <https://arxiv.org/abs/2309.15639>`_, 2023
    """
    return sharpness_aware(climb(rho, 1, ema_of_gradients(theta), normalize()))
