"""Every method as an Optax gradient transformation, under transformations of JAX and Optax."""

import collections
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from methods import METHODS, NAMES, ONE_GRADIENT, REPRESENTATIVES, gradient_point

import xsam_jax
from xsam_jax.ascent import normalize, scale_by_radius
from xsam_jax.descent import match_norm, slerp_to_maximum

# One worker runs all tests, which share compiled programs.
pytestmark = pytest.mark.xdist_group("protocol")
LEARNING_RATE = 0.02
# Two compilations of one step differ by float32 rounding, which differences of losses amplify.
RTOL = 1e-4
# Properties that depend on the formula are tested with every method. Properties of the state and of
# the conditionals are tested with every kind of these.
ALL, KINDS = METHODS | ONE_GRADIENT, REPRESENTATIVES | ONE_GRADIENT
every_method = pytest.mark.parametrize("method", ALL.values(), ids=ALL)
every_kind = pytest.mark.parametrize("method", KINDS.values(), ids=KINDS)
# Wrappers of Optax see the update and the state only.
WRAPPED = {
    name: REPRESENTATIVES[name]
    for name in ("sam", "xsam, two steps", "look_sam", "decoupled_wsam", "xsam at random")
}
wrapped_method = pytest.mark.parametrize("method", WRAPPED.values(), ids=WRAPPED)


def methods_that(condition, methods=METHODS):
    chosen = {name: method for name, method in methods.items() if condition(method)}
    return pytest.mark.parametrize("method", chosen.values(), ids=chosen)


gradient_kind = methods_that(lambda method: not method.sample_losses, REPRESENTATIVES)
probing_kind = methods_that(lambda method: method.probes, REPRESENTATIVES)


def loss_fn(params):
    """A bowl with another curvature along every axis, of any structure and dtype."""
    total = 0.0
    for leaf in jax.tree.leaves(params):
        # In float32, as a loss is: in half precision the probes would tie.
        x = jnp.asarray(leaf, jnp.result_type(float)) - 0.3
        curvature = jnp.asarray(np.geomspace(0.2, 5.0, x.size)).reshape(x.shape)
        total += jnp.sum(curvature * x**2 / (1 + 0.1 * x**2))
    return total


def make_params(dtype=jnp.float32):
    return {
        "weight": jnp.asarray([[1.0, -0.5], [0.25, 2.0]], dtype),
        "bias": jnp.asarray([0.5, -1.0, 1.5], dtype),
    }


def with_sgd(method, tx=None, **kwargs):
    """The method, or `tx` in its place, followed by SGD unless it has an optimizer inside."""
    if tx is None and not kwargs:
        return default_with_sgd(method)
    tx = method.make(**kwargs) if tx is None else tx
    return tx if method.optimizer else optax.chain(tx, optax.sgd(LEARNING_RATE, momentum=0.9))


@functools.cache
def default_with_sgd(method):
    return with_sgd(method, method.make())


@functools.cache
def injected(method):
    inject = optax.inject_hyperparams(method.alias, static_args=method.static_args)
    return with_sgd(method, inject(**method.numbers, **method.statics))


RADII = optax.linear_schedule(0.3, 0.1, 6)


@functools.cache
def scheduled(method):
    return with_sgd(method, rho=RADII)


def make_step(method, tx):
    def step(params, opt_state):
        value, grads = jax.value_and_grad(loss_fn)(gradient_point(method, opt_state, params))
        updates, opt_state = tx.update(
            grads, opt_state, params, value=value, **method.arguments(loss_fn)
        )
        return optax.apply_updates(params, updates), opt_state

    return step


TRACES = collections.Counter()


@functools.cache
def jitted_step(method, tx):
    """The step, compiled once for all tests that use it. `TRACES` counts its traces."""
    step = make_step(method, tx)

    def traced(params, opt_state):
        TRACES[method, tx, params["bias"].dtype] += 1
        return step(params, opt_state)

    return jax.jit(traced)


