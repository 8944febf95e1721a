"""Zero and vanishing gradients, planes that are none, losses and gradients that are not finite."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from methods import METHODS

import xsam_jax
from xsam_jax import _tree as tree
from xsam_jax.descent import match_norm, slerp, slerp_to_maximum
from xsam_jax.descent.alpha_search import section_search

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
START = jnp.array([1.0, -2.0, 0.5])


def bowl(params):
    return jnp.sum(jnp.array([1.0, 3.0, 0.5]) * params**2)


def update(tx, params=START, value_fn=bowl, grads=None, state=None, arguments=None):
    state = tx.init(params) if state is None else state
    grads = jax.grad(value_fn)(params) if grads is None else grads
    arguments = {"value_fn": value_fn} if arguments is None else arguments
    return jax.jit(lambda g, s, p: tx.update(g, s, p, **arguments))(grads, state, params)


def update_with(method, value_fn=bowl, **kwargs):
    arguments = method.arguments(value_fn)
    return update(method.make(), value_fn=value_fn, arguments=arguments, **kwargs)


def give(perturbation):
    """An ascent that climbs to a place of the test's choice."""
    return optax.stateless(lambda updates, params: perturbation)


def counting(value_fn):
    """The function, and the list of points at which it was evaluated at run time."""
    points = []

    def counted(params):
        jax.debug.callback(lambda p: points.append(np.asarray(p)), params)
        return value_fn(params)

    return counted, points


@every_method
def test_a_zero_gradient_moves_nothing(method):
    updates, state = update_with(method, params=jnp.zeros(3))
    chex.assert_trees_all_equal(updates, jnp.zeros(3))
    chex.assert_tree_all_finite(state)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_a_tiny_gradient_is_normalized_or_vanishes(dtype):
    """1e-7 is subnormal in float16; its square underflows in every half precision."""
    gradient = jnp.full((4,), 1e-7, dtype)
    direction = tree.unit(gradient)
    np.testing.assert_allclose(direction, 0.5, rtol=1e-5)
    chex.assert_trees_all_equal(tree.unit(jnp.full((4,), 1e-30)), jnp.zeros(4))


def test_no_remnant_of_an_underflow_is_divided_by():
    """Squares of 1e-20 are lost; were the one of 2e-19 kept, the direction would be 50 long."""
    gradient = jnp.full((1_000_000,), 1e-20).at[0].set(2e-19)
    assert tree.norm(tree.unit(gradient)) < 1.1


def test_a_norm_below_its_documented_bound_is_zero():
    """3e-16 times the root of the number of entries: it grows, as what underflow loses does."""
    for size in (1, 10_000):
        bound = 3.15e-16 * size**0.5
        for factor, kept in ((0.99, False), (1.01, True)):
            leaf = jnp.zeros(size).at[0].set(factor * bound)
            assert (tree.norm(leaf) > 0) == kept


def test_an_overflowing_norm_is_not_taken_for_zero():
    assert jnp.all(jnp.isnan(tree.unit(jnp.full((4,), 1e30))))


@every_method
def test_a_bad_clean_gradient_is_not_hidden_by_a_loss_that_is_flat_at_nan(method):
    def hinge(params):
        return jnp.sum(jax.nn.relu(1.0 - params))

    updates, _ = update_with(method, hinge, grads=jnp.full((3,), jnp.nan))
    assert jnp.all(jnp.isnan(updates))


@every_method
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_bad_clean_gradient_comes_out_as_nan(method, bad):
    updates, _ = update_with(method, grads=jnp.array([1.0, bad, 1.0]))
    assert not jnp.all(jnp.isfinite(updates))


@every_method
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_bad_clean_gradient_leaves_no_trace_in_the_state(method, bad):
    """Else no optax.apply_if_finite could help: averages would be NaN for good."""
    if method.optimizer:
        pytest.skip("momentum is part of it")
    _, state = update_with(method)
    _, state = update_with(method, grads=jnp.array([1.0, bad, 1.0]), state=state)
    psi = optax.tree.get(state, "psi", 0.0)
    assert jnp.isnan(psi) or psi == 0.0, "psi is of the last step, and not read by the next"
    updates, state = update_with(method, state=state)
    chex.assert_tree_all_finite((updates, state))


@every_method
def test_a_bad_gradient_of_the_ascent_comes_out_as_nan_and_leaves_alpha(method):
    def loss(params):
        return jnp.where(jnp.all(params == START), 1.0, jnp.nan) * bowl(params)

    state = method.make().init(START)
    if method.probes:
        state = optax.tree.set(state, alpha=jnp.float32(1.25))
    updates, after = update_with(method, loss, state=state)
    assert jnp.all(jnp.isnan(updates))
    if method.probes:
        assert optax.tree.get(after, "alpha") == 1.25


def test_a_warm_up_from_zero_probes_nothing_at_first():
    """Without a displacement there is no plane: the step is SGD's, alpha stays, later it probes."""
    counted, points = counting(bowl)
    tx = xsam_jax.xsam(optax.linear_schedule(0.0, 0.5, 1), 0.6, probe_every=1)
    gradient = jax.grad(bowl)(START)
    updates, state = update(tx, value_fn=counted, grads=gradient)
    jax.effects_barrier()
    chex.assert_trees_all_close(updates, gradient, rtol=1e-6)
    assert optax.tree.get(state, "alpha") == 1.0
    assert len(points) == 1
    _, state = update(tx, value_fn=counted, grads=gradient, state=state)
    jax.effects_barrier()
    assert optax.tree.get(state, "alpha") != 1.0
    assert len(points) == 1 + 1 + 21


