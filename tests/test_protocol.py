"""What every alias promises as an Optax gradient transformation, from the table in methods.py."""

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
from methods import METHODS, NAMES, REPRESENTATIVES

import xsam_jax
from xsam_jax.ascent import normalize, scale_by_radius
from xsam_jax.descent import match_norm, slerp_to_maximum

LEARNING_RATE = 0.02
# Two compilations of one step differ by float32 rounding, which differences of losses amplify.
RTOL = 1e-4
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
every_kind = pytest.mark.parametrize("method", REPRESENTATIVES.values(), ids=REPRESENTATIVES)


def methods_that(condition, methods=METHODS):
    chosen = {name: method for name, method in methods.items() if condition(method)}
    return pytest.mark.parametrize("method", chosen.values(), ids=chosen)


gradient_method = methods_that(lambda method: not method.sample_losses)
probing_method = methods_that(lambda method: method.probes)


def loss_fn(params):
    """A bowl with another curvature along every axis, of any structure and dtype."""
    total = 0.0
    for leaf in jax.tree.leaves(params):
        # In float32, as a loss is: in half precision the probes would tie.
        x = jnp.asarray(leaf, jnp.result_type(float)) - 0.3
        curvature = jnp.geomspace(0.2, 5.0, x.size).reshape(x.shape)
        total += jnp.sum(curvature * x**2 / (1 + 0.1 * x**2))
    return total


def make_params(dtype=jnp.float32):
    return {
        "weight": jnp.asarray([[1.0, -0.5], [0.25, 2.0]], dtype),
        "bias": jnp.asarray([0.5, -1.0, 1.5], dtype),
    }


def with_sgd(method, tx=None, **kwargs):
    """The method, or `tx` in its place, and what makes an optimizer of it."""
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


def make_step(method, tx, loss_fn=loss_fn):
    def step(params, opt_state):
        value, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(
            grads, opt_state, params, value=value, **method.arguments(loss_fn)
        )
        return optax.apply_updates(params, updates), opt_state

    return step


@functools.cache
def jitted_step(method, tx):
    """Compiled once for all tests that take it."""
    return jax.jit(make_step(method, tx))


def run(method, tx, params, num_steps=4, opt_state=None):
    step = jitted_step(method, tx)
    opt_state = tx.init(params) if opt_state is None else opt_state
    for _ in range(num_steps):
        params, opt_state = step(params, opt_state)
    return params, opt_state


def test_the_table_has_every_alias():
    assert {m.alias.__name__ for m in METHODS.values()} >= NAMES
    assert set(xsam_jax.__all__) >= NAMES


def kinds_of_state(method):
    found = set()
    jax.tree.leaves(
        method.make().init(make_params()), is_leaf=lambda node: found.add(type(node)) or False
    )
    return found


def test_the_representatives_have_every_kind_of_state_and_every_trait():
    for name, method in METHODS.items():
        kinds = set().union(*map(kinds_of_state, REPRESENTATIVES.values()))
        assert kinds_of_state(method) <= kinds, name
    for trait in ("gradients", "probes", "sample_losses", "optimizer", "counts_sharp_steps"):
        assert {getattr(m, trait) for m in METHODS.values()} == {
            getattr(m, trait) for m in REPRESENTATIVES.values()
        }


@every_method
def test_it_is_not_the_base_optimizer(method):
    """Else every equality below could hold of a transform that does nothing."""
    params, _ = run(method, with_sgd(method), make_params())
    base, _ = run(method, optax.sgd(LEARNING_RATE, momentum=0.9), make_params())
    assert not np.allclose(params["bias"], base["bias"], rtol=1e-3)


@every_method
def test_the_step_traces_once_and_its_buffers_can_be_donated(method):
    """An unusable donation warns, and warnings are errors here."""
    tx = with_sgd(method)
    expected = run(method, tx, make_params())
    chex.clear_trace_counter()
    step = chex.assert_max_traces(make_step(method, tx), n=1)
    step = jax.jit(step, donate_argnums=(0, 1))
    params, opt_state = make_params(), tx.init(make_params())
    for _ in range(4):
        before = params
        params, opt_state = step(params, opt_state)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    chex.assert_trees_all_close((params, opt_state), expected, rtol=RTOL)
    assert optax.tree.get(opt_state, "trace")["bias"].shape == (3,)


@every_kind
def test_a_scan_over_steps_is_a_loop_over_steps(method):
    tx = with_sgd(method)
    step = make_step(method, tx)
    params = make_params()
    scanned, _ = jax.lax.scan(lambda c, _: (step(*c), None), (params, tx.init(params)), length=4)
    chex.assert_trees_all_close(scanned, run(method, tx, params), rtol=RTOL)