def run(method, tx, params, num_steps=4, opt_state=None):
    step = jitted_step(method, tx)
    opt_state = tx.init(params) if opt_state is None else opt_state
    for _ in range(num_steps):
        params, opt_state = step(params, opt_state)
    return params, opt_state


@functools.cache
def trained(method):
    """Parameters and state after four steps, to compare with."""
    return run(method, with_sgd(method), make_params())


@functools.cache
def params_of_sgd():
    return run(METHODS["sam"], optax.sgd(LEARNING_RATE, momentum=0.9), make_params())[0]


def test_methods_table_has_every_method():
    assert {m.alias.__name__ for m in ALL.values()} >= NAMES
    assert set(xsam_jax.__all__) >= NAMES


def kinds_of_state(method):
    found = set()
    jax.tree.leaves(
        method.make().init(make_params()), is_leaf=lambda node: found.add(type(node)) or False
    )
    return found


def test_representatives_have_every_kind_of_state_and_every_trait():
    kinds = set().union(*map(kinds_of_state, REPRESENTATIVES.values()))
    for name, method in METHODS.items():
        assert kinds_of_state(method) <= kinds, name
    for trait in ("gradients", "probes", "sample_losses", "optimizer", "counts_sharp_steps"):
        assert {getattr(m, trait) for m in METHODS.values()} == {
            getattr(m, trait) for m in REPRESENTATIVES.values()
        }


# --- Transformations of JAX ---


@every_method
def test_method_differs_from_the_base_optimizer(method):
    """Without this, a transform that does nothing would pass the equalities below."""
    params, _ = trained(method)
    assert not np.allclose(params["bias"], params_of_sgd()["bias"], rtol=1e-3)


@every_method
def test_step_is_traced_once(method):
    _, opt_state = trained(method)
    assert TRACES[method, with_sgd(method), jnp.dtype("float32")] == 1
    assert optax.tree.get(opt_state, "trace")["bias"].shape == (3,)


@every_kind
def test_step_without_jit_is_the_same(method):
    tx = with_sgd(method)
    params, opt_state = make_params(), tx.init(make_params())
    for _ in range(2):
        params, opt_state = make_step(method, tx)(params, opt_state)
    chex.assert_trees_all_close((params, opt_state), run(method, tx, make_params(), 2), rtol=RTOL)


def axes_of(opt_state):
    """0 for every leaf but the step counters."""

    def axis(path, leaf):
        return None if getattr(path[-1], "name", None) == "count" else 0

    return jax.tree_util.tree_map_with_path(axis, opt_state)


def params_of_seed(seed):
    keys = jax.random.split(jax.random.key(0), 3)
    return jax.tree.map(lambda p: p + jax.random.normal(keys[seed], p.shape), make_params())


class TrainedSeeds(NamedTuple):
    program: str
    donated: list
    params: Any


@functools.cache
def trained_seeds(method):
    """Four steps in a scan over a vmap over three seeds, with donated buffers."""
    tx = with_sgd(method)
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(params_of_seed, range(3)))
    opt_state = jax.vmap(tx.init)(params)
    axes = axes_of(opt_state)
    # A copy of each leaf, since a buffer can be donated once only.
    opt_state = jax.tree.map(
        lambda axis, x: jnp.array(x[0] if axis is None else x),
        axes,
        opt_state,
        is_leaf=lambda x: x is None,
    )
    step = jax.vmap(make_step(method, tx), in_axes=(0, axes), out_axes=(0, axes))

    def train(params, opt_state):
        return jax.lax.scan(lambda c, _: (step(*c), None), (params, opt_state), length=4)[0]

    compiled = jax.jit(train, donate_argnums=(0, 1)).lower(params, opt_state).compile()
    donated = jax.tree.leaves((params, opt_state))
    trained_params, _ = compiled(params, opt_state)
    return TrainedSeeds(compiled.as_text(), donated, trained_params)


