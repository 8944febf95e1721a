"""Zero and tiny gradients, parallel vectors, and losses and gradients that are not finite."""

import functools

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
from xsam_jax.descent.slerp import Plane

# One worker runs all tests, which share compiled programs.
pytestmark = pytest.mark.xdist_group("degenerate")
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
START = jnp.array([1.0, -2.0, 0.5])


def bowl(params):
    """A quadratic, with the gradient zero where a parameter is NaN or infinite."""
    params = jnp.where(jnp.isfinite(params), params, 0.0)
    return jnp.sum(jnp.array([1.0, 3.0, 0.5]) * params**2)


def update(tx, params=START, value_fn=bowl):
    grads = jax.grad(value_fn)(params)
    return jax.jit(functools.partial(tx.update, value_fn=value_fn))(grads, tx.init(params), params)


# --- Every method: one compiled update of several bad inputs ---

# Parameters, the gradient at these, and a factor of the loss wherever the ascent leads to.
GOOD = START, jax.grad(bowl)(START), 1.0
BAD = {
    "zero gradient": (0 * START, 0 * START, 1.0),
    "NaN entry": (START, GOOD[1].at[1].set(jnp.nan), 1.0),
    "infinite entry": (START, GOOD[1].at[1].set(jnp.inf), 1.0),
    "NaN everywhere": (START, 0 * START + jnp.nan, 1.0),
    "NaN loss after the ascent": (START, GOOD[1], jnp.nan),
}


def stack(rows):
    return tuple(
        jnp.stack([jnp.asarray(entry) for entry in column]) for column in zip(*rows, strict=True)
    )


def initial_states(method):
    """A state for each row, with an alpha that no default has."""
    state = method.make().init(START)
    if method.probes:
        state = optax.tree.set(state, alpha=jnp.float32(1.25))
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(BAD)), state)


@functools.cache
def compiled_update(method):
    """The updates of all rows in one call."""
    tx = method.make()

    def update_row(params, grads, factor, state):
        def loss(point):
            return jnp.where(jnp.all(point == params), 1.0, factor) * bowl(point)

        return tx.update(grads, state, params, **method.arguments(loss))

    return jax.jit(jax.vmap(update_row))


@functools.cache
def bad_update(method):
    """The updates and states of all rows of `BAD`, at the first step, when every gate is open."""
    updates, states = compiled_update(method)(*stack(BAD.values()), initial_states(method))
    return dict(zip(BAD, updates, strict=True)), states


def states_of(states, *names):
    rows = jnp.array([list(BAD).index(name) for name in names])
    return jax.tree.map(lambda leaf: leaf[rows], states)


@every_method
def test_zero_gradient_gives_a_zero_update(method):
    updates, states = bad_update(method)
    chex.assert_trees_all_equal(updates["zero gradient"], jnp.zeros(3))
    chex.assert_tree_all_finite(states_of(states, "zero gradient"))


@every_method
def test_bad_clean_gradient_gives_nan(method):
    """The gradient of the loss is zero, hence finite, at the NaN where the ascent ends."""
    updates, _ = bad_update(method)
    assert not jnp.all(jnp.isfinite(updates["NaN entry"]))
    assert not jnp.all(jnp.isfinite(updates["infinite entry"]))
    assert jnp.all(jnp.isnan(updates["NaN everywhere"]))


@every_method
def test_bad_gradient_of_the_ascent_gives_nan_and_keeps_alpha(method):
    updates, states = bad_update(method)
    assert jnp.all(jnp.isnan(updates["NaN loss after the ascent"]))
    if method.probes:
        alpha = optax.tree.get(states_of(states, "NaN loss after the ascent"), "alpha")
        np.testing.assert_array_equal(alpha, 1.25)


