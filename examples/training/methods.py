"""The methods by name, with their usual radii and further arguments.

Arguments beside the radius have published values or the library's defaults. Callers may change
each, as a keyword argument of the row.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import xsam_jax as sx
from examples.training.ascent_gradients import Kind
from examples.training.check_name import check_name, hint
from xsam_jax import ascent, descent


class Training(NamedTuple):
    """Properties of the training that some methods depend on.

    Attributes:
      rho_max: Radius of XSAM's probes.
      steps: Number of ascent steps, for methods that can take several.
      search: Further arguments of XSAM for its search.
      base: Base optimizer, including weight decay.
      learning_rate: Learning rate of the base optimizer.
      key: Random key.
    """

    rho_max: Any
    steps: int
    search: dict[str, Any]
    base: optax.GradientTransformation
    learning_rate: optax.ScalarOrSchedule
    key: jax.Array


class Method(NamedTuple):
    """A row of the table.

    Attributes:
      make: Maps the radius, the training, and keyword arguments with defaults to the gradient
        transformation in front of the base optimizer.
      scale: The usual radius divided by the radius of SAM, or None for a method without radius.
      steps: Whether the method can take several ascent steps.
      has_base: Whether `make` returns the whole optimizer, including the base optimizer.
      looks_ahead: Whether the gradient is taken at `look_ahead`, not at the parameters.
      ascends_along: A kind of `ascent_gradient`, for an ascent along another gradient.
    """

    make: Callable[..., optax.GradientTransformation]
    scale: float | None = 1.0
    steps: bool = False
    has_base: bool = False
    looks_ahead: bool = False
    ascends_along: Kind | None = None


def sam_of_steps(rho: Any, t: Training) -> optax.GradientTransformation:
    """Returns SAM. With several steps its state has the norms of their gradients."""
    if t.steps == 1:
        return sx.sam(rho)
    path = optax.chain(ascent.normalize(), ascent.scale_by_radius(rho))
    norms = {
        f"gradient_norm_{i}": lambda updates, path, params, i=i: optax.tree.norm(path.gradients[i])
        for i in range(t.steps + 1)
    }
    return sx.sharpness_aware(path, descent.record(norms), steps=t.steps)


def path_sum(method: Callable[..., optax.GradientTransformation], include_first: bool) -> Method:
    """Returns the row of a method that sums over ascent steps, each of length rho."""

    # With one step the method is SAM, or SAM and SGD in equal parts.
    def make(rho: Any, training: Training, at_least: int = 2) -> optax.GradientTransformation:
        return method(rho, max(at_least, training.steps), include_first=include_first)

    return Method(make, steps=True)


def scaled(biases: bool) -> Callable[[optax.Params], Any] | None:
    """Returns the mask of the leaves that ASAM scales: None for all, or all but biases."""

    def is_scaled(path: tuple[Any, ...], leaf: Any) -> bool:
        return "bias" not in jax.tree_util.keystr(path)

    return None if biases else lambda params: jax.tree_util.tree_map_with_path(is_scaled, params)


def in_asams_metric(
    method: optax.GradientTransformation, eta: float, biases: bool
) -> optax.GradientTransformationExtraArgs:
    """Returns a method whose lengths and angles are those of ASAM.

    With the diagonal T = |params| + eta (1 on biases unless `biases`), the method works on x in
    params + T x. Its gradients are T g, and its update is divided by T. So SAM becomes ASAM.
    """
    method = optax.with_extra_args_support(method)

    def update(
        updates: optax.Updates,
        state: Any,
        params: Any,
        *,
        value_fn: Callable[[Any], jax.Array],
        grad_fn: Callable[[Any], Any] | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, Any]:
        mask = scaled(biases)
        selected = jax.tree.map(lambda _: True, params) if mask is None else mask(params)
        units = jax.tree.map(
            lambda leaf, here: abs(leaf) + eta if here else jnp.ones_like(leaf), params, selected
        )

        def times_units(values: Any) -> Any:
            return jax.tree.map(jnp.multiply, units, values)

        def point(x: Any) -> Any:
            return optax.apply_updates(params, times_units(x))

        if grad_fn is not None:
            extra["grad_fn"] = lambda x: times_units(grad_fn(point(x)))
        update, state = method.update(
            times_units(updates),
            state,
            optax.tree.zeros_like(params),
            value_fn=lambda x: value_fn(point(x)),
            **extra,
        )
        return jax.tree.map(jnp.divide, update, units), state

    return optax.GradientTransformationExtraArgs(method.init, update)


def xsam_along(
    direction: optax.GradientTransformation,
    rho: Any,
    t: Training,
    scale: str,
    steps: int = 1,
) -> optax.GradientTransformation:
    """Returns XSAM after an ascent along another direction than the gradient's."""
    options = {"steps": steps, "scale": scale, **t.search}
    return sx.xsam(rho, t.rho_max, direction=direction, **options)


