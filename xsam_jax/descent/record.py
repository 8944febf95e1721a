"""Diagnostics of a step, kept in the state for logging."""

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xsam_jax import _checks as checks
from xsam_jax import _tree as tree
from xsam_jax._devices import MeanOverGroups, one_group, varying_like
from xsam_jax.core import AscentPath

Diagnostic = Callable[[optax.Updates, AscentPath, optax.Params], Any]


def _rise(updates: optax.Updates, path: AscentPath, params: optax.Params) -> Any:
    if path.first_value is None or path.last_value is None:
        return jnp.nan
    return path.last_value - path.first_value


DIAGNOSTICS: Mapping[str, Diagnostic] = types.MappingProxyType(
    {
        "perturbation_norm": lambda updates, path, params: tree.norm(path.displacement),
        "first_gradient_norm": lambda updates, path, params: tree.norm(path.first_gradient),
        "last_gradient_norm": lambda updates, path, params: tree.norm(path.last_gradient),
        "gradient_cosine": lambda updates, path, params: tree.cosine(
            path.first_gradient, path.last_gradient
        ),
        "loss_rise": _rise,
    }
)


class RecordState(NamedTuple):
    """The diagnostics of the last step.

    Attributes:
      diagnostics: a scalar for each name, float32 (float64 under x64), NaN before the first step.
    """

    diagnostics: dict[str, jax.Array]


def record(
    diagnostics: Mapping[str, Diagnostic] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Writes diagnostics of the step into the state, and returns the gradient unchanged.

    It can stand anywhere in a descent. Read a value with
    `optax.tree.get(opt_state, "gradient_cosine")`. The default `DIAGNOSTICS` are the norm of the
    displacement, the norms of the first and the last gradient and the cosine between them, and the
    rise of the loss over the ascent (NaN unless the caller passes `value`, and no `grad_fn`).
    XSAM's :math:`\alpha^*` and :math:`\psi` are in its state already.

    In a step that a gate skips, the values of the last sharpness-aware step stay. If an optimizer
    has two `record` links, give their entries different names. The state has its structure from
    the start, so it works in `jax.lax.scan`. (`optax.monitor` starts with an empty state, which a
    scan refuses.)

    Args:
      diagnostics: a dict of functions `fn(updates, path, params)` that return a real scalar.
        `updates` is the gradient as the descent has changed it so far, `path` is the `AscentPath`,
        and `params` are :math:`\theta_0`. The default None is `DIAGNOSTICS`. Static.

    Returns:
      A descent with state `RecordState`.

    Raises:
      TypeError: `diagnostics` is not a mapping of functions. In `update`, one of them does
        not return a real scalar.
      ValueError: in `update`, `path` is missing.

    Example:
      >>> from xsam_jax.ascent import normalize, scale_by_radius
      >>> from xsam_jax.core import sharpness_aware
      >>> tx = sharpness_aware(optax.chain(normalize(), scale_by_radius(0.1)), record())
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> params = jnp.array([3.0, 4.0])
      >>> value, grads = jax.value_and_grad(loss_fn)(params)
      >>> _, state = tx.update(grads, tx.init(params), params, value_fn=loss_fn, value=value)
      >>> print(f'{optax.tree.get(state, "loss_rise"):.3f}')
      1.010
    """
    diagnostics = DIAGNOSTICS if diagnostics is None else diagnostics
    if not isinstance(diagnostics, Mapping):
        raise TypeError(f"diagnostics must be a dict of functions, got {diagnostics!r}")
    for name, diagnostic in diagnostics.items():
        if not callable(diagnostic):
            raise TypeError(
                f"diagnostics[{name!r}] must be a function fn(updates, path, params), "
                f"got {diagnostic!r}"
            )

    def init_fn(params: optax.Params) -> RecordState:
        del params
        dtype = tree.accumulation_dtype()
        # One array each: an array cannot be donated twice.
        return RecordState({name: jnp.full((), jnp.nan, dtype) for name in diagnostics})

    def update_fn(
        updates: optax.Updates,
        state: RecordState,
        params: optax.Params | None = None,
        *,
        path: AscentPath | None = None,
        mean_over_groups: MeanOverGroups = one_group,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RecordState]:
        del state, extra_args
        path = checks.ascent_path("record", path, params)

        def evaluate(name: str) -> jax.Array:
            result = diagnostics[name](updates, path, params)
            checks.scalar_result(f"diagnostics[{name!r}]", result)
            # All diagnostics need one type, but loss_rise is a constant if value is not given.
            return varying_like(jnp.asarray(result, tree.accumulation_dtype()), updates)

        return updates, RecordState(
            mean_over_groups({name: evaluate(name) for name in diagnostics})
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