@every_method
def test_without_jit_it_is_the_same(method):
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


def over_seeds(method):
    tx = with_sgd(method)
    params = jax.vmap(
        lambda key: jax.tree.map(lambda p: p + jax.random.normal(key, p.shape), make_params())
    )(jax.random.split(jax.random.key(0), 3))
    opt_state = jax.vmap(tx.init)(params)
    axes = axes_of(opt_state)
    opt_state = jax.tree.map(
        lambda axis, x: x[0] if axis is None else x, axes, opt_state, is_leaf=lambda x: x is None
    )
    step = jax.jit(jax.vmap(make_step(method, tx), in_axes=(0, axes), out_axes=(0, axes)))
    return tx, step, params, opt_state


@every_kind
def test_vmap_over_seeds_is_a_loop_over_seeds(method):
    tx, step, params, opt_state = over_seeds(method)
    start = params
    for _ in range(4):
        params, opt_state = step(params, opt_state)
    for seed in range(3):
        alone, _ = run(method, tx, jax.tree.map(lambda p: p[seed], start))  # noqa: B023
        chex.assert_trees_all_close(jax.tree.map(lambda p: p[seed], params), alone, rtol=RTOL)  # noqa: B023


@probing_method
def test_vmap_with_one_counter_keeps_the_conditional(method):
    _, step, params, opt_state = over_seeds(method)
    assert "conditional(" in step.lower(params, opt_state).compile().as_text()


@every_method
def test_unknown_extra_arguments_change_nothing(method):
    tx, params = method.make(), make_params()
    grads, opt_state = jax.grad(loss_fn)(params), tx.init(params)

    def program(**extra_args):
        arguments = method.arguments(loss_fn) | extra_args
        return str(
            jax.make_jaxpr(functools.partial(tx.update, **arguments))(grads, opt_state, params)
        )

    assert program() == program(obj_fn=None, rng=3)


@gradient_method
def test_a_gradient_function_replaces_the_gradient_of_the_loss(method):
    """A function of twice the gradient, beside the loss, is as good as twice the loss."""
    tx, params = method.make(), make_params()

    def doubled(params):
        return 2.0 * loss_fn(params)

    grads = jax.grad(doubled)(params)
    expected, _ = tx.update(grads, tx.init(params), params, value_fn=doubled)
    updates, _ = tx.update(
        grads, tx.init(params), params, value_fn=loss_fn, grad_fn=jax.grad(doubled)
    )
    # The length over rho_max is a matter of losses alone.
    factor = 0.5 if method.statics.get("scale") == "slope_max" else 1.0
    chex.assert_trees_all_close(updates, optax.tree.scale(factor, expected), rtol=RTOL)
    ignored, _ = tx.update(grads, tx.init(params), params, value_fn=loss_fn)
    assert not np.allclose(updates["bias"], ignored["bias"], rtol=1e-3) or factor != 1.0


@every_method
def test_every_number_can_be_injected(method):
    params, opt_state = run(method, injected(method), make_params())
    expected, _ = run(method, with_sgd(method), make_params())
    chex.assert_trees_all_close(params, expected, rtol=RTOL)
    assert set(method.numbers) <= set(optax.tree.get(opt_state, "hyperparams"))


@every_method
def test_an_injected_radius_can_be_changed(method):
    tx, start = injected(method), make_params()
    before, _ = run(method, tx, start, 1)
    opt_state = optax.tree.set(tx.init(start), rho=jnp.float32(0.4))
    after, _ = run(method, tx, start, 1, opt_state)
    larger = with_sgd(method, rho=0.4)
    expected, _ = make_step(method, larger)(start, larger.init(start))
    # The steps, since the parameters are long beside them.
    steps = [optax.tree.sub(params, start) for params in (before, after, expected)]
    chex.assert_trees_all_close(steps[1], steps[2], rtol=RTOL)
    assert not np.allclose(steps[0]["bias"], steps[2]["bias"], rtol=1e-3)


@methods_that(lambda method: "steps" in method.static_args)
def test_a_static_argument_that_is_injected_is_named(method):
    inject = optax.inject_hyperparams(method.alias)
    with pytest.raises(TypeError, match=r"steps .*static_args=\('steps'"):
        inject(**method.numbers, **method.statics).init(make_params())


@methods_that(lambda method: not method.counts_sharp_steps)
def test_a_radius_schedule_moves_once_per_training_step(method):
    """As where the radius is set by hand, which the tests above compare with numbers."""
    params, opt_state = make_params(), scheduled(method).init(make_params())
    expected, other = make_params(), injected(method).init(make_params())
    for count in range(3):
        params, opt_state = run(method, scheduled(method), params, 1, opt_state)
        other = optax.tree.set(other, rho=jnp.float32(RADII(count)))
        expected, other = run(method, injected(method), expected, 1, other)
        chex.assert_trees_all_close(params, expected, rtol=RTOL)


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