@every_kind
def test_scan_and_vmap_equal_loops(method):
    for seed in range(3):
        alone, _ = run(method, with_sgd(method), params_of_seed(seed))
        of_seed = jax.tree.map(lambda p: p[seed], trained_seeds(method).params)  # noqa: B023
        chex.assert_trees_all_close(of_seed, alone, rtol=RTOL)


@every_kind
def test_buffers_can_be_donated(method):
    """A donation that cannot be used warns, and warnings are errors here."""
    assert all(leaf.is_deleted() for leaf in trained_seeds(method).donated)


@every_method
def test_leaves_of_the_first_state_are_different_buffers(method):
    """JAX refuses to donate a buffer twice."""
    opt_state = with_sgd(method).init(make_params())
    jax.block_until_ready(jax.jit(lambda s: s, donate_argnums=0)(opt_state))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(opt_state))


@every_method
def test_init_takes_the_types_of_parameters(method):
    """As where the state is made before the parameters are read."""
    tx = with_sgd(method)
    found, expected = tx.init(jax.eval_shape(make_params)), tx.init(make_params())
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)


@probing_kind
def test_vmap_with_one_counter_keeps_the_conditional(method):
    assert "conditional(" in trained_seeds(method).program


# --- Arguments of update ---


@every_kind
def test_unknown_extra_arguments_change_nothing(method):
    tx, params = method.make(), make_params()
    grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)

    def program(**extra_args):
        arguments = method.arguments(loss_fn) | extra_args
        return str(
            jax.make_jaxpr(functools.partial(tx.update, **arguments))(grads, opt_state, params)
        )

    assert program() == program(obj_fn=None, rng=3)


@gradient_kind
def test_grad_fn_replaces_the_gradient_of_the_loss(method):
    """Twice the gradient as `grad_fn` beside the loss has the effect of twice the loss."""
    tx, params = method.make(), make_params()

    @jax.jit
    def update(factor_of_loss, factor_of_gradient):
        updates, _ = tx.update(
            jax.tree.map(lambda g: 2.0 * g, jax.grad(loss_fn)(params)),
            tx.init(params),
            params,
            value_fn=lambda p: factor_of_loss * loss_fn(p),
            grad_fn=lambda p: jax.grad(lambda p: factor_of_gradient * loss_fn(p))(p),
        )
        return updates

    expected, updates, ignored = update(2.0, 2.0), update(1.0, 2.0), update(1.0, 1.0)
    # The length over rho_max depends on losses alone.
    factor = 0.5 if method.statics.get("scale") == "slope_max" else 1.0
    chex.assert_trees_all_close(updates, optax.tree.scale(factor, expected), rtol=RTOL)
    assert not np.allclose(updates["bias"], ignored["bias"], rtol=1e-3) or factor != 1.0


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.sample_losses])
def test_obj_fn_is_another_name_of_value_fn(name):
    tx, params = METHODS[name].make(), make_params()
    grads, state = jax.grad(loss_fn)(params), tx.init(params)

    def program(**loss):
        return str(jax.make_jaxpr(lambda g, s, p: tx.update(g, s, p, **loss))(grads, state, params))

    assert program(obj_fn=loss_fn) == program(value_fn=loss_fn)
    with pytest.raises(ValueError, match="value_fn and obj_fn are two names of the loss"):
        program(obj_fn=loss_fn, value_fn=loss_fn)


# --- Hyperparameters ---


@every_method
def test_every_number_can_be_injected(method):
    """Traced only. test_sam_and_xsam.py and test_methods.py compare values of traced numbers."""
    tx, params = injected(method), make_params()
    opt_state = tx.init(params)
    results = jax.eval_shape(make_step(method, tx), params, opt_state)
    chex.assert_trees_all_equal_shapes_and_dtypes(results, (params, opt_state))
    assert set(method.numbers) <= set(optax.tree.get(opt_state, "hyperparams"))


@every_kind
def test_injected_numbers_have_the_effect_of_constants(method):
    params, _ = run(method, injected(method), make_params())
    chex.assert_trees_all_close(params, trained(method)[0], rtol=RTOL)


