"""Eigen-SAM."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax._devices import varying_like
from xsam_jax._schedules import Radius
from xsam_jax._value_fn import GradFn
from xsam_jax.ascent.scale_by_radius import scale_by_radius
from xsam_jax.core import sharpness_aware


class TopEigenvectorState(NamedTuple):
    """The state of the ascent of Eigen-SAM.

    Attributes:
      count: the number of training steps, int32 scalar.
      vector: the estimate of the top eigenvector, float32 (float64 under x64), zero at first.
    """

    count: jax.Array  # type: ignore[assignment]  # tuple.count, as in Optax
    vector: Any


def eigen_sam(
    rho: Radius,
    alpha: float | jax.Array = 0.2,
    every: int | jax.Array = 100,
    *,
    iterations: int = 5,
) -> optax.GradientTransformationExtraArgs:
    r"""Eigen-SAM: turns the ascent towards the top eigenvector of the Hessian.

    With :math:`u = g_0 / \|g_0\|` and an estimate v of the eigenvector of the largest eigenvalue

    .. math:: \epsilon = \rho\, (u + \alpha\, \mathrm{sign}\langle g_0, v\rangle\,
              (v - \langle u, v\rangle u)), \qquad \text{update } g_1.

    Every `every` steps, power iterations :math:`v \leftarrow H v / \|H v\|` update v, on the batch
    of the step. They start from :math:`g_0` in the first step, and from the last v later.

    Use it in place of `sam` to lower the largest eigenvalue more, according to the paper. It needs
    one copy of the parameters. A step costs one further gradient, and each iteration a product of
    the Hessian, which takes the time of about two gradients and the activations of several. Its
    update needs `value_fn` or `grad_fn`.

    Args:
      rho: the length of the ascent along the gradient, as in `sam`.
      alpha: :math:`\alpha \ge 0` (default 0.2), the part along the eigenvector. 0 is `sam`.
      every: the number of steps between two updates of v (default 100). The first step updates.
      iterations: the number of power iterations of an update (default 5). Static.

    Returns:
      A gradient transformation. Its state holds `TopEigenvectorState`.

    Raises:
      TypeError: an argument has the wrong type.
      ValueError: an argument is out of range.

    Example:
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = optax.chain(eigen_sam(rho=0.1), optax.sgd(0.1))
      >>> params = jnp.array([1.0, 1.0])
      >>> grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)
      >>> updates, opt_state = tx.update(grads, opt_state, params, value_fn=loss_fn)
      >>> print([f"{u:.3f}" for u in updates])
      ['-0.204', '-0.879']

    References:
      Luo et al., `Explicit Eigenvalue Regularization Improves Sharpness-Aware Minimization
      <https://arxiv.org/abs/2501.12666>`_, 2024
    """
    checks.radius("rho", rho, 1)
    checks.real("alpha", alpha, minimum=0.0)
    checks.integer("every", every, 1)
    checks.static_integer("iterations", iterations, 1)

    def init_fn(params: optax.Params) -> TopEigenvectorState:
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros_like(leaf, dtype=tree.accumulation_dtype()), params
        )
        return TopEigenvectorState(jnp.zeros((), jnp.int32), zeros)

    def update_fn(
        updates: optax.Updates,
        state: TopEigenvectorState,
        params: optax.Params | None = None,
        *,
        grad_fn: GradFn,
        **extra_args: Any,
    ) -> tuple[optax.Updates, TopEigenvectorState]:
        del extra_args
        last = varying_like(state.vector, updates, params)

        def iterate(_: int, vector: Any) -> Any:
            tangent = tree.cast_like(vector, params)
            product = jax.jvp(grad_fn, (params,), (tangent,))[1]
            return varying_like(tree.unit(product), last)

        def power_iterations(vector: Any) -> Any:
            is_first = tree.squared_norm(vector) == 0
            start = varying_like(optax.tree.where(is_first, tree.unit(updates), vector), last)
            found = jax.lax.fori_loop(0, iterations, iterate, start)
            return tree.finite_or(found, vector)

        due = state.count % jnp.asarray(every) == 0
        vector = jax.lax.cond(due, power_iterations, lambda vector: vector, last)
        direction = tree.unit(updates)
        rest = tree.reject(vector, updates)
        sign = jnp.sign(tree.dot(updates, vector))
        ascent = tree.combine(1.0, direction, alpha * sign, rest)
        state = TopEigenvectorState(optax.safe_increment(state.count), vector)
        return tree.cast_like(ascent, updates), state

    turned = optax.GradientTransformationExtraArgs(init_fn, update_fn)
    return sharpness_aware(optax.chain(turned, scale_by_radius(rho)))