@every_method
def test_bad_gradient_does_not_stay_in_the_state(method):
    """A NaN that stays in an average makes all later steps NaN, so apply_if_finite cannot help."""
    if method.optimizer:
        pytest.skip("the momentum of its inner optimizer is part of the state")
    update_rows = compiled_update(method)
    good, bad = stack([GOOD] * len(BAD)), stack(BAD.values())
    _, after_first = bad_update(method)
    _, after_good = update_rows(*good, initial_states(method))
    _, after_second = update_rows(*bad, after_good)
    if method.probes:  # the next step does not read psi
        psi = optax.tree.get(after_first, "psi")
        np.testing.assert_allclose(psi, [np.pi / 2, *[np.nan] * 4])
    for state in (after_first, after_second):
        chex.assert_tree_all_finite(update_rows(*good, state))


# --- Norms ---


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_tiny_gradient_has_unit_direction_or_zero(dtype):
    """1e-7 is subnormal in float16, and its square underflows in every half precision."""
    gradient = jnp.full((4,), 1e-7, dtype)
    direction = tree.unit(gradient)
    np.testing.assert_allclose(direction, 0.5, rtol=1e-5)
    chex.assert_trees_all_equal(tree.unit(jnp.full((4,), 1e-30)), jnp.zeros(4))


def test_norm_of_an_underflow_does_not_inflate_the_direction():
    """Squares of 1e-20 are lost. With the one of 2e-19 kept, the direction would have norm 50."""
    gradient = jnp.full((1_000_000,), 1e-20).at[0].set(2e-19)
    assert tree.norm(tree.unit(gradient)) < 1.1


def test_norm_below_the_documented_bound_is_zero():
    """The bound is 3e-16 times the root of the number of entries, as the loss by underflow."""
    for size in (1, 10_000):
        bound = 3.15e-16 * size**0.5
        for factor, kept in ((0.99, False), (1.01, True)):
            leaf = jnp.zeros(size).at[0].set(factor * bound)
            assert (tree.norm(leaf) > 0) == kept


def test_overflowing_norm_gives_nan():
    assert jnp.all(jnp.isnan(tree.unit(jnp.full((4,), 1e30))))


# --- No plane, no displacement ---


def count_evaluations(value_fn):
    """The function, and the list of points at which it was evaluated at run time."""
    points = []

    def counted(params):
        jax.debug.callback(lambda p: points.append(np.asarray(p)), params)
        return value_fn(params)

    return counted, points


@pytest.mark.parametrize("steps", [1, 2])
def test_a_radius_of_zero_is_not_probed_whatever_the_rounding_of_the_first_gradient(steps):
    gradient = jax.grad(bowl)(START)
    rounded = gradient * (1 + 1e-4 * jnp.sin(jnp.arange(gradient.size)))
    tx = xsam_jax.xsam(0.0, 0.6, steps=steps, probe_every=1)
    _, state = tx.update(rounded, tx.init(START), START, value_fn=bowl)
    assert optax.tree.get(state, "alpha") == 1.0


def test_radius_of_zero_does_not_probe():
    """Without a displacement the step is SGD's, and alpha stays. The next step probes."""
    counted, points = count_evaluations(bowl)
    tx = xsam_jax.xsam(optax.linear_schedule(0.0, 0.5, 1), 0.6, probe_every=1)
    step = jax.jit(functools.partial(tx.update, value_fn=counted))
    gradient = jax.grad(bowl)(START)
    updates, state = step(gradient, tx.init(START), START)
    jax.effects_barrier()
    chex.assert_trees_all_close(updates, gradient, rtol=1e-6)
    assert optax.tree.get(state, "alpha") == 1.0
    assert len(points) == 1
    _, state = step(gradient, state, START)
    jax.effects_barrier()
    assert optax.tree.get(state, "alpha") != 1.0
    assert len(points) == 1 + 1 + 21


@pytest.mark.parametrize("scale", ["slope", "slope_max"])
def test_slope_without_displacement_is_its_limit(scale):
    """That of the rise to theta_k is ||g_0||. The rise to rho_max exists in any case."""
    updates, _ = update(xsam_jax.xsam(0.0, 1e-3, scale=scale))
    gradient = jax.grad(bowl)(START)
    np.testing.assert_allclose(tree.norm(updates), tree.norm(gradient), rtol=5e-3)