@methods_that(lambda method: method.counts_sharp_steps, REPRESENTATIVES)
def test_injected_radius_of_a_gated_method_can_be_changed(method):
    tx, start = injected(method), make_params()
    before, _ = run(method, tx, start, 1)
    opt_state = optax.tree.set(tx.init(start), rho=jnp.float32(0.4))
    after, _ = run(method, tx, start, 1, opt_state)
    expected, _ = run(method, with_sgd(method, rho=0.4), start, 1)
    # Differences, since the parameters are large beside the steps.
    steps = [optax.tree.sub(params, start) for params in (before, after, expected)]
    chex.assert_trees_all_close(steps[1], steps[2], rtol=RTOL)
    assert not np.allclose(steps[0]["bias"], steps[2]["bias"], rtol=1e-3)


@methods_that(lambda method: "steps" in method.static_args)
def test_injected_static_argument_is_named_in_the_error(method):
    inject = optax.inject_hyperparams(method.alias)
    with pytest.raises(TypeError, match=r"steps .*static_args=\('steps'"):
        inject(**method.numbers, **method.statics).init(make_params())


@methods_that(lambda method: not method.counts_sharp_steps, REPRESENTATIVES)
def test_radius_schedule_advances_once_per_training_step(method):
    """The radius of each step is that of an injected radius, changed by hand."""
    start = make_params()
    params, opt_state = start, scheduled(method).init(start)
    expected, other = start, injected(method).init(start)
    for count in range(3):
        params, opt_state = run(method, scheduled(method), params, 1, opt_state)
        other = optax.tree.set(other, rho=jnp.float32(RADII(count)))
        expected, other = run(method, injected(method), expected, 1, other)
        # Differences, since the parameters are large beside the steps.
        steps = [optax.tree.sub(tree, start) for tree in (params, expected)]
        chex.assert_trees_all_close(*steps, rtol=RTOL)
    constant, _ = run(method, with_sgd(method), start, 3)
    assert not np.allclose(steps[0]["bias"], optax.tree.sub(constant, start)["bias"], rtol=1e-3)


@methods_that(lambda method: method.probes and not method.counts_sharp_steps)
def test_rho_max_can_be_a_schedule(method):
    radii = [0.3, 0.9]
    scheduled = with_sgd(method, rho_max=lambda count: jnp.asarray(radii)[count], probe_every=1)
    params, opt_state = make_params(), scheduled.init(make_params())
    expected, other = make_params(), with_sgd(method).init(make_params())

    @jax.jit
    def step_of(rho_max, params, opt_state):
        constant = with_sgd(method, rho_max=rho_max, probe_every=1)
        return make_step(method, constant)(params, opt_state)

    for rho_max in radii:
        params, opt_state = jitted_step(method, scheduled)(params, opt_state)
        expected, other = step_of(rho_max, expected, other)
    chex.assert_trees_all_close(params, expected, rtol=RTOL)


# --- Wrappers and optimizers of Optax ---


@wrapped_method
def test_apply_if_finite_after_a_method_skips_a_nan_of_any_gradient(method):
    """The clean gradient is finite, and the gradient of the ascent is not."""
    tx = optax.chain(method.make(), optax.apply_if_finite(optax.sgd(LEARNING_RATE), 5))
    params = make_params()

    @jax.jit
    def update(factor, opt_state):
        def broken(point):
            moved = jnp.any(point["bias"] != params["bias"])
            return jnp.where(moved, factor, 1.0) * loss_fn(point)

        return tx.update(jax.grad(loss_fn)(params), opt_state, params, **method.arguments(broken))

    updates, opt_state = update(jnp.nan, tx.init(params))
    chex.assert_trees_all_equal(updates, optax.tree.zeros_like(params))
    updates, opt_state = update(1.0, opt_state)
    chex.assert_tree_all_finite((updates, opt_state))
    assert np.all(updates["bias"] != 0)


