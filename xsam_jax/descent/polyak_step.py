"""A step size from the loss (SAM-SPS)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax import _value_fn
from xsam_jax._value_fn import ValueFn
from xsam_jax.core import AscentPath


def polyak_step(
    maximum: float | jax.Array = 1.0,
    minimum_loss: float | jax.Array = 0.0,
    weight_decay: float | jax.Array = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies the last gradient by the Polyak step size of SAM (SAM-SPS).

    With :math:`d = \theta_k - \theta_0` and the lower bound :math:`\ell^*` of the loss

    .. math:: \gamma = \min\left(\gamma_b,\ \max\left(0,\ \frac{L(\theta_k) - \ell^* -
              \langle g_k, d \rangle}{\|g_k\|^2}\right)\right), \qquad
              \gamma\, (g_k + w\, \theta_0).

    It replaces the learning rate: follow the method with `optax.sgd(1.0)`. The paper has no
    momentum.

    Args:
      maximum: :math:`\gamma_b > 0`, the largest step size (default 1).
      minimum_loss: :math:`\ell^*`, a lower bound of the loss of a batch (default 0).
      weight_decay: :math:`w \ge 0` (default 0).

    Returns:
      A stateless descent. It needs the loss at :math:`\theta_k`, one forward pass if a `grad_fn`
      took the gradient. A zero gradient gives a zero update.

    Raises:
      TypeError: an argument is not a real number.
      ValueError: an argument is out of range. In `update`, `path` is missing, or `value_fn` where
        it is needed.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> from xsam_jax.core import sharpness_aware
      >>> ascent = optax.chain(normalize(), scale_by_radius(0.1))
      >>> tx = optax.chain(sharpness_aware(ascent, polyak_step()), optax.sgd(1.0))
      >>> loss_fn = lambda params: 0.5 * jnp.sum(params**2)
      >>> params = jnp.array([3.0, 4.0])
      >>> opt_state = tx.init(params)
      >>> updates, opt_state = tx.update(params, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.2f}" for u in updates])
      ['-1.47', '-1.96']

    References:
      Oikonomou and Loizou, `Adaptive Sharpness-Aware Minimization with a Polyak-type Step Size: A
      Theory-Grounded Scheduler <https://arxiv.org/abs/2606.01827>`_, 2026
    """
    checks.real("maximum", maximum, above=0.0)
    checks.real("minimum_loss", minimum_loss)
    checks.real("weight_decay", weight_decay, minimum=0.0)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        path: AscentPath | None = None,
        value_fn: ValueFn | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        path = checks.ascent_path("polyak_step", path, params)
        loss = path.last_value
        if loss is None:
            value_fn = _value_fn.require_value_fn("polyak_step reads the loss", value_fn)
            loss = _value_fn.value_at(value_fn, params, path.displacement)
        length = tree.divisor(updates)
        rise = jnp.asarray(loss, length.dtype) - minimum_loss - tree.dot(updates, path.displacement)
        size = jnp.clip(rise / length / length, 0.0, maximum)
        return tree.combine(size, updates, size * weight_decay, params), state

    return optax.GradientTransformationExtraArgs(optax.identity().init, update_fn)
