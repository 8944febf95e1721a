"""Errors name the argument, its value and the fix, and are raised before any computation."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from methods import METHODS, REPRESENTATIVES

import xsam_jax
from xsam_jax import descent as descents
from xsam_jax.ascent import normalize, random_subset, scale_by_magnitude, scale_by_radius
from xsam_jax.descent import match_norm, record
from xsam_jax.gating import after, bernoulli, every, gated, gradient_norm

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
gradient_methods = {name: m for name, m in METHODS.items() if not m.sample_losses}
gradient_method = pytest.mark.parametrize("method", gradient_methods.values(), ids=gradient_methods)
# The loop of sharpness_aware and each core of its own make the same checks.
gradient_kinds = {name: m for name, m in gradient_methods.items() if name in REPRESENTATIVES}
gradient_kind = pytest.mark.parametrize("method", gradient_kinds.values(), ids=gradient_kinds)
XSAM_RADII = {"rho": 0.1, "rho_max": 0.2}


def xsam(**kwargs):
    return xsam_jax.xsam(**{**XSAM_RADII, **kwargs})


NAN, INF, KEY = float("nan"), float("inf"), jax.random.key(0)

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
    (lambda: xsam_jax.sam({"w": 0.1}), TypeError, "rho must be .* schedule .*got {'w': 0.1}"),
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
    (lambda: xsam(rho=None), TypeError, "rho must be a real number or a schedule .* got None"),
    (lambda: xsam(steps=0), ValueError, "steps must be at least 1, got 0"),
    (lambda: xsam(probe_every=0), ValueError, "probe_every must be at least 1, got 0"),
    (lambda: xsam(probe_every=2.5), TypeError, "probe_every must be an integer, got 2.5"),
    (lambda: xsam(alpha_max=0.0), ValueError, "alpha_max must be greater than 0, got 0.0"),
    (lambda: xsam(alpha_max=INF), ValueError, "alpha_max must be finite, got inf"),
    (lambda: xsam(num_alphas=1), ValueError, "num_alphas must be at least 2, got 1"),
    (lambda: xsam(num_alphas=jnp.int32(5)), TypeError, "num_alphas shapes the .*static_args"),
    (
        lambda: xsam(probe_batch_size=1, search="section"),
        ValueError,
        "probe_batch_size is for search='grid', leave it out",
    ),
    (lambda: xsam(probe_batch_size=0), ValueError, "probe_batch_size must be at least 1, got 0"),
    (lambda: xsam(probe_batch_size="whole"), ValueError, "probe_batch_size must be one of 'all'"),
    (lambda: xsam(probe_batch_size=jnp.int32(2)), TypeError, "probe_batch_size .*static_args"),
    (lambda: xsam(scale="largest"), ValueError, "scale must be one of 'last', .*, got 'largest'"),
    (lambda: xsam(scale=None), ValueError, "scale must be one of 'last', .*, got None"),
    (lambda: xsam(search="golden"), ValueError, "search must be one of 'grid', 'section', got"),
    (
        lambda: xsam(direction=0.1),
        TypeError,
        "direction must be an optax.GradientTransformation, got 0.1",
    ),
    (
        lambda: xsam(direction=normalize),
        TypeError,
        "direction must be an optax.GradientTransformation",
    ),
    (
        lambda: xsam_jax.wsam(0.1, gamma=optax.linear_schedule(0.0, 0.5, 10)),
        TypeError,
        r"gamma must be a real number, got the function .*inject_hyperparams\(lambda gamma: ",
    ),
    (lambda: xsam_jax.look_sam([0.1], 0.7, 2), TypeError, r"rho must be a real number .*\[0.1\]"),
    (lambda: xsam_jax.sharpness_aware(0.1), TypeError, "ascent must be an optax.Gradient"),
    (lambda: xsam_jax.sharpness_aware(normalize(), 1), TypeError, "descent must be an optax"),
    (lambda: match_norm("slope_max"), ValueError, "scale='slope_max' .*rho_max"),
    (lambda: match_norm("slope_max", -1.0), ValueError, "rho_max must be greater than 0"),
    (lambda: scale_by_radius(-1.0), ValueError, "radius must be at least 0, got -1.0"),
    (lambda: xsam_jax.asam(-0.1), ValueError, "rho must be at least 0, got -0.1"),
    (lambda: xsam_jax.asam(0.1, eta=-0.01), ValueError, "eta must be at least 0, got -0.01"),
    (lambda: xsam_jax.asam(0.1, "0"), TypeError, "eta must be a real number, got '0'"),
    (lambda: xsam_jax.asam((0.1, 0.2), steps=3), ValueError, "rho gives one radius .*: 3 needed"),
    (lambda: xsam_jax.fisher_sam(0.1, -1.0), ValueError, "eta must be at least 0, got -1.0"),
    (lambda: xsam_jax.friendly_sam(0.1, 1.1), ValueError, "decay must be at most 1, got 1.1"),
    (lambda: xsam_jax.friendly_sam(0.1, -0.1), ValueError, "decay must be at least 0, got -0.1"),
    (lambda: xsam_jax.friendly_sam(0.1, sigma=NAN), ValueError, "sigma must be finite, got nan"),
    (
        lambda: xsam_jax.friendly_sam(0.1, convention="code"),
        ValueError,
        "convention must be one of 'paper', 'official', got 'code'",
    ),
    (lambda: xsam_jax.friendly_asam(0.1, decay=2), ValueError, "decay must be at most 1, got 2"),
    (lambda: xsam_jax.friendly_asam(0.1, eta=-1), ValueError, "eta must be at least 0, got -1"),
    (lambda: xsam_jax.vasso(0.1, 1.5), ValueError, "theta must be at most 1, got 1.5"),
    (lambda: xsam_jax.vasso(0.1, -0.5), ValueError, "theta must be at least 0, got -0.5"),
    (lambda: xsam_jax.wsam(0.1, 1.0), ValueError, "gamma must be less than 1, got 1.0"),
    (lambda: xsam_jax.wsam(0.1, -0.1), ValueError, "gamma must be at least 0, got -0.1"),
    (lambda: xsam_jax.gradient_norm_penalty(0.1, NAN), ValueError, "alpha must be finite"),
    (lambda: xsam_jax.gradient_norm_penalty(0.1, 1, convention=1), ValueError, "convention must"),
    (lambda: xsam_jax.gsam(-0.1, 0.4), ValueError, "rho must be at least 0, got -0.1"),
    (lambda: xsam_jax.gsam(0.1, INF), ValueError, "alpha must be finite, got inf"),
    (lambda: xsam_jax.gsam(0.1, None), TypeError, "alpha must be a real number, got None"),
    (
        lambda: xsam_jax.lr_coupled_rho(0.1, 0.0, 0.1, 0.0, 0.1),
        TypeError,
        "lr_schedule must be a function .*got 0.1",
    ),
    (lambda: xsam_jax.lr_coupled_rho(abs, 0, 1, 0.1, 0.1), ValueError, "lr_max must be greater th"),
    (lambda: xsam_jax.lr_coupled_rho(abs, -1, 1, 0, 1), ValueError, "rho_min must be at least 0"),
    (lambda: xsam_jax.msam(0.1, 0), ValueError, "steps must be at least 1, got 0"),
    (lambda: xsam_jax.msam(0.1, 2, scale="norm"), ValueError, "scale must be one of 'last'.*None"),
    (lambda: xsam_jax.lsam(0.1, 2, scale="slope_max"), ValueError, "scale must be one of"),
    (lambda: xsam_jax.lsam((0.1,), 2), ValueError, "rho gives one radius .*: 2 needed, got 1"),
    (lambda: xsam_jax.cr_sam(0.1, gamma=-0.1), ValueError, "gamma must be at least 0, got -0.1"),
    (lambda: xsam_jax.cr_sam(0.1, beta=-0.1), ValueError, "beta must be at least 0, got -0.1"),
    (lambda: xsam_jax.gam(-1, 0.1, 0.5, 0.5, 0.1), ValueError, "rho must be at least 0, got -1"),
    (lambda: xsam_jax.gam(1, -0.1, 0.5, 0.5, 0.1), ValueError, "gradient_rho must be at least 0"),
    (lambda: xsam_jax.gam(1, 0.1, 1.5, 0.5, 0.1), ValueError, "beta_0 must be at most 1, got 1.5"),
    (lambda: xsam_jax.gam(1, 0.1, 0.5, -1, 0.1), ValueError, "beta_1 must be at least 0, got -1"),
    (lambda: xsam_jax.gam(1, 0.1, 0.5, 0.5, -1), ValueError, "gamma must be at least 0, got -1"),
    (lambda: xsam_jax.look_sam(0.1, 0.7, 0), ValueError, "every must be at least 1, got 0"),
    (lambda: xsam_jax.look_sam(0.1, 0.7, 2.0), TypeError, "every must be an integer, got 2.0"),
    (lambda: xsam_jax.look_sam(0.1, NAN, 5), ValueError, "alpha must be finite, got nan"),
    (lambda: xsam_jax.look_sam(-0.1, 0.7, 5), ValueError, "rho must be at least 0, got -0.1"),
    (lambda: xsam_jax.esam(0.1, 0.0, 0.5, KEY), ValueError, "beta must be greater than 0, got 0"),
    (lambda: xsam_jax.esam(0.1, 1.1, 0.5, KEY), ValueError, "beta must be at most 1, got 1.1"),
    (lambda: xsam_jax.esam(0.1, 0.5, 0.0, KEY), ValueError, "gamma must be greater than 0"),
    (lambda: xsam_jax.esam(0.1, 0.5, 1.5, KEY), ValueError, "gamma must be at most 1, got 1.5"),
    (lambda: xsam_jax.esam(0.1, 0.5, 0.5, 0), TypeError, "key must be a single random key.*got 0"),
    (
        lambda: xsam_jax.esam(0.1, 0.5, 0.5, jax.random.split(KEY)),
        TypeError,
        "key must be a single random key",
    ),
    (
        lambda: xsam_jax.esam(0.1, 0.5, 0.5, KEY, convention="code"),
        ValueError,
        "convention must be one of",
    ),
    (lambda: random_subset(2.0, KEY), ValueError, "beta must be at most 1, got 2.0"),
    (
        lambda: xsam_jax.decoupled_wsam(0.1, 0.1, 0.1, 0.5),
        TypeError,
        "inner must be an optax.GradientTransformation, got 0.1",
    ),
    (
        lambda: xsam_jax.decoupled_wsam(optax.sgd(0.1), 0.1, 0.1, 1.0),
        ValueError,
        "gamma must be less than 1, got 1.0",
    ),
    (
        lambda: xsam_jax.decoupled_wsam(optax.sgd(0.1), -0.1, 0.1, 0.5),
        ValueError,
        "learning_rate must be at least 0, got -0.1",
    ),
    (lambda: every(0), ValueError, "k must be at least 1, got 0"),
    (lambda: every(1.5), TypeError, "k must be an integer, got 1.5"),
    (lambda: after(-1), ValueError, "step must be at least 0, got -1"),
    (lambda: bernoulli(1.1, KEY), ValueError, "p must be at most 1, got 1.1"),
    (lambda: bernoulli(-0.1, KEY), ValueError, "p must be at least 0, got -0.1"),
    (lambda: bernoulli(0.5, 42), TypeError, r"key must be .*jax.random.key\(0\), got 42"),
    (lambda: gradient_norm(NAN), ValueError, "threshold must be finite, got nan"),
    (lambda: gradient_norm(0.0, 1.5), ValueError, "decay must be at most 1, got 1.5"),
    (lambda: gated(every(2), xsam_jax.sam(0.1)), TypeError, "transform must be an optax.Gradient"),
    (lambda: gated(xsam_jax.sam(0.1), 5), TypeError, r"gate must be .*every\(5\), got 5"),
    (lambda: record([abs]), TypeError, "diagnostics must be a dict of functions"),
    (lambda: record({"norm": 1.0}), TypeError, r"diagnostics\['norm'\] must be a function"),
]


@pytest.mark.parametrize(
    ("make", "error", "message"), BAD_ARGUMENTS, ids=[row[2][:40] for row in BAD_ARGUMENTS]
)
def test_bad_arguments_raise(make, error, message):
    with pytest.raises(error, match=message):
        make()


PARAMS = {"a": jnp.ones(3), "b": jnp.ones(())}
GRADS = {"a": jnp.ones(3), "b": jnp.ones(())}


def loss_fn(params):
    return jnp.sum(params["a"] ** 2) + params["b"]


def fail(params):
    raise AssertionError("evaluated")


PATH_DESCENTS = {
    "slerp": descents.slerp(1.0),
    "slerp_to_maximum": descents.slerp_to_maximum(0.1),
    "match_norm": match_norm(),
    "mix_first": descents.mix_first(0.5),
    "subtract_orthogonal": descents.subtract_orthogonal(0.5),
    "sum_of_path": descents.sum_of_path(),
    "add_curvature": descents.add_curvature(),
    "gradient_norm_aware": descents.gradient_norm_aware(0.1, 0.5, 0.5, 0.1),
    "record": record(),
}
path_descents = pytest.mark.parametrize("descent", PATH_DESCENTS.values(), ids=PATH_DESCENTS)

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


@gradient_method
def test_update_without_a_loss_raises(method):
    tx = method.make()
    with pytest.raises(ValueError, match="value_fn is missing"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS)
    with pytest.raises(TypeError, match=r"tuple of 2.*loss_fn\(params\)\[0\]"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, value_fn=lambda p: (p["b"], 1))


@gradient_kind
def test_a_missing_value_fn_names_what_was_given(method):
    tx = method.make()
    with pytest.raises(ValueError, match=r"value_fn is missing \(given: loss_fn\): "):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, loss_fn=loss_fn)


@pytest.mark.parametrize("state", [None, optax.EmptyState(), optax.sgd(0.1).init(PARAMS)])
def test_a_state_of_another_transformation_raises(state):
    with pytest.raises(TypeError, match=r"opt_state is not .*opt_state = tx.init\(params\)"):
        xsam_jax.sam(0.1).update(GRADS, state, PARAMS, value_fn=loss_fn)


@gradient_kind
@pytest.mark.parametrize(
    ("kwargs", "error", "message"), BAD_UPDATES, ids=[row[2][:40] for row in BAD_UPDATES]
)
def test_bad_updates_raise_before_any_computation(method, kwargs, error, message):
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


WRAPPERS = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "split_real_and_imaginary": optax.contrib.split_real_and_imaginary,
}


LOSSES = {
    "value_fn": (xsam_jax.sam(0.1), loss_fn),
    "losses_fn": (xsam_jax.esam(0.1, 0.5, 0.5, KEY), lambda p: loss_fn(p) * jnp.ones(3)),
}


@pytest.mark.parametrize("argument", LOSSES)
@pytest.mark.parametrize("name", WRAPPERS)
def test_error_names_the_wrapper_that_drops_the_loss(name, argument):
    method, loss = LOSSES[argument]
    tx = optax.chain(WRAPPERS[name](method), optax.sgd(0.1))
    with pytest.raises(ValueError, match=f"{argument} is missing.* dropped it.*{name}"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, **{argument: loss})


@pytest.mark.parametrize("argument", LOSSES)
def test_error_explains_parameters_used_as_the_model(argument):
    method, _ = LOSSES[argument]

    def update_with(function):
        return method.update(GRADS, method.init(PARAMS), PARAMS, **{argument: function})

    models = (lambda p: p("x"), lambda p: p.apply("x"), lambda p: 1.0 - p.get("rate"))
    for of_a_model in models:
        with pytest.raises((TypeError, AttributeError)) as raised:
            update_with(of_a_model)
        note = raised.value.__notes__[-1]  # JAX adds notes, too
        assert re.search(rf"{argument}=make_value_fn\(loss(es)?, model, batch\)", note)
        assert f"{argument}=lambda params: " in note
        assert "(eqx.combine(params, static), batch)" in note
    with pytest.raises(TypeError) as raised:
        update_with(lambda p: jnp.dot(p["a"], jnp.ones(4)))
    assert "eqx" not in "".join(raised.value.__notes__)


@gradient_kind
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"grad_fn": lambda p, i: jax.grad(loss_fn)(p)},
            r"grad_fn is called with the parameters alone.*\(p, i\).*grad_fn\(params, 0\)",
        ),
        (
            {"value_fn": lambda p, batch: loss_fn(p)},
            r"value_fn is called with the parameters alone.*\(p, batch\).*loss\(params, batch\)",
        ),
    ],
    ids=["grad_fn", "value_fn"],
)
def test_functions_of_more_than_the_parameters_raise(method, arguments, message):
    tx = method.make()
    with pytest.raises(TypeError, match=message):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, **{"value_fn": loss_fn, **arguments})


def test_sample_losses_of_more_than_the_parameters_raise():
    tx = xsam_jax.esam(0.1, 0.5, 0.5, KEY)
    message = r"losses_fn is called with the parameters alone.*\(p, x\).*losses\(params, batch\)"
    with pytest.raises(TypeError, match=message):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, losses_fn=lambda p, x: p["a"])


@pytest.mark.parametrize(
    "leaf", [2, True, "relu", jax.nn.relu], ids=["int", "bool", "str", "function"]
)
def test_leaf_that_is_no_array_raises(leaf):
    with pytest.raises(TypeError, match=r"no floating-point array, .* at params\['b'\]\[0\]: "):
        xsam_jax.sam(0.1).init({"a": jnp.ones(2), "b": [leaf]})


def test_python_float_is_a_parameter():
    tx, params = xsam_jax.sam(0.1), {"a": 3.0, "b": jnp.float32(4.0)}
    updates, _ = tx.update(
        {"a": 6.0, "b": 8.0}, tx.init(params), params, value_fn=lambda p: p["a"] ** 2 + p["b"] ** 2
    )
    np.testing.assert_allclose([updates["a"], updates["b"]], [6.12, 8.16], rtol=1e-6)


@pytest.mark.parametrize("choose", [lambda m: m, lambda m: eqx.filter(m, eqx.is_array)])
def test_equinox_model_in_place_of_its_inexact_arrays_raises(choose):
    class Model(eqx.Module):
        layer: eqx.nn.MLP
        steps: jax.Array

    model = Model(eqx.nn.MLP(2, 1, 4, 1, key=KEY), jnp.arange(3))
    with pytest.raises(TypeError, match=r"eqx.partition\(model, eqx.is_inexact_array\)"):
        xsam_jax.sam(0.1).init(choose(model))


@gradient_kind
def test_grad_fn_that_returns_the_value_too_raises(method):
    tx = method.make()
    with pytest.raises(TypeError, match=r"grad_fn must return .* write grad_fn=jax.grad\(loss\)"):
        tx.update(
            GRADS,
            tx.init(PARAMS),
            PARAMS,
            value_fn=loss_fn,
            grad_fn=jax.value_and_grad(loss_fn),
        )


def functions_that_wrap_one_of_the_batch():
    """`functools.wraps` gives them the signature of the wrapped one, which `jax.jit` keeps."""

    def loss_of_batch(params, batch):
        return batch * loss_fn(params)

    @jax.jit
    @functools.wraps(loss_of_batch)
    def value_fn(params):
        return loss_of_batch(params, 1.0)

    return {"value_fn": value_fn, "grad_fn": jax.jit(jax.grad(value_fn))}


@gradient_kind
def test_functions_that_wrap_one_of_more_arguments_are_accepted(method):
    tx, functions = method.make(), functions_that_wrap_one_of_the_batch()
    update = functools.partial(tx.update, **functions)
    updates, _ = jax.eval_shape(update, GRADS, tx.init(PARAMS), PARAMS)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, GRADS)


def test_functions_that_wrap_one_of_more_arguments_are_called_with_the_parameters():
    tx, functions = xsam_jax.xsam(0.1, 0.2), functions_that_wrap_one_of_the_batch()
    wrapped, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, **functions)
    plain, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS, value_fn=loss_fn)
    np.testing.assert_allclose(wrapped["a"], plain["a"], rtol=1e-6)


@pytest.mark.parametrize("name", ["value_fn", "grad_fn"])
def test_error_inside_a_wrapping_function_passes_through(name):
    def of_batch(params, batch):
        return jnp.dot(params["a"], batch)

    @functools.wraps(of_batch)
    def function(params):
        return of_batch(params, jnp.ones(4))

    tx = xsam_jax.sam(0.1)
    with pytest.raises(TypeError, match="dot_general"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, **{name: function})


def test_pytree_whose_constructor_makes_arrays_is_accepted():
    @jax.tree_util.register_pytree_node_class
    class Weights:
        def __init__(self, array):
            self.array = jnp.asarray(array, jnp.float32)

        def tree_flatten(self):
            return (self.array,), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

    tx, params = xsam_jax.sam(0.1), Weights([3.0, 4.0])
    updates, _ = tx.update(
        params, tx.init(params), params, value_fn=lambda p: jnp.sum(p.array**2) / 2
    )
    np.testing.assert_allclose(updates.array, [3.06, 4.08], rtol=1e-6)


@gradient_kind
def test_mismatched_gradients_raise(method):
    tx = method.make()
    args, per_sample = (tx.init(PARAMS), PARAMS), {"a": jnp.ones((8, 3)), "b": jnp.ones(8)}
    with pytest.raises(ValueError, match=r"grads must be .* \[3\] at params\['a'\], got \[8, 3\]"):
        tx.update(per_sample, *args, value_fn=loss_fn)
    with pytest.raises(TypeError, match=r"grads must be .* structure .*pass grads = jax.grad"):
        tx.update({"a": GRADS["a"]}, *args, value_fn=loss_fn)
    with pytest.raises(ValueError, match=r"grad_fn must return .* \[3\] at params\['a'\], got"):
        tx.update(GRADS, *args, value_fn=loss_fn, grad_fn=lambda params: per_sample)


@gradient_kind
def test_grad_fn_alone_suffices_unless_the_method_probes(method):
    tx, grad_fn = method.make(), jax.grad(loss_fn)
    args = GRADS, tx.init(PARAMS), PARAMS
    if method.probes:
        with pytest.raises(ValueError, match=r"value_fn is missing: .*grad_fn alone is not enough"):
            tx.update(*args, grad_fn=grad_fn)
    else:

        @jax.jit
        def both(*args):
            return [
                tx.update(*args, **functions)[0]["a"]
                for functions in ({"grad_fn": grad_fn}, {"value_fn": loss_fn})
            ]

        np.testing.assert_array_equal(*both(*args))


@pytest.mark.parametrize("scale", ["slope", "slope_max"])
def test_grad_fn_alone_raises_for_a_slope(scale):
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
def test_method_inside_a_mask_raises(method, wrap):
    with pytest.raises(
        ValueError, match=r"params has MaskedNode.*chain\(xsam\(\.\.\.\), optax.part"
    ):
        wrap(method.make()).init(PARAMS)


@path_descents
def test_descent_inside_a_mask_raises(descent):
    tx = xsam_jax.sharpness_aware(normalize(), optax.masked(descent, {"a": True, "b": False}))
    with pytest.raises(ValueError, match="params has MaskedNode"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, value_fn=loss_fn)


@path_descents
def test_descent_outside_sharpness_aware_raises(descent):
    with pytest.raises(ValueError, match=r"path is missing: .*sharpness_aware\(ascent, descent="):
        descent.update(GRADS, descent.init(PARAMS), PARAMS, value_fn=loss_fn)


@every_method
def test_complex_parameters_raise(method):
    with pytest.raises(TypeError, match=r"complex leaf, complex64\[2\]: split it"):
        method.make().init({"a": jnp.ones(2, jnp.complex64)})


@every_method
def test_integer_parameters_raise(method):
    with pytest.raises(
        TypeError,
        match=r"a leaf without gradient, int32\[2\] at params\['b'\]: close value_fn over",
    ):
        method.make().init({"a": jnp.ones(2), "b": jnp.arange(2)})


@pytest.mark.parametrize("slot", ["ascent", "descent"])
@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.chain(tx, optax.scale(2.0))])
def test_whole_method_in_a_slot_raises(slot, wrap):
    slots = {"ascent": normalize(), slot: wrap(xsam_jax.asam(0.1))}
    with pytest.raises(TypeError, match=f"{slot} must be one slot of a method.*scale_by_magnitude"):
        xsam_jax.sharpness_aware(**slots).init(PARAMS)


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.apply_if_finite(tx, 3)])
def test_gated_decoupled_wsam_raises(wrap):
    tx = wrap(xsam_jax.decoupled_wsam(optax.sgd(0.1), 0.1, 0.1, 0.9))
    with pytest.raises(TypeError, match=r"not have decoupled_wsam, .* inside.*Write wsam"):
        gated(tx, every(2)).init(PARAMS)


@pytest.mark.parametrize(
    "chain",
    [
        optax.chain(xsam_jax.sam(0.1), optax.sgd(0.1)),
        optax.named_chain(("sam", xsam_jax.sam(0.1)), ("sgd", optax.sgd(0.1))),
    ],
    ids=["chain", "named_chain"],
)
def test_gated_chain_raises(chain):
    """Skipped steps would return the gradient as the update, so the loss would rise."""
    with pytest.raises(TypeError, match=r"a method alone.*chain\(gated\(sam\(0.1\), gate\)"):
        gated(chain, every(2)).init(PARAMS)


def test_gate_that_reads_the_gradient_raises_on_the_host():
    with pytest.raises(TypeError, match=r"this gate reads the gradient.*leave out sharp="):
        gradient_norm(1.0)(3)


def test_more_steps_than_radii_raise_in_update():
    tx = xsam_jax.sharpness_aware(scale_by_radius((0.1, 0.2)), steps=3)
    with pytest.raises(ValueError, match=r"radius has 2 entries.*step 2 was taken"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, value_fn=loss_fn)


BAD_SAMPLE_LOSSES = [
    ({}, ValueError, r"losses_fn is missing: .*losses_fn=lambda params: losses\(params, batch\)"),
    ({"value_fn": loss_fn}, ValueError, "losses_fn is missing"),
    ({"losses_fn": 0.3}, TypeError, "losses_fn must be a function of the parameters, got 0.3"),
    (
        {"losses_fn": loss_fn},
        TypeError,
        r"got float32\[\]: the loss of each sample, not their mean",
    ),
    ({"losses_fn": lambda p: p["a"][None]}, TypeError, r"shape \(batch,\), got float32\[1, 3\]"),
    ({"losses_fn": lambda p: [p["a"]]}, TypeError, r"must return an array of shape \(batch,\)"),
    ({"losses_fn": lambda p: p["a"], "params": None}, ValueError, "params is missing"),
    (
        {"losses_fn": lambda p: p["a"], "losses": jnp.zeros(())},
        TypeError,
        r"losses must be losses_fn\(params\), of shape \[3\], got shape \[\]",
    ),
    (
        {"losses_fn": lambda p: p["a"], "losses": jnp.zeros((3, 1))},
        TypeError,
        r"losses must be .*, of shape \[3\], got shape \[3, 1\]",
    ),
]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    BAD_SAMPLE_LOSSES,
    ids=[row[2][:40] for row in BAD_SAMPLE_LOSSES],
)
def test_bad_sample_losses_raise(kwargs, error, message):
    tx = xsam_jax.esam(0.1, 0.5, 0.5, KEY)
    with pytest.raises(error, match=re.compile(message, re.DOTALL)):
        tx.update(GRADS, tx.init(PARAMS), **{"params": PARAMS, **kwargs})


BAD_MASKS = [
    ({"a": True}, ValueError, "mask must be a pytree of booleans with the structure of params"),
    ({"a": 1, "b": 0}, TypeError, "mask must hold booleans, known at trace time, got 1"),
    (lambda params: {"a": 0.5, "b": True}, TypeError, "mask must hold booleans"),
    ({"a": jnp.bool_(True), "b": True}, TypeError, "mask must hold booleans, known at trace time"),
    (lambda params: None, ValueError, "mask must be a pytree of booleans"),
]


@pytest.mark.parametrize(("mask", "error", "message"), BAD_MASKS)
def test_mismatched_masks_raise(mask, error, message):
    for tx in (xsam_jax.asam(0.1, mask=mask), xsam_jax.friendly_asam(0.1, mask=mask)):
        with pytest.raises(error, match=message):
            tx.update(GRADS, tx.init(PARAMS), PARAMS, value_fn=loss_fn)


def test_scale_by_magnitude_without_parameters_raises():
    tx = scale_by_magnitude()
    with pytest.raises(ValueError, match="params is missing: scale_by_magnitude"):
        tx.update(GRADS, tx.init(PARAMS))


def test_decision_that_is_no_bool_raises():
    tx = gated(xsam_jax.sam(0.1), every(2))
    with pytest.raises(TypeError, match=r"sharp must be a bool, got 1: .*bool\(gate\(count\)\)"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, value_fn=loss_fn, sharp=1)


@pytest.mark.parametrize("gate", [every, lambda count: count % 5, lambda count: None])
def test_gate_that_returns_no_bool_raises(gate):
    tx = gated(xsam_jax.sam(0.1), gate)
    with pytest.raises(TypeError, match=r"gate must return a bool, got .*every\(5\)"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, value_fn=loss_fn)


def test_diagnostic_that_is_no_scalar_raises():
    tx = xsam_jax.sharpness_aware(normalize(), record({"all": lambda u, path, p: u["a"]}))
    with pytest.raises(TypeError, match=r"diagnostics\['all'\] must return .*float32\[3\]"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, value_fn=loss_fn)
    tx = xsam_jax.sharpness_aware(normalize(), record({"all": lambda u, path, p: u}))
    with pytest.raises(TypeError, match=r"diagnostics\['all'\] must return a real .*got a dict"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS, value_fn=loss_fn)