@wrapped_method
def test_multi_steps_around_a_method_gives_zeros_while_accumulating(method):
    multi = optax.MultiSteps(with_sgd(method), every_k_schedule=2)
    params = make_params()
    opt_state = multi.init(params)
    grads = jax.grad(loss_fn)(params)
    arguments = method.arguments(loss_fn)
    update = jax.jit(lambda state: multi.update(grads, state, params, **arguments))
    updates, opt_state = update(opt_state)
    chex.assert_trees_all_equal(updates, optax.tree.zeros_like(params))
    updates, opt_state = update(opt_state)
    expected, _ = run(method, with_sgd(method), params, 1)
    chex.assert_trees_all_close(optax.apply_updates(params, updates), expected, rtol=RTOL)


@wrapped_method
def test_multi_steps_after_a_method_averages_sharpness_aware_gradients(method):
    inner = optax.MultiSteps(optax.sgd(LEARNING_RATE), every_k_schedule=2)
    # A trace without decay keeps the gradient of the last step in the state.
    tx = optax.chain(method.make(), optax.trace(0.0), inner.gradient_transformation())
    params = make_params()

    @jax.jit
    def update(factor, opt_state):
        def loss(point):
            return factor * loss_fn(optax.tree.scale(1 / factor, point))

        updates, state = tx.update(
            jax.grad(loss)(params), opt_state, params, **method.arguments(loss)
        )
        return updates, state, state[1].trace

    _, opt_state, first = update(1.0, tx.init(params))
    updates, _, second = update(2.0, opt_state)
    assert not np.allclose(first["bias"], second["bias"], rtol=0.1)
    expected = jax.tree.map(lambda a, b: -LEARNING_RATE * (a + b) / 2, first, second)
    chex.assert_trees_all_close(updates, expected, rtol=RTOL)


def subset_ascents(rho):
    others, selected = {"weight": True, "bias": False}, {"weight": False, "bias": True}
    zero = optax.masked(optax.set_to_zero(), others)
    length = scale_by_radius(rho)
    labels = {"weight": "zero", "bias": "ascend"}
    return {
        "masked, norm of the subset": optax.chain(zero, normalize(), length),
        "masked, norm of everything": optax.chain(normalize(), length, zero),
        "partition": optax.partition(
            {"zero": optax.set_to_zero(), "ascend": optax.chain(normalize(), length)}, labels
        ),
        "masked ascent": optax.chain(
            zero, optax.masked(optax.chain(normalize(), length), selected)
        ),
    }


@pytest.mark.parametrize("name", subset_ascents(0.1))
def test_masks_inside_the_ascent_perturb_a_subset(name):
    rho, params = 0.1, make_params()
    ascent = subset_ascents(rho)[name]
    search = optax.chain(slerp_to_maximum(0.2), match_norm(unit=True))

    @jax.jit
    def update(grads):
        methods = xsam_jax.sharpness_aware(ascent), xsam_jax.sharpness_aware(ascent, search)
        return [tx.update(grads, tx.init(params), params, value_fn=loss_fn)[0] for tx in methods]

    grads = jax.grad(loss_fn)(params)
    whole = optax.tree.norm(grads if name == "masked, norm of everything" else grads["bias"])
    point = {"weight": params["weight"], "bias": params["bias"] + rho * grads["bias"] / whole}
    updates, searched = update(grads)
    chex.assert_trees_all_close(updates, jax.grad(loss_fn)(point), rtol=RTOL)
    chex.assert_tree_all_finite(searched)


BACKTRACKING = optax.chain(
    optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)
)


@pytest.mark.parametrize(
    "name", ["sam", "xsam, two steps", "look_sam", "sam where the gradient is long"]
)
def test_line_search_after_a_method_descends(name):
    assert_descends_with(METHODS[name], BACKTRACKING)


# Its line search takes the same arguments, and takes long to compile.
@pytest.mark.parametrize("name", ["sam", "xsam, two steps"])
def test_lbfgs_after_a_method_descends(name):
    assert_descends_with(METHODS[name], optax.lbfgs())


