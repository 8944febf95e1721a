"""Friendly SAM (F-SAM), and its form with the scaling of ASAM."""

from __future__ import annotations

import jax
import optax

from xsam_jax._schedules import Radius
from xsam_jax.ascent.gradient_average import subtract_ema
from xsam_jax.ascent.normalize import normalize
from xsam_jax.ascent.scale_by_magnitude import scale_by_magnitude
from xsam_jax.core import sharpness_aware
from xsam_jax.methods._ascent_of_length import ascent_of_length
from xsam_jax.methods.asam import Mask


def friendly_sam(
    rho: Radius,
    decay: float | jax.Array = 0.9,
    sigma: float | jax.Array | str = 1.0,
    *,
    convention: str = "paper",
) -> optax.GradientTransformationExtraArgs:
    r"""Friendly SAM (F-SAM): ascends along the noise of the batch gradient.

    With :math:`m_{-1} = 0` and, in each training step,

    .. math:: m_t = \lambda m_{t-1} + (1-\lambda) g_t, \qquad d_t = g_t - \sigma m_t,
              \qquad \theta_1 = \theta_0 + \rho\, d_t / \|d_t\|, \qquad \text{update } g_1.

    Use it in place of `sam` with small batches: the part of the gradient that all batches share
    harms generalization when it is in the perturbation, according to the paper. It needs a copy of
    the parameters for the average. One step costs one further gradient.

    Args:
      rho: the length of the ascent, as in `sam`.
      decay: :math:`\lambda`, in [0, 1] (default 0.9). A larger one averages over more steps.
      sigma: :math:`\sigma`, any real number (default 1). A larger one subtracts more of the
        average. 0 is `sam`. "cosine" is that of the angle between gradient and average (equation 11
        of the paper).
      convention: "paper" (default), or "official" for :math:`m_0 = d_0 = g_0` and later
        :math:`d_t = g_t - \sigma m_{t-1}`. At :math:`\sigma = 1` the two directions agree except
        for the start of the average. Static.

    Returns:
      A gradient transformation. Its state holds the average, one copy of the parameters.

    Raises:
      TypeError: a numeric argument is not a real number.
      ValueError: an argument is out of range, or `convention` is unknown.

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
    direction = optax.chain(subtract_ema(decay, sigma, convention=convention), normalize())
    return sharpness_aware(ascent_of_length(rho, direction=direction))


def friendly_asam(
    rho: Radius,
    decay: float | jax.Array = 0.9,
    sigma: float | jax.Array | str = 1.0,
    eta: float | jax.Array = 0.01,
    *,
    mask: Mask | None = None,
    convention: str = "paper",
) -> optax.GradientTransformationExtraArgs:
    r"""Friendly ASAM (F-ASAM): the direction of `friendly_sam` with the scaling of `asam`.

    With :math:`d_t` as in `friendly_sam` and :math:`T` as in `asam`,

    .. math:: \theta_1 = \theta_0 + \rho\, T^2 d_t / \|T d_t\|, \qquad \text{update } g_1.

    Use it in place of `friendly_sam` when layers differ in scale, with the larger radius of ASAM.
    One step costs one further gradient. The official code has :math:`\eta = 0`.

    Args:
      rho: the radius in units of :math:`T`, as in `asam`.
      decay: :math:`\lambda`, in [0, 1] (default 0.9), as in `friendly_sam`.
      sigma: :math:`\sigma`, any real number (default 1), or "cosine", as in `friendly_sam`. 0 is
        `asam`.
      eta: :math:`\eta \ge 0` (default 0.01), as in `asam`.
      mask: the leaves that :math:`T` scales, as in `asam`. Static.
      convention: "paper" (default) or "official", as in `friendly_sam`. Static.

    Returns:
      A gradient transformation. Its state holds the average, one copy of the parameters.

    Raises:
      TypeError: a numeric argument is not a real number. In `update`, `mask` has a leaf that is no
        boolean.
      ValueError: an argument is out of range, or `convention` is unknown. In `update`, `mask` does
        not fit `params`.

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
    noise = subtract_ema(decay, sigma, convention=convention)
    direction = optax.chain(noise, scale_by_magnitude(eta, mask=mask))
    return sharpness_aware(ascent_of_length(rho, direction=direction))
