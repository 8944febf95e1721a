"""Weighted SAM (WSAM), coupled and decoupled from the base optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax._schedules import Radius
from xsam_jax.core import sharpness_aware
from xsam_jax.descent.mix_first import mix_first
from xsam_jax.methods._ascent_of_length import ascent_of_length
from xsam_jax.methods.sam import sam


def wsam(rho: Radius, gamma: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    r"""Weighted SAM (WSAM), coupled: sharpness as a regularization term of any weight.

    With :math:`a = \gamma/(1-\gamma)`,

    .. math:: \theta_1 = \theta_0 + \rho\, g_0 / \|g_0\|, \qquad \text{update } (1-a)\,g_0 + a\,g_1.

    Use it in place of `sam` to weigh sharpness more, or less, than SAM does. The official code's
    default is `decoupled_wsam`, which keeps the sharpness term out of the momentum. One step costs
    one further gradient.

    Args:
      rho: the length of the ascent, as in `sam`. The official default is 0.05.
      gamma: :math:`\gamma`, in [0, 1). A larger one weighs sharpness more: 0 is the base optimizer,
        1/2 is `sam`, and the official default is 0.9.

    Returns:
      A gradient transformation, stateless unless `rho` is a schedule.

    Raises:
      TypeError: `rho` or `gamma` is not a real number.
      ValueError: one of them is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(wsam(rho=0.1, gamma=0.9), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.244', '-1.499']

    References:
      Yue et al., `Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
      Term <https://arxiv.org/abs/2305.15817>`_, 2023
    """
    checks.real("gamma", gamma, minimum=0.0, below=1.0)
    return sharpness_aware(ascent_of_length(rho), mix_first(gamma / (1.0 - gamma)))


class DecoupledWsamState(NamedTuple):
    """The states of the parts.

    Attributes:
      sam: the state of the transform that returns the gradient at the end of the ascent.
      correction: the state of the learning rate.
      base: the state of the base optimizer.
    """

    sam: optax.OptState
    correction: optax.OptState
    base: optax.OptState


def decoupled_wsam(
    inner: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    rho: Radius,
    gamma: float | jax.Array,
) -> optax.GradientTransformationExtraArgs:
    r"""Weighted SAM (WSAM), decoupled: keeps the sharpness term out of the momentum.

    The base optimizer takes its step with the first gradient. The sharpness term, weighted by
    :math:`a = \gamma / (1-\gamma)`, is subtracted separately:

    .. math:: \theta \leftarrow \theta + \mathrm{inner}(g_0) - \eta\, a\,(g_1 - g_0).

    It is an optimizer, not a gradient transformation in front of one: it needs the learning rate,
    and nothing follows it. Use it in place of `wsam` as the official code does, because momentum
    multiplies the sharpness term there. At :math:`\gamma = 1/2` with plain gradient descent inside
    it is SAM. One step costs one further gradient.

    Args:
      inner: the base optimizer, such as `optax.sgd(0.1, momentum=0.9)`. The sharpness term also
        moves parameters that `inner` freezes. To freeze parameters, chain
        `optax.masked(optax.set_to_zero(), ...)` after all.
      learning_rate: :math:`\eta`, that of `inner`, or a schedule of it.
      rho: the length of the ascent, as in `sam`. The official default is 0.05.
      gamma: :math:`\gamma`, in [0, 1). A larger one weighs sharpness more. The official default is
        0.9.

    Returns:
      An optimizer with state `DecoupledWsamState`. Extra arguments also reach `inner`, and the
      dtypes of the update are those of `inner`.

    Raises:
      TypeError: `inner` is not a gradient transformation, or another argument is not a real number.
      ValueError: an argument is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> tx = decoupled_wsam(optax.sgd(0.1, momentum=0.9), learning_rate=0.1, rho=0.1, gamma=0.5)
      >>> params = jnp.array([3.0, 4.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> updates
      Array([-0.612, -0.816], dtype=float32)

    References:
      Yue et al., `Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
      Term <https://arxiv.org/abs/2305.15817>`_, 2023
    """
    checks.transformation("inner", inner)
    checks.real("learning_rate", learning_rate, minimum=0.0, schedule=True)
    checks.real("gamma", gamma, minimum=0.0, below=1.0)
    perturbed = sam(rho)
    weight = gamma / (1.0 - gamma)
    correction = optax.scale_by_learning_rate(learning_rate)
    base = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> DecoupledWsamState:
        return DecoupledWsamState(
            perturbed.init(params), correction.init(params), base.init(params)
        )

    def update_fn(
        updates: optax.Updates,
        state: DecoupledWsamState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DecoupledWsamState]:
        gradient, sam_state = perturbed.update(updates, state.sam, params, **extra_args)
        sharpness = tree.scale(weight, tree.combine(1.0, gradient, -1.0, updates))
        step, correction_state = correction.update(sharpness, state.correction)
        base_step, inner_state = base.update(updates, state.base, params, **extra_args)
        total = tree.cast_like(tree.total([base_step, step]), base_step)
        return total, DecoupledWsamState(sam_state, correction_state, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