def assert_descends_with(method, base):
    tx, params = optax.chain(method.make(rho=0.01), base), make_params()
    opt_state, start = tx.init(params), loss_fn(params)

    @jax.jit
    def step(params, opt_state):
        value, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(
            grads, opt_state, params, value=value, grad=grads, value_fn=loss_fn
        )
        return optax.apply_updates(params, updates), opt_state

    for _ in range(5):
        params, opt_state = step(params, opt_state)
    assert loss_fn(params) < 0.5 * start


@every_kind
def test_map_params_finds_the_parameters_in_the_state(method):
    tx = with_sgd(method, rho=optax.constant_schedule(0.1))
    opt_state = tx.init(make_params())
    mapped = optax.tree.map_params(tx, lambda leaf: leaf + 1, opt_state)
    chex.assert_trees_all_equal(
        optax.tree.get(mapped, "trace"),
        optax.tree.scale(1.0, jax.tree.map(jnp.ones_like, make_params())),
    )
    # Besides the momentum: averages of gradients, directions, and perturbations.
    like_parameters = {"trace", "average", "orthogonal", "gradient", "vector", "ahead"}

    def moved(path):
        return bool(like_parameters & {getattr(key, "name", None) for key in path})

    jax.tree_util.tree_map_with_path(
        lambda path, leaf, before: np.testing.assert_array_equal(leaf, before + moved(path)),
        mapped,
        opt_state,
    )


# --- Dtypes ---


def state_at_alpha(method, opt_state):
    """The state with alpha* given, since in half precision the probed losses are mostly rounding.

    A gate has a count around that of the method, which `optax.tree.set` would not reach.
    """
    values = {"count": 1, "alpha": 1.5} if method.probes else {}
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full_like(leaf, values.get(getattr(path[-1], "name", None), leaf)),
        opt_state,
    )


@functools.cache
def step_from_alpha(method, dtype):
    """The arguments and results of a compiled step, and the gradient that the method returns."""
    tx, params = with_sgd(method), make_params(dtype)
    opt_state = state_at_alpha(method, tx.init(params))
    results = jitted_step(method, tx)(params, opt_state)
    gradient = optax.tree.get(results[1], "trace")  # the momentum after its first step
    if method.optimizer:  # its momentum is only a part of the update
        update = jax.jit(functools.partial(tx.update, **method.arguments(loss_fn)))
        gradient, _ = update(jax.grad(loss_fn)(params), opt_state, params)
    return (params, opt_state), results, gradient


@every_method
def test_half_precision_is_kept_and_near_float32(method):
    arguments, results, gradient = step_from_alpha(method, "float16")
    chex.assert_trees_all_equal_shapes_and_dtypes(results, arguments)
    arguments, results, expected = step_from_alpha(method, "float32")
    chex.assert_trees_all_equal_shapes_and_dtypes(results, arguments)
    chex.assert_trees_all_close(optax.tree.cast(gradient, "float32"), expected, rtol=1e-2)


@pytest.mark.parametrize("name", ["sam", "xsam, two steps", "gam", "look_sam", "esam"])
def test_bfloat16_is_near_float32(name):
    method = METHODS[name]
    arguments, results, gradient = step_from_alpha(method, "bfloat16")
    chex.assert_trees_all_equal_shapes_and_dtypes(results, arguments)
    # Of a perturbation of 0.3 to parameters of 2, bfloat16 keeps one part in a hundred.
    expected = step_from_alpha(method, "float32")[2]
    chex.assert_trees_all_close(optax.tree.cast(gradient, "float32"), expected, rtol=0.1)


def traced_update(method, params, grads):
    """The types of the state before and after an update, and those of the updates."""
    tx = method.make()
    opt_state = tx.init(params)
    update = functools.partial(tx.update, **method.arguments(loss_fn))
    updates, after = jax.eval_shape(update, grads, opt_state, params)
    return opt_state, after, updates