@every_method
def test_apply_if_finite_after_it_skips_a_nan_of_any_gradient(method):
    """The clean gradient is finite; only what the ascent meets is not."""
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


@every_kind
def test_multi_steps_around_it_gives_zeros_while_accumulating(method):
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


@every_kind
def test_multi_steps_after_it_averages_sharpness_aware_gradients(method):
    inner = optax.MultiSteps(optax.sgd(LEARNING_RATE), every_k_schedule=2)
    tx, alone = optax.chain(method.make(), inner.gradient_transformation()), method.make()
    params = make_params()

    @jax.jit
    def update(factor, opt_state, state):
        def loss(point):
            return factor * loss_fn(optax.tree.scale(1 / factor, point))

        grads, arguments = jax.grad(loss)(params), method.arguments(loss)
        updates, opt_state = tx.update(grads, opt_state, params, **arguments)
        gradient, state = alone.update(grads, state, params, **arguments)
        return updates, opt_state, gradient, state

    _, opt_state, first, state = update(1.0, tx.init(params), alone.init(params))
    updates, _, second, _ = update(2.0, opt_state, state)
    expected = jax.tree.map(lambda a, b: -LEARNING_RATE * (a + b) / 2, first, second)
    chex.assert_trees_all_close(updates, expected, rtol=RTOL)


def subset_ascents(rho):
    others, selected = {"weight": True, "bias": False}, {"weight": False, "bias": True}
    zero = optax.masked(optax.set_to_zero(), others)
    length = scale_by_radius(rho)
    labels = {"weight": "zero", "bias": "climb"}
    return {
        "masked, norm of the subset": optax.chain(zero, normalize(), length),
        "masked, norm of everything": optax.chain(normalize(), length, zero),
        "partition": optax.partition(
            {"zero": optax.set_to_zero(), "climb": optax.chain(normalize(), length)}, labels
        ),
        "masked ascent": optax.chain(
            zero, optax.masked(optax.chain(normalize(), length), selected)
        ),
    }


@pytest.mark.parametrize("name", subset_ascents(0.1))
def test_masks_inside_the_ascent_perturb_a_subset(name):
    rho, params = 0.1, make_params()
    grads = jax.grad(loss_fn)(params)
    whole = optax.tree.norm(grads if name == "masked, norm of everything" else grads["bias"])
    point = {"weight": params["weight"], "bias": params["bias"] + rho * grads["bias"] / whole}
    tx = xsam_jax.sharpness_aware(subset_ascents(rho)[name])
    updates, _ = jax.jit(functools.partial(tx.update, value_fn=loss_fn))(
        grads, tx.init(params), params
    )
    chex.assert_trees_all_close(updates, jax.grad(loss_fn)(point), rtol=RTOL)
    search = optax.chain(slerp_to_maximum(0.2), match_norm(unit=True))
    tx = xsam_jax.sharpness_aware(subset_ascents(rho)[name], search)
    updates, _ = jax.jit(functools.partial(tx.update, value_fn=loss_fn))(
        grads, tx.init(params), params
    )
    chex.assert_tree_all_finite(updates)


BACKTRACKING = optax.chain(
    optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)
)


@methods_that(lambda method: not (method.sample_losses or method.optimizer), REPRESENTATIVES)
def test_a_line_search_follows_it(method):
    assert_descends_with(method, BACKTRACKING)


# Its line search takes the same arguments, and long to compile.
@pytest.mark.parametrize("method", [METHODS["sam"], METHODS["xsam, two steps"]])
def test_lbfgs_follows_it(method):
    assert_descends_with(method, optax.lbfgs())


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


@every_method
def test_map_params_finds_the_parameters_in_the_state(method):
    tx = with_sgd(method, rho=optax.constant_schedule(0.1))
    opt_state = tx.init(make_params())
    mapped = optax.tree.map_params(tx, lambda leaf: leaf + 1, opt_state)
    chex.assert_trees_all_equal(
        optax.tree.get(mapped, "trace"),
        optax.tree.scale(1.0, jax.tree.map(jnp.ones_like, make_params())),
    )
    # Besides the momentum: averages of gradients, and directions.
    like_parameters = {"trace", "average", "orthogonal"}

    def moved(path):
        return bool(like_parameters & {getattr(key, "name", None) for key in path})

    jax.tree_util.tree_map_with_path(
        lambda path, leaf, before: np.testing.assert_array_equal(leaf, before + moved(path)),
        mapped,
        opt_state,
    )


