"""Bad input: the right exception, naming argument, value and fix, before anything is computed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from methods import METHODS

import xsam_jax
from xsam_jax.ascent import normalize, scale_by_radius
from xsam_jax.descent import match_norm, slerp, slerp_to_maximum

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
xsam_methods = {"rho": 0.1, "rho_max": 0.2}


def xsam(**kwargs):
    return xsam_jax.xsam(**{**xsam_methods, **kwargs})


NAN, INF = float("nan"), float("inf")

BAD_ARGUMENTS = [
    (lambda: xsam_jax.sam(-0.1), ValueError, "rho must be at least 0, got -0.1"),
    (lambda: xsam_jax.sam(NAN), ValueError, "rho must be finite, got nan"),
    (lambda: xsam_jax.sam(INF), ValueError, "rho must be finite, got inf"),
    (lambda: xsam_jax.sam(np.float32(-1)), ValueError, "rho must be at least 0"),
    (lambda: xsam_jax.sam("0.1"), TypeError, "rho must be a real number or a schedule .* '0.1'"),
    (lambda: xsam_jax.sam(None), TypeError, "rho must be a real number or a schedule .* None"),
    (lambda: xsam_jax.sam(True), TypeError, "rho must be a real number or a schedule .* True"),
    (lambda: xsam_jax.sam(0.1j), TypeError, "rho must be a real number"),
    (lambda: xsam_jax.sam(jnp.ones(2)), TypeError, r"rho must be a real scalar.*float32\[2\]"),
    (
        lambda: xsam_jax.sam(optax.sgd(0.1)),
        TypeError,
        "rho must be .* got an optimizer: it follows",
    ),
    (lambda: xsam_jax.sam((0.1, -0.2), steps=2), ValueError, r"rho\[1\] must be at least 0.*-0.2"),
    (lambda: xsam_jax.sam((0.1, 0.2)), ValueError, "rho gives one radius per .*: 1 needed, got 2"),
    (lambda: xsam_jax.sam([0.1], steps=3), ValueError, "rho gives one radius .*: 3 needed, got 1"),
    (lambda: xsam_jax.sam(()), ValueError, "rho gives one radius"),
    (lambda: xsam_jax.sam(0.1, steps=0), ValueError, "steps must be at least 1, got 0"),
    (lambda: xsam_jax.sam(0.1, steps=1.0), TypeError, "steps must be an integer, got 1.0"),
    (lambda: xsam_jax.sam(0.1, steps=True), TypeError, "steps must be an integer, got True"),
    (lambda: xsam_jax.sam(0.1, steps=jnp.int32(1)), TypeError, "steps shapes the .*static_args"),
    (lambda: xsam_jax.slerp_sam(0.1, NAN), ValueError, "alpha must be finite, got nan"),
    (lambda: xsam_jax.slerp_sam(0.1, "1"), TypeError, "alpha must be a real number, got '1'"),
    (
        lambda: xsam_jax.slerp_sam(0.1, 1.0, between="last"),
        ValueError,
        "between must be one of 'displacement', 'first', got 'last'",
    ),
    (lambda: xsam(rho_max=0.0), ValueError, "rho_max must be greater than 0, got 0.0"),
    (lambda: xsam(rho_max=-1), ValueError, "rho_max must be greater than 0, got -1"),
    (lambda: xsam(rho_max=NAN), ValueError, "rho_max must be finite, got nan"),
    (lambda: xsam(rho_max=None), TypeError, "rho_max must be a real number or a schedule"),
    (lambda: xsam(rho=None), TypeError, "rho must be a real number or a schedule"),
    (lambda: xsam(steps=0), ValueError, "steps must be at least 1, got 0"),
    (lambda: xsam(probe_every=0), ValueError, "probe_every must be at least 1, got 0"),
    (lambda: xsam(probe_every=2.5), TypeError, "probe_every must be an integer, got 2.5"),
    (lambda: xsam(alpha_max=0.0), ValueError, "alpha_max must be greater than 0, got 0.0"),
    (lambda: xsam(alpha_max=INF), ValueError, "alpha_max must be finite, got inf"),
    (lambda: xsam(num_alphas=1), ValueError, "num_alphas must be at least 2, got 1"),
    (lambda: xsam(num_alphas=jnp.int32(5)), TypeError, "num_alphas shapes the .*static_args"),
    (lambda: xsam(probe_batch_size=0), ValueError, "probe_batch_size must be at least 1, got 0"),
    (lambda: xsam(probe_batch_size=jnp.int32(2)), TypeError, "probe_batch_size .*static_args"),
    (lambda: xsam(scale="largest"), ValueError, "scale must be one of 'last', .*, got 'largest'"),
    (lambda: xsam(scale=None), ValueError, "scale must be one of 'last', .*, got None"),
    (lambda: xsam(search="golden"), ValueError, "search must be one of 'grid', 'section', got"),
    (
        lambda: xsam(ascent=0.1),
        TypeError,
        "ascent must be an optax.GradientTransformation, got 0.1",
    ),
    (lambda: xsam(ascent=normalize), TypeError, "ascent must be an optax.GradientTransformation"),
    (lambda: xsam_jax.sharpness_aware(0.1), TypeError, "ascent must be an optax.Gradient"),
    (lambda: xsam_jax.sharpness_aware(normalize(), 1), TypeError, "descent must be an optax"),
    (lambda: match_norm("slope_max"), ValueError, "scale='slope_max' .*rho_max"),
    (lambda: match_norm("slope_max", -1.0), ValueError, "rho_max must be greater than 0"),
    (lambda: scale_by_radius(-1.0), ValueError, "radius must be at least 0, got -1.0"),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), BAD_ARGUMENTS, ids=[row[2][:40] for row in BAD_ARGUMENTS]
)
def test_bad_arguments_are_refused_at_once(make, error, message):
    with pytest.raises(error, match=message):
        make()


PARAMS = {"a": jnp.ones(3), "b": jnp.ones(())}
GRADS = {"a": jnp.ones(3), "b": jnp.ones(())}


def loss_fn(params):
    return jnp.sum(params["a"] ** 2) + params["b"]


def fail(params):
    raise AssertionError("evaluated")


path_descents = pytest.mark.parametrize(
    "descent",
    [slerp(1.0), slerp_to_maximum(0.1), match_norm()],
    ids=["slerp", "slerp_to_maximum", "match_norm"],
)

BAD_UPDATES = [
    ({}, ValueError, r"value_fn is missing.*value_fn=lambda params: loss\(params, batch\)"),
    ({"value_fn": 0.3}, TypeError, r"value_fn must be a function .*got 0.3"),
    ({"value_fn": lambda p: p["a"]}, TypeError, r"real scalar, got float32\[3\].*mean\(\)"),
    ({"value_fn": lambda p: (p["b"], 1)}, TypeError, r"tuple of 2.*loss_fn\(params\)\[0\]"),
    ({"value_fn": lambda p: {"loss": p["b"]}}, TypeError, "dict of 1"),
    ({"value_fn": lambda p: None}, TypeError, "real scalar, got None"),
    ({"value_fn": lambda p: jnp.int32(1)}, TypeError, r"real scalar, got int32\[\]"),
    ({"value_fn": lambda p: 1j * p["b"]}, TypeError, r"real scalar, got complex64\[\]"),
    (
        {"value_fn": lambda p: jnp.sum(PARAMS["a"])},
        ValueError,
        "value_fn does not depend on its arg",
    ),
    (
        {"value_fn": lambda p: jnp.float32(1)},
        ValueError,
        "value_fn does not depend on its argument",
    ),
    ({"grad_fn": 0.3}, TypeError, "grad_fn must be a function of the parameters, got 0.3"),
    ({"value_fn": loss_fn, "params": None}, ValueError, r"params is missing: tx.update\("),
]


@every_method
@pytest.mark.parametrize(
    ("kwargs", "error", "message"), BAD_UPDATES, ids=[row[2][:40] for row in BAD_UPDATES]
)
def test_bad_updates_are_refused_before_any_computation(method, kwargs, error, message):
    kwargs = {"params": PARAMS, **kwargs}
    tx = method.make()
    evaluated = []
    if callable(kwargs.get("value_fn")):
        inner = kwargs["value_fn"]

        def value_fn(params):
            jax.debug.callback(lambda: evaluated.append(1))
            return inner(params)

        kwargs["value_fn"] = value_fn
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        tx.update(GRADS, tx.init(PARAMS), **kwargs)
    jax.effects_barrier()
    assert evaluated == []


@every_method
def test_a_gradient_function_that_returns_the_value_too_is_explained(method):
    tx = method.make()
    with pytest.raises(TypeError, match=r"grad_fn must return .* write grad_fn=jax.grad\(loss\)"):
        tx.update(
            GRADS,
            tx.init(PARAMS),
            PARAMS,
            value_fn=loss_fn,
            grad_fn=jax.value_and_grad(loss_fn),
        )


@every_method
def test_a_gradient_function_is_not_enough_for_a_probe(method):
    tx = method.make()
    args = GRADS, tx.init(PARAMS), PARAMS
    if method.probes:
        with pytest.raises(ValueError, match=r"value_fn is missing: .*grad_fn alone is not enough"):
            tx.update(*args, grad_fn=jax.grad(loss_fn))
    else:
        alone, _ = tx.update(*args, grad_fn=jax.grad(loss_fn))
        both, _ = tx.update(*args, value_fn=loss_fn)
        np.testing.assert_array_equal(alone["a"], both["a"])


@pytest.mark.parametrize("scale", ["slope", "slope_max"])
def test_a_gradient_function_is_not_enough_for_a_slope(scale):
    tx = xsam_jax.sharpness_aware(normalize(), match_norm(scale, 0.1))
    with pytest.raises(ValueError, match="a slope is a difference of losses"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, grad_fn=jax.grad(loss_fn))


@every_method
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.masked(tx, {"a": True, "b": False}),
        lambda tx: optax.partition({"x": tx, "y": optax.sgd(0.1)}, {"a": "x", "b": "y"}),
    ],
    ids=["masked", "partition"],
)
def test_standing_inside_a_mask_is_refused(method, wrap):
    with pytest.raises(
        ValueError, match=r"params has MaskedNode.*chain\(xsam\(\.\.\.\), optax.part"
    ):
        wrap(method.make()).init(PARAMS)


@path_descents
def test_a_descent_inside_a_mask_is_refused(descent):
    tx = xsam_jax.sharpness_aware(normalize(), optax.masked(descent, {"a": True, "b": False}))
    with pytest.raises(ValueError, match="params has MaskedNode"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, value_fn=loss_fn)


@path_descents
def test_a_descent_outside_sharpness_aware_is_explained(descent):
    with pytest.raises(ValueError, match=r"path is missing: .*sharpness_aware\(ascent, descent="):
        descent.update(GRADS, descent.init(PARAMS), PARAMS, value_fn=loss_fn)


@every_method
def test_complex_parameters_are_refused(method):
    with pytest.raises(TypeError, match=r"complex leaf, complex64\[2\]: split it"):
        method.make().init({"a": jnp.ones(2, jnp.complex64)})


def test_more_steps_than_radii_is_refused_in_update():
    tx = xsam_jax.sharpness_aware(scale_by_radius((0.1, 0.2)), steps=3)
    with pytest.raises(ValueError, match=r"radius has 2 entries.*step 2 was taken"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, value_fn=loss_fn)