@every_method
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_update_keeps_dtypes(method, dtype):
    """Traced only. test_sam_and_xsam.py and test_methods.py compare values in float64."""
    with jax.enable_x64(dtype == "float64"):
        params = make_params(dtype)
        opt_state, after, updates = traced_update(method, params, params)
        chex.assert_trees_all_equal_shapes_and_dtypes((updates, after), (params, opt_state))


@every_method
def test_update_has_the_dtype_of_the_gradient(method):
    """Traced only. The parameters have another dtype."""
    grads = make_params("float32")
    _, _, updates = traced_update(method, make_params("bfloat16"), grads)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, grads)


@probing_kind
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_probe_in_half_precision_keeps_dtypes(method, dtype):
    params, opt_state = make_params(dtype), with_sgd(method).init(make_params(dtype))
    results = jitted_step(method, with_sgd(method))(params, opt_state)
    chex.assert_trees_all_equal_shapes_and_dtypes(results, (params, opt_state))
    assert 0 <= optax.tree.get(results[1], "alpha") <= 3


# --- Containers and checkpoints ---


class Pair(NamedTuple):
    first: Any
    second: Any


def containers():
    weight, bias = make_params()["weight"], make_params()["bias"]
    return {
        "NamedTuple": Pair(weight, bias),
        "nested": {"a": {"b": [weight]}, "c": (bias, None), "d": {}, "e": jnp.zeros((0, 3))},
        "nnx.State": nnx.State({"a": nnx.Param(weight), "b": nnx.Param(bias)}),
        "pure nnx.State": nnx.as_pure(nnx.State({"a": nnx.Param(weight), "b": nnx.Param(bias)})),
    }


@every_kind
@pytest.mark.parametrize("name", containers())
def test_outermost_container_can_be_any(method, name):
    """Traced only. The next test compares values."""
    tx, params = method.make(), containers()[name]
    update = functools.partial(tx.update, **method.arguments(loss_fn))
    updates, _ = jax.eval_shape(update, jax.grad(loss_fn)(params), tx.init(params), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


@pytest.mark.parametrize("name", ["sam", "xsam, two steps", "gam", "look_sam", "esam"])
def test_pytree_of_all_containers_equals_a_list(name):
    method = METHODS[name]
    weight, bias = make_params()["weight"], make_params()["bias"]
    tx, state = method.make(), nnx.State({"a": nnx.Param(weight[0])})
    nested = {"b": [bias], "c": (weight, None), "d": {}, "e": jnp.zeros((0, 3))}
    params = Pair(nested, {"nnx": state, "pure": nnx.as_pure(state)})

    # In one program, the compiler can share most of the two sides.
    @jax.jit
    def both(params):
        return [
            tx.update(jax.grad(loss_fn)(p), tx.init(p), p, **method.arguments(loss_fn))[0]
            for p in (params, jax.tree.leaves(params))
        ]

    updates, expected = both(params)
    chex.assert_trees_all_equal_structs(updates, params)
    chex.assert_trees_all_close(jax.tree.leaves(updates), expected, rtol=RTOL)


@pytest.fixture(scope="module")
def saved_and_restored(tmp_path_factory):
    """For each kind, parameters and state after three steps, and these from one checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint") / "states"
    saved = [run(method, scheduled(method), make_params(), 3) for method in KINDS.values()]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, saved)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(folder, jax.tree.map(jnp.zeros_like, saved))
    return dict(zip(KINDS.values(), zip(saved, restored, strict=True), strict=True))


@every_kind
def test_restored_run_continues_bit_for_bit(method, saved_and_restored):
    tx, (saved, restored) = scheduled(method), saved_and_restored[method]
    chex.assert_trees_all_equal_structs(restored, saved)
    resumed = run(method, tx, restored[0], 3, restored[1])
    uninterrupted = run(method, tx, make_params(), 6)
    chex.assert_trees_all_equal(resumed, uninterrupted)