@pytest.mark.parametrize("scale", ["slope", "slope_max"])
def test_without_a_displacement_a_slope_is_its_limit(scale):
    """That of the rise to theta_k is ||g_0||; the rise to rho_max is still there."""
    tx = xsam_jax.xsam(0.0, 1e-3, scale=scale)
    gradient = jax.grad(bowl)(START)
    updates, _ = update(tx)
    np.testing.assert_allclose(tree.norm(updates), tree.norm(gradient), rtol=5e-3)


def descend(descent, perturbation, gradient, value_fn=bowl, state=None):
    """The descent's answer where the ascent led to `perturbation` and saw `gradient` there."""
    tx = xsam_jax.sharpness_aware(give(perturbation), descent)
    state = tx.init(START) if state is None else state
    update_fn = jax.jit(
        lambda s: tx.update(gradient, s, START, value_fn=value_fn, grad_fn=lambda p: gradient)
    )
    return update_fn(state)


AXES = jnp.eye(3)


@pytest.mark.parametrize("scale", ["slope", "slope_max"])
def test_a_slope_is_signed(scale):
    """Where the loss falls on the way, the step is reversed: here from 1 to 0.64 along -x."""
    descent = optax.chain(slerp(0.0), match_norm(scale, 0.2))
    updates, _ = descend(descent, -0.2 * AXES[0], 5.0 * AXES[1])
    np.testing.assert_allclose(updates, (0.36 / 0.2) * AXES[0], atol=1e-5)


def test_a_unit_direction_is_not_measured_again():
    """Given one of norm 2, `unit=True` believes that it is 1."""
    double = optax.stateless(lambda updates, params: 2.0 * AXES[1])
    for unit, length in ((False, 5.0), (True, 10.0)):
        updates, _ = descend(optax.chain(double, match_norm(unit=unit)), AXES[0], 5.0 * AXES[0])
        np.testing.assert_allclose(updates, length * AXES[1], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_parallel_vectors_slerp_to_themselves(alpha):
    updates, _ = descend(slerp(alpha), 0.1 * AXES[0], 5.0 * AXES[0])
    np.testing.assert_allclose(updates, AXES[0], atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_antiparallel_vectors_give_the_gradient(alpha):
    updates, _ = descend(slerp(alpha), -0.1 * AXES[0], 5.0 * AXES[0])
    np.testing.assert_allclose(updates, AXES[0], atol=1e-6)


@pytest.mark.parametrize("angle", [1e-5, 1e-3, 1.0, 3.0, np.pi - 2e-3])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.7])
def test_slerp_rotates_by_the_fraction_of_the_angle(angle, alpha):
    end = jnp.array([np.cos(angle), np.sin(angle), 0.0])
    updates, _ = descend(slerp(alpha), 0.1 * AXES[0], 7.0 * end)
    expected = [np.cos(alpha * angle), np.sin(alpha * angle), 0.0]
    # Towards pi rounding is divided by sin(angle), at worst 2e-3 here.
    amplification = 1 / np.sin(angle) if angle > 2 else 1.0
    np.testing.assert_allclose(updates, expected, atol=4e-7 * amplification)


@pytest.mark.parametrize("start", [AXES[0], -AXES[0], 0 * AXES[0]], ids=["psi=0", "psi=pi", "none"])
def test_where_there_is_no_plane_nothing_is_probed(start):
    counted, points = counting(bowl)
    descent = optax.chain(slerp_to_maximum(0.5, probe_every=1), match_norm())
    updates, state = descend(descent, 0.1 * start, 5.0 * AXES[0], counted)
    jax.effects_barrier()
    np.testing.assert_allclose(updates, 5.0 * AXES[0], rtol=1e-6)
    assert optax.tree.get(state, "alpha") == 1.0
    assert points == []


def probe(loss_of_angle, search="grid", state=None):
    """alpha* for v_0, v_1 a radian apart, and a loss that depends on the direction only."""

    def value_fn(params):
        offset = params - START
        return loss_of_angle(jnp.arctan2(offset[1], offset[0]))

    descent = slerp_to_maximum(0.5, search=search, alpha_max=3.0, num_alphas=31)
    end = jnp.array([np.cos(1.0), np.sin(1.0), 0.0])
    _, state = descend(descent, 0.1 * AXES[0], end, value_fn)
    return float(state.descent.alpha)


both_searches = pytest.mark.parametrize("search", ["grid", "section"])


@both_searches
def test_the_highest_loss_wins(search):
    assert probe(lambda angle: -((angle - 1.32) ** 2), search) == pytest.approx(1.3)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@both_searches
def test_a_loss_that_is_not_finite_never_wins(bad, search):
    """Beyond 2 rad it is not finite, and before that it rises."""
    assert probe(lambda angle: jnp.where(angle > 2.05, bad, angle), search) == pytest.approx(2.0)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@both_searches
def test_where_no_loss_is_finite_alpha_stays(bad, search):
    assert probe(lambda angle: bad + 0.0 * angle, search) == 1.0


@both_searches
def test_of_equal_losses_the_first_wins(search):
    assert probe(lambda angle: jnp.minimum(angle, 1.15), search) == pytest.approx(1.2)


@pytest.mark.parametrize("size", [2, 3, 5, 21, 41])
def test_the_section_search_finds_every_peak_in_few_evaluations(size):
    for peak in range(size):
        counted, points = counting(lambda a: -jnp.abs(a - peak))  # noqa: B023
        index, loss = section_search(counted, jnp.arange(size, dtype=jnp.float32))
        jax.effects_barrier()
        assert int(index) == peak
        assert loss == 0.0
        assert len(points) == {2: 2, 3: 3, 5: 4, 21: 7, 41: 8}[size]