@pytest.mark.parametrize("angle", [0.1, 0.21, 2.9, np.pi - 0.031])
def test_angle_and_direction_of_a_million_entries(angle):
    """The sums of float32 numbers are as accurate as those of few."""
    rng = np.random.default_rng(0)
    start, side = rng.normal(size=(2, 1_000_000))
    side -= start * (start @ side) / (start @ start)
    start, side = start / np.linalg.norm(start), side / np.linalg.norm(side)
    # Rounded to float32 before the exact angle is taken.
    u, v = (
        np.float32(x) for x in (3 * start, 0.7 * (np.cos(angle) * start + np.sin(angle) * side))
    )
    exact_u, exact_v = (x / np.linalg.norm(x) for x in (np.float64(u), np.float64(v)))
    exact = 2 * np.arctan2(np.linalg.norm(exact_u - exact_v), np.linalg.norm(exact_u + exact_v))
    found, direction = slerped(u, v, 1.7)
    assert found == pytest.approx(exact, rel=1e-5)
    weights = np.sin([-0.7 * exact, 1.7 * exact]) / np.sin(exact)
    assert np.linalg.norm(direction - weights[0] * exact_u - weights[1] * exact_v) <= 1e-5


@jax.jit
def slerped(u, v, alpha):
    lengths = tree.divisor(u), tree.divisor(v)
    plane = Plane(u, v, *lengths, *tree.half_angle(u, v, *lengths))
    return plane.psi, plane.direction(jnp.float32(alpha))


AXES = jnp.eye(3)


def descend(descent, perturbation, gradient, value_fn=bowl):
    """The descent's update if the ascent moves by `perturbation` and finds `gradient` there."""
    ascent = optax.stateless(lambda updates, params: perturbation)
    tx = xsam_jax.sharpness_aware(ascent, descent)
    functions = {"value_fn": value_fn, "grad_fn": lambda params: gradient}
    return tx.update(gradient, tx.init(START), START, **functions)


@pytest.mark.parametrize("scale", ["slope", "slope_max"])
def test_slope_is_signed(scale):
    """The loss falls from 1 to 0.64 along -x, so the step is reversed."""
    descent = optax.chain(slerp(0.0), match_norm(scale, 0.2))
    updates, _ = jax.jit(lambda: descend(descent, -0.2 * AXES[0], 5.0 * AXES[1]))()
    np.testing.assert_allclose(updates, (0.36 / 0.2) * AXES[0], atol=1e-5)


def test_unit_true_does_not_measure_the_direction():
    """A direction of norm 2 with `unit=True` gives twice the length."""
    double = optax.stateless(lambda updates, params: 2.0 * AXES[1])
    for unit, length in ((False, 5.0), (True, 10.0)):
        updates, _ = descend(optax.chain(double, match_norm(unit=unit)), AXES[0], 5.0 * AXES[0])
        np.testing.assert_allclose(updates, length * AXES[1], rtol=1e-6)


# The updates of rows of alpha, displacement and gradient.
slerp_rows = jax.jit(jax.vmap(lambda alpha, start, end: descend(slerp(alpha), start, end)[0]))


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["parallel", "antiparallel"])
def test_slerp_of_parallel_vectors_is_the_direction_of_the_gradient(sign):
    ends = jnp.stack([sign * 0.1 * AXES[0]] * 3), jnp.stack([5.0 * AXES[0]] * 3)
    updates = slerp_rows(jnp.array([0.0, 0.5, 2.0]), *ends)
    np.testing.assert_allclose(updates, jnp.stack([AXES[0]] * 3), atol=1e-6)


def test_slerp_rotates_by_the_fraction_of_the_angle():
    angles, alphas = [1e-5, 1e-3, 1.0, 3.0, np.pi - 0.031], [0.0, 0.5, 1.0, 1.7]
    angle, alpha = (grid.ravel() for grid in np.meshgrid(angles, alphas))
    ends = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    starts = np.tile([0.1, 0.0, 0.0], (len(angle), 1))
    updates = slerp_rows(jnp.array(alpha), jnp.array(starts), jnp.array(7.0 * ends))
    turned = alpha * angle
    expected = np.stack([np.cos(turned), np.sin(turned), 0 * turned], axis=1)
    # Towards pi the rounding error is divided by sin(angle), at worst 0.031 here.
    amplification = np.where(angle > 2, 1 / np.sin(angle), 1.0)
    assert np.all(np.abs(updates - expected) < 4e-7 * amplification[:, None])