def update_at_alpha(method, dtype):
    """An update with alpha* given, and its arguments: in half precision, probes are rounding."""
    tx, params = method.make(), make_params(dtype)
    opt_state = tx.init(params)
    if method.probes:
        values = {"count": 1, "alpha": 1.5}
        # A gate has a count around that of the method, which optax.tree.set would not reach.
        opt_state = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.full_like(leaf, values.get(path[-1].name, leaf)), opt_state
        )
    update = functools.partial(tx.update, **method.arguments(loss_fn))
    return update, (jax.grad(loss_fn)(params), opt_state, params)


@functools.cache
def gradient_at_alpha(method, dtype):
    update, arguments = update_at_alpha(method, dtype)
    return arguments, *jax.jit(update)(*arguments)


@every_method
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes_in_are_dtypes_out(method, dtype):
    (_, opt_state, params), updates, after = gradient_at_alpha(method, dtype)
    chex.assert_trees_all_equal_shapes_and_dtypes((updates, after), (params, opt_state))
    (_, opt_state, params), expected, after = gradient_at_alpha(method, "float32")
    chex.assert_trees_all_equal_shapes_and_dtypes((expected, after), (params, opt_state))
    # Of a perturbation of 0.3 to parameters of 2, bfloat16 keeps one part in a hundred.
    rtol = {"bfloat16": 0.1, "float16": 1e-2}[dtype]
    chex.assert_trees_all_close(optax.tree.cast(updates, "float32"), expected, rtol=rtol)


@every_method
def test_float64_in_is_float64_out(method, x64):
    """Traced only: that the values are right is in test_values.py and test_family.py."""
    update, arguments = update_at_alpha(method, "float64")
    _, opt_state, params = arguments
    updates, after = jax.eval_shape(update, *arguments)
    chex.assert_trees_all_equal_shapes_and_dtypes((updates, after), (params, opt_state))


@probing_method
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_probe_in_half_precision_keeps_dtypes(method, dtype):
    params, opt_state = make_params(dtype), method.make().init(make_params(dtype))
    grads = jax.grad(loss_fn)(params)
    updates, after = method.make().update(grads, opt_state, params, value_fn=loss_fn)
    chex.assert_trees_all_equal_shapes_and_dtypes((updates, after), (params, opt_state))
    assert 0 <= optax.tree.get(after, "alpha") <= 3


@every_method
def test_gradients_may_have_another_dtype_than_the_parameters(method):
    tx, params = method.make(), make_params(jnp.bfloat16)
    grads = optax.tree.cast(jax.grad(loss_fn)(params), jnp.float32)
    updates, _ = tx.update(grads, tx.init(params), params, **method.arguments(loss_fn))
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, grads)


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
def test_any_container_may_be_the_outermost(method, name):
    """Traced only: values are below."""
    tx, params = method.make(), containers()[name]
    update = functools.partial(tx.update, **method.arguments(loss_fn))
    updates, _ = jax.eval_shape(update, jax.grad(loss_fn)(params), tx.init(params), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)


@every_method
def test_a_pytree_of_all_containers_is_as_good_as_a_list(method):
    weight, bias = make_params()["weight"], make_params()["bias"]
    tx, state = method.make(), nnx.State({"a": nnx.Param(weight[0])})
    nested = {"b": [bias], "c": (weight, None), "d": {}, "e": jnp.zeros((0, 3))}
    params = Pair(nested, {"nnx": state, "pure": nnx.as_pure(state)})

    # One program, in which most of the one side is that of the other.
    @jax.jit
    def both(params):
        return [
            tx.update(jax.grad(loss_fn)(p), tx.init(p), p, **method.arguments(loss_fn))[0]
            for p in (params, jax.tree.leaves(params))
        ]

    updates, expected = both(params)
    chex.assert_trees_all_equal_structs(updates, params)
    chex.assert_trees_all_close(jax.tree.leaves(updates), expected, rtol=RTOL)


@every_method
def test_a_restored_run_continues_bit_for_bit(method, tmp_path):
    tx = scheduled(method)
    params, opt_state = run(method, tx, make_params(), 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", (params, opt_state))
        checkpointer.wait_until_finished()
        blank = jax.tree.map(jnp.zeros_like, (params, opt_state))
        restored = checkpointer.restore(tmp_path / "state", blank)
    chex.assert_trees_all_equal_structs(restored, (params, opt_state))
    resumed = run(method, tx, *[restored[0]], 3, restored[1])
    uninterrupted = run(method, tx, make_params(), 6)
    chex.assert_trees_all_equal(resumed, uninterrupted)