FAMILY = {
    "sgd": Method(lambda rho, t: optax.identity(), scale=None),
    "sam": Method(sam_of_steps, steps=True),
    "xsam": Method(
        lambda rho, t, scale="last": sx.xsam(
            rho, t.rho_max, steps=t.steps, scale=scale, **t.search
        ),
        steps=True,
    ),
    # About the average alpha of XSAM in the demo.
    "slerp_sam": Method(
        lambda rho, t, alpha=1.5, between="displacement": sx.slerp_sam(
            rho, alpha, steps=t.steps, between=between
        ),
        steps=True,
    ),
    # In units of the size of the parameters, so larger: published 0.5 where SAM has 0.05.
    "asam": Method(
        lambda rho, t, eta=0.01, biases=True: sx.asam(rho, eta, mask=scaled(biases), steps=t.steps),
        scale=10.0,
        steps=True,
    ),
    "fisher_sam": Method(lambda rho, t, eta=1.0: sx.fisher_sam(rho, eta)),
    "friendly_sam": Method(
        lambda rho, t, decay=0.9, sigma=1.0, convention="paper": sx.friendly_sam(
            rho, decay, sigma, convention=convention
        )
    ),
    "friendly_asam": Method(
        lambda rho, t, decay=0.9, sigma=1.0, eta=0.01, biases=True, convention="paper": (
            sx.friendly_asam(rho, decay, sigma, eta, mask=scaled(biases), convention=convention)
        ),
        scale=10.0,
    ),
    "vasso": Method(lambda rho, t, theta=0.4: sx.vasso(rho, theta)),
    # Sharpness has nine times its weight in SAM. Decoupled, momentum does not multiply it by ten.
    "wsam": Method(lambda rho, t, gamma=0.9: sx.wsam(rho, gamma), scale=0.2),
    "decoupled_wsam": Method(
        lambda rho, t, gamma=0.9: sx.decoupled_wsam(t.base, t.learning_rate, rho, gamma),
        scale=2.0,
        has_base=True,
    ),
    # Takes its own ascent steps, two unless more are asked for.
    "lookbehind": Method(
        lambda rho, t, alpha="adaptive", at_least=2, convention="paper": sx.lookbehind(
            t.base,
            rho,
            max(at_least, t.steps),
            alpha if alpha == "adaptive" else float(alpha),
            convention=convention,
        ),
        steps=True,
        has_base=True,
    ),
    "gradient_norm_penalty": Method(
        lambda rho, t, alpha=0.8, convention="paper": sx.gradient_norm_penalty(
            rho, alpha, convention=convention
        )
    ),
    "eigen_sam": Method(
        lambda rho, t, alpha=0.2, every=100: sx.eigen_sam(rho, alpha, every),
    ),
    "gsam": Method(lambda rho, t, alpha=0.4: sx.gsam(rho, alpha)),
    "msam": path_sum(sx.msam, include_first=False),
    "msam+": path_sum(sx.msam, include_first=True),
    "lsam": path_sum(sx.lsam, include_first=False),
    "lsam+": path_sum(sx.lsam, include_first=True),
    "cr_sam": Method(lambda rho, t, gamma=0.1, beta=0.01: sx.cr_sam(rho, gamma, beta)),
    # `ratio` is the quotient of the two radii.
    "gam": Method(
        lambda rho, t, ratio=10.0, beta_0=0.5, beta_1=0.6, gamma=0.03, convention="official": (
            sx.gam(rho, rho / ratio, beta_0, beta_1, gamma, convention=convention)
        ),
        scale=3.0,
    ),
    "look_sam": Method(
        lambda rho, t, alpha=0.7, every=5: sx.look_sam(rho, alpha, every), scale=0.5
    ),
    "esam": Method(
        lambda rho, t, beta=0.6, gamma=0.5, convention="paper": sx.esam(
            rho, beta, gamma, t.key, convention=convention
        )
    ),
}

# Methods whose state says where the gradient is taken.
FAMILY |= {
    "sampa": Method(
        lambda rho, t, weight=0.2, convention="paper": sx.sampa(
            t.base, t.learning_rate, rho, weight, convention=convention
        ),
        has_base=True,
        looks_ahead=True,
    ),
    "momentum_sam": Method(
        lambda rho, t, convention="chain": sx.momentum_sam(t.base, rho, convention=convention),
        scale=5.0,
        has_base=True,
        looks_ahead=True,
    ),
    "async_sam": Method(
        lambda rho, t, reuse=True: sx.async_sam(t.base, rho, reuse=reuse),
        has_base=True,
        looks_ahead=True,
    ),
}

