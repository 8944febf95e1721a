"""The methods by name: how the examples make each of them, and among which radii they look.

Arguments beside the radius are published ones, or the library's defaults; the demo tunes nothing
but the radius. Each is a keyword argument of its row, which callers may set to something else.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import xsam_jax as sx
from examples.image_classification.names import hint
from xsam_jax import ascent


class Training(NamedTuple):
    """What a method may need to know of the training, beside its radius.

    Attributes:
      rho_max: the radius of XSAM's probes.
      steps: the number of ascent steps, for those that take several.
      search: how XSAM searches: its further arguments.
      base: the base optimizer, weight decay included.
      learning_rate: that of the base optimizer.
      key: a random key.
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
      make: returns what stands in front of the base optimizer, of the radius, the training, and
        keyword arguments that all have a default.
      scale: its usual radii, divided by those of SAM; None where it has no radius.
      steps: whether it can take several ascent steps.
      has_base: whether `make` returns the whole optimizer, with the base optimizer inside.
    """

    make: Callable[..., optax.GradientTransformation]
    scale: float | None = 1.0
    steps: bool = False
    has_base: bool = False


def path_sum(alias: Callable[..., optax.GradientTransformation], include_first: bool) -> Method:
    """Returns the row of a method that sums over ascent steps, each of length rho."""

    # Over one step it is SAM, or SAM and SGD in equal parts.
    def make(rho: Any, training: Training, at_least: int = 2) -> optax.GradientTransformation:
        return alias(rho, max(at_least, training.steps), include_first=include_first)

    return Method(make, steps=True)


def scaled(biases: bool) -> Callable[[optax.Params], Any] | None:
    """Returns which leaves ASAM scales: all, or all that are not named "bias"."""

    def is_scaled(path: tuple[Any, ...], leaf: Any) -> bool:
        return "bias" not in jax.tree_util.keystr(path)

    return None if biases else lambda params: jax.tree_util.tree_map_with_path(is_scaled, params)


def xsam_along(
    direction: optax.GradientTransformation, rho: Any, t: Training, steps: int = 1, **options: Any
) -> optax.GradientTransformation:
    """Returns XSAM with another direction of the ascent."""
    return sx.xsam(rho, t.rho_max, direction=direction, steps=steps, **options, **t.search)


FAMILY = {
    "sgd": Method(lambda rho, t: optax.identity(), scale=None),
    "sam": Method(lambda rho, t: sx.sam(rho, steps=t.steps), steps=True),
    "xsam": Method(
        lambda rho, t, scale="last", search="grid": sx.xsam(
            rho, t.rho_max, steps=t.steps, scale=scale, search=search, **t.search
        ),
        steps=True,
    ),
    # About what XSAM finds in the demo, on average.
    "slerp_sam": Method(
        lambda rho, t, alpha=1.5, between="displacement": sx.slerp_sam(
            rho, alpha, steps=t.steps, between=between
        ),
        steps=True,
    ),
    # In units of the parameters' size, thus larger: published 0.5, where SAM has 0.05.
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
    # Sharpness weighs nine times as much as in SAM; decoupled, momentum does not multiply it by 10.
    "wsam": Method(lambda rho, t, gamma=0.9: sx.wsam(rho, gamma), scale=0.2),
    "decoupled_wsam": Method(
        lambda rho, t, gamma=0.9: sx.decoupled_wsam(t.base, t.learning_rate, rho, gamma),
        scale=2.0,
        has_base=True,
    ),
    "gradient_norm_penalty": Method(
        lambda rho, t, alpha=0.8, convention="paper": sx.gradient_norm_penalty(
            rho, alpha, convention=convention
        )
    ),
    "gsam": Method(lambda rho, t, alpha=0.4: sx.gsam(rho, alpha)),
    "msam": path_sum(sx.msam, include_first=False),
    "msam+": path_sum(sx.msam, include_first=True),
    "lsam": path_sum(sx.lsam, include_first=False),
    "lsam+": path_sum(sx.lsam, include_first=True),
    "cr_sam": Method(lambda rho, t, gamma=0.1, beta=0.01: sx.cr_sam(rho, gamma, beta)),
    # `ratio` is that of the two radii.
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

# XSAM with the ascent directions of other methods. rho is theirs, rho_max is XSAM's.
COMBINATIONS = {
    "xsam+asam": Method(
        lambda rho, t, eta=0.01, biases=True, scale="last", search="grid": xsam_along(
            ascent.scale_by_magnitude(eta, mask=scaled(biases)),
            rho,
            t,
            t.steps,
            scale=scale,
            search=search,
        ),
        scale=10.0,
        steps=True,
    ),
    "xsam+friendly_sam": Method(
        lambda rho, t, decay=0.9, sigma=1.0, convention="paper", scale="last", search="grid": (
            xsam_along(
                optax.chain(
                    ascent.subtract_ema(decay, sigma, convention=convention), ascent.normalize()
                ),
                rho,
                t,
                scale=scale,
                search=search,
            )
        )
    ),
    "xsam+vasso": Method(
        lambda rho, t, theta=0.4, scale="last", search="grid": xsam_along(
            optax.chain(ascent.ema_of_gradients(theta), ascent.normalize()),
            rho,
            t,
            scale=scale,
            search=search,
        )
    ),
}

METHODS = FAMILY | COMBINATIONS


def find_method(name: str) -> Method:
    """Returns the row of that name, among the library's methods and their combinations.

    Raises:
      ValueError: there is none; the message names the nearest and lists all.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; {hint(name, list(METHODS))}")
    return METHODS[name]


def method_arguments(name: str) -> dict[str, Any]:
    """Returns the arguments of a method beside its radius and the training, with their defaults."""
    parameters = list(inspect.signature(find_method(name).make).parameters.values())
    return {parameter.name: parameter.default for parameter in parameters[2:]}


def make_method(
    name: str, rho: Any, training: Training, /, **arguments: Any
) -> optax.GradientTransformation:
    """Makes a method by name.

    Args:
      name: one of `METHODS`.
      rho: its radius.
      training: what it may need to know.
      **arguments: those of `method_arguments(name)` that are not to have their default; text, as on
        a command line, is read as what the default is: "true" or "false", an integer, a number.

    Returns:
      What stands in front of the base optimizer, or, where `METHODS[name].has_base`, all of it.

    Raises:
      ValueError: there is no such method or argument, or a text cannot be read; what the method
        itself says to values out of range.
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
    """Returns an argument that may be text as what its default is: a word, a truth, a number.

    Raises:
      ValueError: the text cannot be read.
    """
    if not isinstance(value, str) or isinstance(default, str):
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
