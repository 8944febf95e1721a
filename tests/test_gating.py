"""Gates on device and host, methods with a core of their own, random subsets, diagnostics."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

import xsam_jax
from xsam_jax import _tree as tree
from xsam_jax import lr_coupled_rho
from xsam_jax.ascent import normalize, random_subset, scale_by_radius
from xsam_jax.descent import DIAGNOSTICS, match_norm, record, slerp_to_maximum, subtract_orthogonal
from xsam_jax.gating import after, bernoulli, every, gated, gradient_norm

LOSS = jax.jit(problems.network.loss)
NUM_STEPS = 8
KEY = jax.random.key(5)


def sphere(params):
    return jnp.sum(params**2)


def train_step(tx, params, opt_state, **extra_args):
    value, grads = jax.value_and_grad(LOSS)(params)
    updates, opt_state = tx.update(
        grads, opt_state, params, value_fn=LOSS, value=value, **extra_args
    )
    return optax.apply_updates(params, updates), opt_state


def run(tx, gate=None, num_steps=NUM_STEPS):
    """The parameters and states of all steps. A `gate` is evaluated on the host."""
    step = jax.jit(functools.partial(train_step, tx), static_argnames="sharp")
    params = problems.network.make_params()
    opt_state, history = tx.init(params), []
    for count in range(num_steps):
        decision = {} if gate is None else {"sharp": bool(gate(count))}
        params, opt_state = step(params, opt_state, **decision)
        history.append((params, opt_state))
    return history


HOST_GATES = {
    "every": every(3),
    "after": after(4),
    "bernoulli": bernoulli(0.5, KEY),
    "bernoulli, schedule": bernoulli(optax.linear_schedule(0.2, 0.9, NUM_STEPS), KEY),
    "raw key": bernoulli(0.5, jax.random.PRNGKey(5)),
    "own": lambda count: (count == 2) | (count == 5),
}
TRANSFORMS = {
    "sam": xsam_jax.sam(0.2),
    "xsam": xsam_jax.xsam(0.2, 0.4, probe_every=2),
    "friendly_sam": xsam_jax.friendly_sam(0.2, 0.5),
}


@pytest.mark.parametrize(
    ("name", "transform"),
    [*((name, "sam") for name in HOST_GATES), ("every", "xsam"), ("every", "friendly_sam")],
)
def test_gate_decides_the_same_on_host_and_device(name, transform):
    gate = HOST_GATES[name]
    decisions = [bool(gate(count)) for count in range(NUM_STEPS)]
    assert set(decisions) == {False, True}
    tx = optax.chain(gated(TRANSFORMS[transform], gate), optax.sgd(0.1, momentum=0.9))
    on_device, on_host = run(tx), run(tx, gate)
    # Two programs round differently. Counters and decisions are equal.
    chex.assert_trees_all_close(on_host, on_device, rtol=1e-4, atol=1e-6)
    for state in (on_device[-1][1][0], on_host[-1][1][0]):
        assert state.count == NUM_STEPS
        assert state.sharp_steps == sum(decisions)


def test_look_sam_accepts_a_decision_of_the_host():
    tx = optax.chain(xsam_jax.look_sam(0.2, 0.7, every=3), optax.sgd(0.1))
    on_device, on_host = run(tx), run(tx, every(3))
    chex.assert_trees_all_close(on_host, on_device, rtol=1e-4, atol=1e-6)
    assert on_host[-1][1][0].sharp_steps == on_device[-1][1][0].sharp_steps == 3


def test_decision_may_be_an_array():
    tx = gated(xsam_jax.sam(0.2), every(1000))
    params = problems.network.make_params()
    step = jax.jit(functools.partial(train_step, tx))
    for sharp in (False, True):
        _, state = step(params, tx.init(params), sharp=jnp.asarray(sharp))
        assert state.sharp_steps == sharp


@pytest.mark.parametrize("gate", [every(2), bernoulli(0.5, KEY)], ids=["every", "bernoulli"])
def test_vmap_with_an_unbatched_count_keeps_the_conditional(gate):
    tx = gated(xsam_jax.sam(0.2), gate)
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), problems.network.make_params())
    axes = optax.tree.set(jax.tree.map(lambda _: 0, tx.init(params)), count=None)
    for in_axes, kept in ((axes, True), (0, False)):
        opt_state = jax.vmap(tx.init, out_axes=in_axes)(params)
        step = jax.vmap(functools.partial(train_step, tx), (0, in_axes), (0, in_axes))
        assert ("cond[" in str(jax.make_jaxpr(step)(params, opt_state))) == kept


def test_line_search_follows_a_decision_of_the_host():
    """It refuses arguments that it does not know, so these are bound to the transform."""

    def bind(tx, **extra_args):
        return optax.GradientTransformationExtraArgs(
            tx.init, functools.partial(tx.update, **extra_args)
        )

    sam = gated(xsam_jax.sam(0.2), every(2))
    params = problems.network.make_params()
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=5)
    value, grad = jax.value_and_grad(LOSS)(params)
    for decision in (True, False):
        tx = optax.chain(bind(sam, sharp=decision), optax.scale(-1.0), search)
        update = jax.jit(functools.partial(tx.update, value_fn=LOSS))
        _, state = update(grad, tx.init(params), params, value=value, grad=grad)
        assert state[0].sharp_steps == decision


def test_random_gate_has_its_probability_and_no_pattern():
    decisions = jax.vmap(bernoulli(0.3, KEY))(jnp.arange(4000))
    # Four standard deviations of a mean of 4000 draws.
    assert abs(decisions.mean() - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
    assert abs((decisions[1:] & decisions[:-1]).mean() - 0.09) < 4 * (0.09 * 0.91 / 4000) ** 0.5


def test_random_gate_draws_the_same_with_and_without_x64():
    decisions = [bool(bernoulli(0.5, KEY)(count)) for count in range(64)]
    with jax.enable_x64(True):
        assert decisions == [bool(bernoulli(0.5, KEY)(count)) for count in range(64)]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_shut_gate_does_not_change_the_state_of_the_transform(transform):
    history = run(gated(TRANSFORMS[transform], after(3)), num_steps=5)
    inner = [state.inner for _, state in history]
    untouched = TRANSFORMS[transform].init(problems.network.make_params())
    chex.assert_trees_all_equal(inner[2], untouched)
    if jax.tree.leaves(untouched):
        with pytest.raises(AssertionError):
            chex.assert_trees_all_equal(inner[3], untouched)


def test_gradient_norm_gate_opens_for_large_gradients():
    tx = gated(xsam_jax.sam(0.2), gradient_norm(0.5))
    params = jnp.ones(3)
    update = jax.jit(functools.partial(tx.update, value_fn=sphere))
    state, opened = tx.init(params), []
    for length in (1.0, 1.0, 5.0, 1.0, 1.0, 4.0):
        before = state.sharp_steps
        _, state = update(length * params, state, params)
        opened.append(bool(state.sharp_steps - before))
    assert opened == [True, True, True, False, False, True]


def test_schedule_outside_the_gate_counts_training_steps():
    radii = optax.linear_schedule(0.0, 0.8, NUM_STEPS)
    gate = every(3)
    outside = optax.inject_hyperparams(lambda rho: gated(xsam_jax.sam(rho), gate))(rho=radii)
    inside = gated(xsam_jax.sam(radii), gate)
    params = problems.network.make_params()
    grads = jax.grad(LOSS)(params)

    def fourth_update(tx):
        state, update = tx.init(params), jax.jit(functools.partial(tx.update, value_fn=LOSS))
        for _ in range(4):
            updates, state = update(grads, state, params)
        return updates

    @jax.jit
    def sam(rho):
        tx = xsam_jax.sam(rho)
        return tx.update(grads, tx.init(params), params, value_fn=LOSS)[0]

    chex.assert_trees_all_close(fourth_update(outside), sam(radii(3)), rtol=1e-4, atol=1e-7)
    chex.assert_trees_all_close(fourth_update(inside), sam(radii(1)), rtol=1e-4, atol=1e-7)


# --- Gates around other conditionals, and methods with a core of their own ---


def conditional_descent():
    """Takes one more gradient within a conditional of its own."""

    def update(updates, state, params=None, *, grad_fn, **extra_args):
        further = jax.lax.cond(params is not None, grad_fn, lambda p: p, params)
        return optax.tree.add_scale(updates, 0.1, further), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@functools.cache
def params_of_ascent():
    """Parameters after adding the plain gradients."""
    return run(optax.with_extra_args_support(optax.identity()))[-1][0]


@pytest.mark.parametrize(
    "transform",
    [
        optax.apply_if_finite(xsam_jax.sam(0.2), 3),
        optax.transforms.conditionally_transform(
            xsam_jax.sam(0.2), lambda step: step >= 0, forward_extra_args=False
        ),
        xsam_jax.sharpness_aware(normalize(), conditional_descent()),
    ],
    ids=["apply_if_finite", "conditionally_transform", "descent"],
)
def test_gate_works_around_conditionals_of_others(transform):
    params, opt_state = run(gated(transform, every(2)))[-1]
    assert opt_state.sharp_steps == NUM_STEPS // 2
    assert optax.tree.norm(optax.tree.sub(params, params_of_ascent())) > 1e-3


def test_gradient_norm_gate_opens_for_huge_gradients_and_keeps_a_finite_state():
    gate = gradient_norm(1.0)
    state = gate.init()
    for length in (1.0, 1.0, 1e12, jnp.inf, jnp.nan, 1.0, 1e3, 0.1):
        sharp, state = gate.decide(jnp.array([length]), state, jnp.int32(0))
        assert sharp == (length != 0.1)
        assert np.all(np.isfinite(state))


def test_gated_keeps_the_dtype_of_the_gradient():
    sam = xsam_jax.sam(0.1)

    def float32_update(*arguments, **extra_args):
        result, state = sam.update(*arguments, **extra_args)
        return result.astype(jnp.float32), state

    tx = gated(optax.GradientTransformationExtraArgs(sam.init, float32_update), every(2))
    params = jnp.array([1.0, 2.0])
    for _ in range(2):
        result, _ = tx.update(params.astype(jnp.bfloat16), tx.init(params), params, value_fn=sphere)
        assert result.dtype == jnp.bfloat16


def test_decoupled_wsam_returns_the_dtype_of_the_inner_optimizer():
    params = jnp.array([1.0, 2.0])
    inner = optax.adamw(0.1)
    tx = xsam_jax.decoupled_wsam(
        inner, 0.1, rho=0.1, gamma=0.0
    )  # not a mix, which would be rounded
    grads = jax.grad(sphere)(params).astype(jnp.bfloat16)
    update = jax.jit(functools.partial(tx.update, value_fn=sphere))
    updates, _ = update(grads, tx.init(params), params)
    expected, _ = jax.jit(inner.update)(grads, inner.init(params), params)
    assert updates.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_look_sam_without_a_radius_is_the_base_optimizer():
    """Both gradients are equal then, so their difference is rounding."""
    tx, params = xsam_jax.look_sam(0.0, 0.7, every=2), problems.network.make_params()
    state, update = tx.init(params), jax.jit(functools.partial(tx.update, value_fn=LOSS))
    for _ in range(3):
        grads = jax.grad(LOSS)(params)
        updates, state = update(grads, state, params)
        chex.assert_trees_all_close(updates, grads, rtol=1e-4, atol=1e-7)
        params = optax.apply_updates(params, optax.tree.scale(-0.1, updates))


def test_look_sam_adds_an_orthogonal_direction_of_length_alpha():
    tx, params = xsam_jax.look_sam(0.2, 0.7, every=2), problems.network.make_params()
    grads, update = jax.grad(LOSS)(params), jax.jit(functools.partial(tx.update, value_fn=LOSS))
    _, state = update(grads, tx.init(params), params)
    updates, _ = update(grads, state, params)
    added = optax.tree.sub(updates, grads)
    ratio = optax.tree.norm(added) / optax.tree.norm(grads)
    np.testing.assert_allclose(ratio, 0.7, rtol=1e-5)
    # The point is the same, so it is orthogonal to this gradient too, up to float32.
    assert abs(tree.dot(added, grads)) < 1e-5 * optax.tree.norm(grads) ** 2


def test_decoupled_wsam_passes_extra_arguments_to_the_inner_optimizer():
    inner = optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)
    )
    tx, params = xsam_jax.decoupled_wsam(inner, 0.01, 0.05, 0.5), problems.network.make_params()
    value, grads = jax.value_and_grad(LOSS)(params)
    update = jax.jit(functools.partial(tx.update, value_fn=LOSS))
    updates, _ = update(grads, tx.init(params), params, value=value, grad=grads)
    assert LOSS(optax.apply_updates(params, updates)) < value


# --- Random subsets, and radii that follow the learning rate ---


@pytest.mark.parametrize("convention", ["paper", "official"])
def test_random_subset_keeps_the_perturbation_in_expectation(convention):
    tree = {"a": np.full(3, 2.0, np.float32), "b": np.ones(2, np.float32)}
    tx = random_subset(0.4, KEY, convention=convention)

    def draw(count):
        return tx.update(tree, tx.init(tree)._replace(count=count))[0]

    draws = jax.device_get(jax.jit(jax.vmap(draw))(np.arange(4000)))
    for name, leaf in tree.items():
        kept = draws[name] != 0
        np.testing.assert_allclose(draws[name][kept], leaf[0] / 0.4, rtol=1e-6)
        # Four standard deviations of a mean of 4000 draws.
        assert np.all(abs(kept.mean(axis=0) - 0.4) < 4 * (0.24 / 4000) ** 0.5)
        together = np.all(kept == kept[:, :1])
        assert together == (convention == "official"), "whole arrays, or single entries"
    assert np.any((draws["a"][:, 0] != 0) != (draws["b"][:, 0] != 0))


def test_ascent_steps_of_a_training_step_share_one_subset():
    seen = []
    spy = optax.stateless(lambda updates, params: (seen.append(updates["a"] != 0), updates)[1])
    ascent = optax.chain(normalize(), scale_by_radius(0.1), random_subset(0.5, KEY), spy)
    tx = xsam_jax.sharpness_aware(ascent, steps=2)
    params = {"a": jnp.ones(64)}
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(params, state, params, value_fn=lambda p: jnp.sum(p["a"] ** 2))
    np.testing.assert_array_equal(seen[0], seen[1])
    assert np.any(seen[0] != seen[2])


def test_radius_that_follows_the_learning_rate_is_not_negative():
    warm_up = optax.linear_schedule(0.0, 0.1, 10)
    rho = lr_coupled_rho(warm_up, rho_min=0.01, rho_max=0.2, lr_min=0.05, lr_max=0.1)
    values = [float(rho(count)) for count in range(11)]
    assert values[0] == 0.0
    np.testing.assert_allclose([values[5], values[10]], [0.01, 0.2], rtol=1e-5)
    assert values == sorted(values)


# --- Diagnostics ---


def recorded(descent, steps=1, **extra_args):
    ascent = optax.chain(normalize(), scale_by_radius(0.3))
    tx = xsam_jax.sharpness_aware(ascent, descent, steps=steps)
    params = problems.network.make_params(jnp.result_type(float))
    grads = jax.grad(LOSS)(params)
    updates, state = tx.update(grads, tx.init(params), params, value_fn=LOSS, **extra_args)
    return params, grads, updates, state


def test_recorded_diagnostics_have_their_definitions(x64):
    value = LOSS(problems.network.make_params(jnp.float64))
    params, g_0, _, state = recorded(record(), value=value)
    flat = lambda tree: np.asarray(jax.flatten_util.ravel_pytree(tree)[0])  # noqa: E731
    length = np.linalg.norm(flat(g_0))
    point = jax.tree.map(lambda p, g: p + 0.3 * g / length, params, g_0)
    g_1 = jax.grad(LOSS)(point)
    expected = {
        "perturbation_norm": 0.3,
        "first_gradient_norm": length,
        "last_gradient_norm": np.linalg.norm(flat(g_1)),
        "gradient_cosine": flat(g_0) @ flat(g_1) / length / np.linalg.norm(flat(g_1)),
        "loss_rise": LOSS(point) - value,
    }
    assert set(expected) == set(DIAGNOSTICS)
    for name, number in expected.items():
        np.testing.assert_allclose(optax.tree.get(state, name), number, rtol=1e-12)


def test_rise_without_the_initial_loss_is_nan():
    assert jnp.isnan(optax.tree.get(recorded(record())[-1], "loss_rise"))


def test_custom_diagnostics_receive_the_update_at_their_place_in_the_chain():
    descent = optax.chain(
        record({"before": lambda updates, path, params: optax.tree.norm(updates)}),
        subtract_orthogonal(0.4),
        record({"after": lambda updates, path, params: optax.tree.norm(updates)}),
    )
    _, _, updates, state = recorded(descent)
    norms = {name: optax.tree.get(state, name) for name in ("before", "after")}
    np.testing.assert_allclose(norms["after"], optax.tree.norm(updates), rtol=1e-6)
    assert norms["before"] != norms["after"]


def test_recording_does_not_change_the_update():
    descent = optax.chain(slerp_to_maximum(0.6, probe_every=2), match_norm())
    *_, plain, _ = recorded(descent)
    *_, logged, state = recorded(optax.chain(record(), descent, record({"one": lambda *_: 1})))
    chex.assert_trees_all_equal(logged, plain)
    assert optax.tree.get(state, "one") == 1.0


def test_recorded_state_has_a_fixed_structure():
    ascent = optax.chain(normalize(), scale_by_radius(0.3))
    tx = optax.chain(xsam_jax.sharpness_aware(ascent, record()), optax.sgd(0.1))
    params = problems.network.make_params()
    start = params, tx.init(params)
    assert jnp.isnan(optax.tree.get(start[1], "gradient_cosine"))

    def body(carry, _):
        carry = train_step(tx, *carry)
        return carry, optax.tree.get(carry[1], "gradient_cosine")

    _, cosines = jax.lax.scan(body, start, length=3)
    assert jnp.all((cosines > 0) & (cosines < 1))


def test_unrecorded_diagnostics_cost_nothing():
    ascent = optax.chain(normalize(), scale_by_radius(0.3))
    params = problems.network.make_params()

    def flops(descent):
        tx = xsam_jax.sharpness_aware(ascent, descent)
        step = jax.jit(functools.partial(train_step, tx))
        return step.lower(params, tx.init(params)).compile().cost_analysis()["flops"]

    assert flops(record({})) == flops(optax.identity())
    assert flops(record()) > flops(optax.identity())