# XSAM after the ascents of other methods. rho is the radius of the ascent, rho_max that of XSAM.
COMBINATIONS = {
    "xsam+asam": Method(
        lambda rho, t, eta=0.01, biases=True, scale="last": xsam_along(
            ascent.scale_by_magnitude(eta, mask=scaled(biases)), rho, t, scale, t.steps
        ),
        scale=10.0,
        steps=True,
    ),
    # rho_max is in ASAM's units, too.
    "xsam+asam_metric": Method(
        lambda rho, t, eta=0.01, biases=True, scale="last": in_asams_metric(
            sx.xsam(rho, t.rho_max, steps=t.steps, scale=scale, **t.search), eta, biases
        ),
        scale=10.0,
        steps=True,
    ),
    "xsam+friendly_sam": Method(
        lambda rho, t, decay=0.9, sigma=1.0, convention="paper", scale="last": xsam_along(
            optax.chain(
                ascent.subtract_ema(decay, sigma, convention=convention), ascent.normalize()
            ),
            rho,
            t,
            scale,
        )
    ),
    "xsam+vasso": Method(
        lambda rho, t, theta=0.4, scale="last": xsam_along(
            optax.chain(ascent.ema_of_gradients(theta), ascent.normalize()), rho, t, scale
        )
    ),
}

# SAM that ascends along another gradient (F-SAM paper, section 4).
ABLATIONS = {
    "sam_full": Method(lambda rho, t: sx.sam(rho), ascends_along="full"),
    "sam_noise": Method(lambda rho, t: sx.sam(rho), ascends_along="noise"),
    "sam_noise_eq8": Method(lambda rho, t: sx.sam(rho), ascends_along="noise_eq8"),
    "sam_db": Method(lambda rho, t: sx.sam(rho), ascends_along="other_batch"),
    "sam_larger_batch": Method(lambda rho, t, batches=2: sx.sam(rho), ascends_along="larger_batch"),
}

METHODS = FAMILY | ABLATIONS | COMBINATIONS


# Texts that arguments take in place of a number.
TEXTS = {"sigma": ("cosine",)}


def find_method(name: str) -> Method:
    """Returns the row of that name.

    Raises:
      ValueError: The name is unknown. The message has the nearest name and lists all.
    """
    alone = " (--method sgd is the optimizer alone, --optimizer says which)"
    check_name("method", name, METHODS, alone if str(name).startswith("adam") else "")
    return METHODS[name]


def method_arguments(name: str) -> dict[str, Any]:
    """Returns the arguments of a method beside radius and training, with their defaults."""
    parameters = list(inspect.signature(find_method(name).make).parameters.values())
    return {parameter.name: parameter.default for parameter in parameters[2:]}


def make_method(
    name: str, rho: Any, training: Training, /, **arguments: Any
) -> optax.GradientTransformation:
    """Makes a method by name.

    Args:
      name: A name of `METHODS`.
      rho: The radius.
      training: Properties of the training.
      **arguments: Arguments of `method_arguments(name)` to change. Text, as from a command line, is
        converted to the type of the default: "true" or "false", an integer, a number.

    Returns:
      The transformation in front of the base optimizer, or the whole optimizer where
      `METHODS[name].has_base`.

    Raises:
      ValueError: The method or an argument is unknown, or a value is out of range.
    """
    defaults = method_arguments(name)
    for key in arguments:
        if not defaults:
            raise ValueError(f"{name} takes no arguments, but {key!r} was given; leave it out")
        if key not in defaults:
            raise ValueError(f"{name} has no argument {key!r}; {hint(key, list(defaults))}")
    values = {key: read_argument(key, value, defaults[key]) for key, value in arguments.items()}
    return METHODS[name].make(rho, training, **values)


def read_argument(name: str, value: Any, default: Any) -> Any:
    """Converts an argument given as text to the type of its default.

    Raises:
      ValueError: The text cannot be converted.
    """
    if not isinstance(value, str) or isinstance(default, str) or value in TEXTS.get(name, ()):
        return value
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{name} must be true or false, not {value!r}")
        return value.lower() == "true"
    try:
        return type(default)(value)
    except ValueError:
        kind = "an integer" if isinstance(default, int) else "a number"
        raise ValueError(f"{name} must be {kind}, not {value!r}") from None