def test_slerp_beyond_the_largest_angle_is_the_direction_of_the_gradient():
    angle = np.array([np.pi - 0.029, np.pi - 1e-3])
    ends = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    updates = slerp_rows(jnp.full(2, 1.7), jnp.tile(AXES[0], (2, 1)), jnp.array(7.0 * ends))
    np.testing.assert_allclose(updates, ends, atol=1e-6)


@functools.cache
def probe_along():
    """A compiled probe at the end of a given displacement, and the points it evaluates."""
    counted, points = count_evaluations(bowl)
    descent = optax.chain(slerp_to_maximum(0.5, probe_every=1), match_norm())
    probe = jax.jit(lambda displacement: descend(descent, displacement, 5.0 * AXES[0], counted))
    return probe, points


@pytest.mark.parametrize("start", [AXES[0], -AXES[0], 0 * AXES[0]], ids=["psi=0", "psi=pi", "none"])
def test_without_a_plane_nothing_is_probed(start):
    probe, points = probe_along()
    updates, state = probe(0.1 * start)
    jax.effects_barrier()
    np.testing.assert_allclose(updates, 5.0 * AXES[0], rtol=1e-6)
    assert optax.tree.get(state, "alpha") == 1.0
    assert points == []


# --- The two searches ---

# Losses of the angle to v_0, and alpha* for v_0, v_1 a radian apart on the grid 0, 0.1, ..., 3.
NOT_FINITE = {"NaN": np.nan, "inf": np.inf, "-inf": -np.inf}
SEARCHED = {
    "one maximum": (lambda angle: -((angle - 1.32) ** 2), 1.3),
    "equal losses from 1.15 on": (lambda angle: jnp.minimum(angle, 1.15), 1.2),
    **{
        f"{name} beyond 2.05": (lambda angle, bad=bad: jnp.where(angle > 2.05, bad, angle), 2.0)
        for name, bad in NOT_FINITE.items()
    },
    **{
        f"{name} everywhere": (lambda angle, bad=bad: bad + 0.0 * angle, 1.0)  # the initial alpha
        for name, bad in NOT_FINITE.items()
    },
}


@functools.cache
def alphas_found(search):
    """alpha* for every loss of `SEARCHED`, in one compiled call."""

    def find(index):
        def value_fn(params):
            offset = params - START
            angle = jnp.arctan2(offset[1], offset[0])
            return jnp.stack([loss(angle) for loss, _ in SEARCHED.values()])[index]

        descent = slerp_to_maximum(0.5, search=search, alpha_max=3.0, num_alphas=31)
        end = jnp.array([np.cos(1.0), np.sin(1.0), 0.0])
        return descend(descent, 0.1 * AXES[0], end, value_fn)[1].descent.alpha

    return dict(zip(SEARCHED, jax.jit(jax.vmap(find))(jnp.arange(len(SEARCHED))), strict=True))


@pytest.mark.parametrize("search", ["grid", "section"])
@pytest.mark.parametrize("name", SEARCHED)
def test_search_finds_the_first_finite_maximum(name, search):
    """Where no loss is finite, alpha stays."""
    assert float(alphas_found(search)[name]) == pytest.approx(SEARCHED[name][1])


@pytest.mark.parametrize("size", [2, 3, 5, 21, 41])
def test_section_search_finds_every_peak_in_few_evaluations(size):
    evaluated = []

    @jax.jit
    def find(peak):
        def loss_at(alpha):
            jax.debug.callback(lambda: evaluated.append(1))
            return -jnp.abs(alpha - peak)

        return section_search(loss_at, jnp.arange(size, dtype=jnp.float32))

    for peak in range(size):
        evaluated.clear()
        index, loss = find(peak)
        jax.effects_barrier()
        assert int(index) == peak
        assert loss == 0.0
        assert len(evaluated) == {2: 2, 3: 3, 5: 4, 21: 7, 41: 8}[size]
