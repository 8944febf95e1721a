"""Adaptive SAM (ASAM)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import optax

from xsam_jax._schedules import Radius
from xsam_jax.ascent.scale_by_magnitude import scale_by_magnitude
from xsam_jax.core import sharpness_aware
from xsam_jax.methods._ascent_of_length import ascent_of_length

Mask: TypeAlias = Any | Callable[[optax.Params], Any]


def asam(
    rho: Radius, eta: float | jax.Array = 0.01, *, mask: Mask | None = None, steps: int = 1
) -> optax.GradientTransformationExtraArgs:
    r"""Adaptive SAM (ASAM): perturbs large parameters more than small ones.

    With the diagonal :math:`T_i = |\theta_i| + \eta` on leaves that `mask` selects, else 1,

    .. math:: \theta_{i+1} = \theta_i + \rho_i\, T_i^2 g_i / \|T_i g_i\|, \qquad
              \text{update } g_k.

    Use it in place of `sam` when layers differ in scale, as in networks with normalization layers:
    with :math:`\eta = 0` it does not change when one layer is scaled up and the next one down. One
    step costs `steps` further gradients.

    Args:
      rho: the radius in units of :math:`T`, so larger than that of SAM. Published: 0.5 (CIFAR-10)
        and 1 (CIFAR-100). Otherwise as in `sam`.
      eta: :math:`\eta \ge 0` (default 0.01). A larger one makes the perturbation more like SAM's.
      mask: a pytree of booleans with the structure of `params`, or a prefix of it, or a function
        of `params` that returns one. The default None selects all leaves. The official code
        selects parameters named "weight", so no biases. Static.
      steps: :math:`k \ge 1`, the number of ascent steps (default 1). Static.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule.

    Raises:
      TypeError: `rho` or `eta` is not a real number, or `steps` is not an integer. In `update`,
        `mask` has a leaf that is no boolean.
      ValueError: an argument is out of range, or there are not `steps` radii. In `update`, `mask`
        does not fit `params`.

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
    return sharpness_aware(
        ascent_of_length(rho, steps, scale_by_magnitude(eta, mask=mask)), steps=steps
    )
