"""Momentum-SAM."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax._look_ahead import look_ahead, radius_at
from xsam_jax._schedules import advance, schedule_state
from xsam_jax.core import init_slot


class MomentumSamState(NamedTuple):
    """The state of Momentum-SAM.

    Attributes:
      radius: the length of the next perturbation, float32 (float64 under x64) scalar.
      sign: -1 if the momentum is one of gradients, and 1 if it is one of steps.
      schedule: a step counter if `rho` is a schedule, and empty otherwise.
      base: the state of the base optimizer, which holds the momentum.
    """

    radius: jax.Array
    sign: jax.Array
    schedule: optax.OptState
    base: optax.OptState

    def perturbation(self, params: optax.Params) -> optax.Updates:
        """Returns the perturbation of the next gradient, for `look_ahead`."""
        return tree.with_norm(self.sign * self.radius, _momentum(self.base, params))


def momentum_sam(
    optimizer: optax.GradientTransformation,
    rho: optax.ScalarOrSchedule,
    *,
    convention: str = "chain",
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum-SAM (MSAM): perturbs along the momentum, at the cost of the base optimizer.

    With :math:`v_t` the momentum of the base optimizer, the only gradient of a step is

    .. math:: g_t = \nabla L(\theta_t - \rho\, v_t / \|v_t\|), \qquad
              \theta_{t+1} = \theta_t + \mathrm{optimizer}(g_t).

    The perturbation points ahead, where the optimizer is going. In the first step the momentum is
    zero, and there is none.

    Use it in place of `sam` when a second gradient is too expensive. It needs no further gradient,
    no `value_fn` and no copy of the parameters. It is an optimizer with the base optimizer inside,
    and the caller takes the gradient at `look_ahead`. `msam` is another method, with several
    gradients.

    Args:
      optimizer: the base optimizer, with a momentum: `optax.sgd` with `momentum`, `adam`, `adamw`,
        `lion`, `contrib.muon`, and others whose state has a `trace` or `mu`, also in a chain, or in
        `masked` and `partition`. Parameters without momentum are not perturbed.
      rho: :math:`\rho \ge 0`, the length of the perturbation, or a schedule of it. Usually about
        ten times that of `sam`, 0.3 to 3. 0 is the base optimizer.
      convention: what weight decay inside `optimizer` reads: "chain" (default) the parameters, as
        in any chain, "official" the perturbed parameters, as in the authors' SGD. (Their AdamW
        decays the parameters.) Static.

    Returns:
      An optimizer with state `MomentumSamState`. Extra arguments reach `optimizer`.

    Raises:
      TypeError: `optimizer` is not a gradient transformation, or `rho` not a real number. In
        `init`, `optimizer` has a method inside, or needs further arguments.
      ValueError: `rho` is negative, or `convention` is unknown. In `init`, `optimizer` has no
        momentum, or several for one parameter. In `update`, `params` is missing.

    Example:
      >>> from xsam_jax import look_ahead
      >>> loss_fn = lambda params: params[0] ** 2 + 4 * params[1] ** 2
      >>> tx = momentum_sam(optax.sgd(0.05, momentum=0.9), rho=0.5)
      >>> params = jnp.array([1.0, 1.0])
      >>> opt_state = tx.init(params)
      >>> for _ in range(2):
      ...     grads = jax.grad(loss_fn)(look_ahead(opt_state, params))
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print([f"{p:.3f}" for p in params])
      ['0.732', '0.194']

    References:
      Becker et al., `Momentum-SAM: Sharpness Aware Minimization without Computational Overhead
      <https://arxiv.org/abs/2401.12033>`_, 2024
    """
    checks.transformation("optimizer", optimizer)
    checks.real("rho", rho, minimum=0.0, schedule=True)
    checks.choice("convention", convention, ("chain", "official"))
    base = optax.with_extra_args_support(optimizer)

    def init_fn(params: optax.Params) -> MomentumSamState:
        checks.parameters(params)
        inner, schedule = init_slot("optimizer", base, params), schedule_state(rho)
        sign = _sign(base, inner, params)
        return MomentumSamState(radius_at(rho, schedule), sign, schedule, inner)

    def update_fn(
        updates: optax.Updates,
        state: MomentumSamState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MomentumSamState]:
        checks.state(state, MomentumSamState)
        checks.present(params, "params is missing: tx.update(grads, opt_state, params)")
        decayed = look_ahead(state, params) if convention == "official" else params
        updates, inner = base.update(updates, state.base, decayed, **extra_args)
        schedule = advance(state.schedule)
        radius = radius_at(rho, schedule)
        return updates, MomentumSamState(radius, state.sign, schedule, inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _sign(
    optimizer: optax.GradientTransformationExtraArgs, state: Any, params: optax.Params
) -> jax.Array:
    """Returns -1 if the momentum points against the steps of the optimizer, and 1 otherwise.

    `optax.sgd` multiplies its momentum by minus the learning rate. `optax.lars` and `rmsprop` take
    the momentum of steps. Two trial steps tell which, the second one because a warm-up may begin
    at zero.
    """
    _momentum(state, params)  # raises if there is none
    if not optax.tree.get_all_with_path(state, "trace"):
        return -jnp.ones((), tree.accumulation_dtype())
    zeros, ones = jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.ones_like, params)
    for _ in range(2):
        step, state = optimizer.update(ones, state, zeros)
    product = tree.dot(_momentum(state, params), step)
    return jnp.where(product > 0, 1.0, -1.0).astype(tree.accumulation_dtype())


def _momentum(state: optax.OptState, params: optax.Params) -> Any:
    """Returns the momentum of every parameter, zero where a mask leaves one without."""

    def field(node: Any) -> str | None:
        return next((n for n in ("trace", "mu") if n in getattr(node, "_fields", ())), None)

    nodes = jax.tree.leaves(state, is_leaf=lambda node: field(node) is not None)
    trees = [getattr(node, name) for node in nodes if (name := field(node))]
    counts: list[int] = []

    def of_parameter(param: jax.Array, *found: Any) -> jax.Array:
        # Where a mask leaves a parameter out, the tree has another node in place of an array.
        arrays = [leaf for leaf in found if hasattr(leaf, "shape")]
        counts.append(len(arrays))
        return arrays[0] if arrays else jnp.zeros_like(param)

    momentum = jax.tree.map(of_parameter, params, *trees)
    if counts and not any(counts):
        raise ValueError(
            "optimizer has no momentum to perturb along, no `trace` or `mu` in its state: use "
            "optax.sgd(0.1, momentum=0.9), optax.adam(1e-3) or the like"
        )
    if max(counts, default=0) > 1:
        raise ValueError(
            "optimizer has several momenta for one parameter, and momentum_sam needs one: put the "
            "other one outside, optax.chain(momentum_sam(...), ...)"
        )
    return momentum
