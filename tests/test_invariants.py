"""Identities between the methods, and properties of xsam and of the geometry on random trees."""

import functools
from typing import NamedTuple

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from problems import PROBLEMS

import xsam_jax
from xsam_jax import _tree as tree
from xsam_jax.ascent import normalize, scale_by_radius
from xsam_jax.descent import match_norm, slerp

hypothesis.settings.register_profile(
    "tests", deadline=None, max_examples=50, derandomize=True, database=None
)
hypothesis.settings.load_profile("tests")

# One worker runs all tests, which share compiled programs.
pytestmark = pytest.mark.xdist_group("invariants")
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)


def start_of(problem):
    """The initial parameters in the current precision, and their gradient."""
    params = problem.make_params(jnp.result_type(float))
    return params, jax.grad(problem.loss)(params)


def update_of(tx, problem):
    params, grads = start_of(problem)
    return tx.update(grads, tx.init(params), params, value_fn=problem.loss)[0]


@every_problem
def test_slerp_sam_at_one_is_sam(problem, precision):
    sam, slerp_sam = jax.jit(
        lambda: [
            update_of(tx, problem)
            for tx in (xsam_jax.sam(0.2, steps=2), xsam_jax.slerp_sam(0.2, 1.0, steps=2))
        ]
    )()
    chex.assert_trees_all_close(slerp_sam, sam, rtol=64 * precision, atol=8 * precision)


@every_problem
def test_slerp_sam_at_zero_has_the_direction_of_the_ascent(problem, precision):
    direction = jax.jit(lambda: tree.unit(update_of(xsam_jax.slerp_sam(0.2, 0.0), problem)))()
    clean = tree.unit(start_of(problem)[1])
    chex.assert_trees_all_close(direction, clean, rtol=64 * precision, atol=8 * precision)


@every_problem
def test_sam_with_radius_zero_is_the_base_optimizer(problem, precision):
    chex.assert_trees_all_equal(update_of(xsam_jax.sam(0.0), problem), start_of(problem)[1])


@every_problem
@pytest.mark.parametrize(
    "make", [xsam_jax.sam, lambda rho: xsam_jax.xsam(rho, rho)], ids=["sam", "xsam"]
)
def test_vanishing_radius_leads_to_the_base_optimizer(problem, make, x64):
    _, clean = start_of(problem)

    @jax.jit
    def distance(rho):
        updates = update_of(make(rho), problem)
        return tree.norm(optax.tree.sub(updates, clean)) / tree.norm(clean)

    distances = [distance(rho) for rho in (1e-2, 1e-4, 1e-6)]
    assert distances[0] > 1e-4, "at this radius it should differ"
    assert distances[1] < 0.02 * distances[0]
    assert distances[2] < 0.02 * distances[1]


@every_problem
def test_xsam_probes_the_first_step_and_every_nth(problem):
    tx = xsam_jax.xsam(0.3, 0.6, probe_every=3, alpha_max=4.0)
    params, alphas = problem.make_params(), []
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(problem.loss)(params)
        updates, state = tx.update(grads, state, params, value_fn=problem.loss)
        return optax.apply_updates(params, optax.tree.scale(-0.1, updates)), state

    for _ in range(7):
        params, state = step(params, state)
        alphas.append(float(optax.tree.get(state, "alpha")))
    assert alphas[0] == alphas[1] == alphas[2]
    assert alphas[3] == alphas[4] == alphas[5]
    assert len({alphas[0], alphas[3], alphas[6]}) > 1
    assert optax.tree.get(state, "count") == 7


# --- Properties of xsam: random losses and hyperparameters, one compiled program for each tree ---


def flat(tree_):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree_)]).astype(np.float64)


SHAPES = {
    "one leaf": (3,),
    "nested": {"weight": (2, 2), "rest": [(), (1, 4)]},
}
NUM_ALPHAS = 6


def random_trees(name, seed):
    """Parameters, and the coefficients of a loss that is neither convex nor bounded."""
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(
            lambda shape: jnp.asarray(rng.normal(size=shape)),
            SHAPES[name],
            is_leaf=lambda node: isinstance(node, tuple),
        )
        for _ in range(4)
    ]


def random_loss(params, coefficients, factor):
    """A quadratic with curvatures of both signs, a slope and a wave in each parameter."""
    terms = jax.tree.map(
        lambda x, a, b, c: jnp.sum(a * x**2 + b * x + c * jnp.sin(3 * x)), params, *coefficients
    )
    return factor * sum(jax.tree.leaves(terms))


@functools.cache
def compiled_xsam(probe_batch_size=None):
    """A step of xsam and one of sam, for any tree, loss and radius."""

    @jax.jit
    def step(params, coefficients, factor, rho, rho_max, alpha_max):
        xsam = xsam_jax.xsam(
            rho,
            rho_max,
            alpha_max=alpha_max,
            num_alphas=NUM_ALPHAS,
            probe_batch_size=probe_batch_size,
        )

        def loss(params):
            return random_loss(params, coefficients, factor)

        grads, state = jax.grad(loss)(params), xsam.init(params)
        updates, new_state = xsam.update(grads, state, params, value_fn=loss)
        sam = xsam_jax.sam(rho)
        sam_updates, _ = sam.update(grads, sam.init(params), params, value_fn=loss)
        return {
            "grads": grads,
            "states": (state, new_state),
            "updates": updates,
            "sam": sam_updates,
            "alpha": optax.tree.get(new_state, "alpha"),
            "psi": optax.tree.get(new_state, "psi"),
        }

    return step


class Case(NamedTuple):
    shapes: str
    seed: int
    rho: float
    rho_max: float
    alpha_max: float


given_case = hypothesis.given(
    st.builds(
        Case,
        st.sampled_from(sorted(SHAPES)),
        st.integers(0, 2**31),
        st.floats(0.01, 2.0),
        st.floats(0.05, 3.0),
        st.floats(0.5, 5.0),
    )
)
few_examples = hypothesis.settings(max_examples=20)


def take_step(case, factor=1.0, probe_batch_size=None):
    """The results of one step in float64, as NumPy arrays."""
    with jax.enable_x64(True):
        params, *coefficients = random_trees(case.shapes, case.seed)
        step = compiled_xsam(probe_batch_size)
        return jax.tree.map(np.asarray, step(params, coefficients, factor, *case[2:]))


@few_examples
@given_case
def test_xsam_keeps_the_structure_of_its_state(case):
    step = take_step(case)
    chex.assert_trees_all_equal_shapes_and_dtypes(*step["states"])
    chex.assert_trees_all_equal_shapes_and_dtypes(step["updates"], step["grads"])
    chex.assert_tree_all_finite(step)


@few_examples
@given_case
def test_xsam_finds_alpha_on_the_grid(case):
    grid = np.linspace(0.0, case.alpha_max, NUM_ALPHAS)
    assert np.min(np.abs(grid - take_step(case)["alpha"])) < 1e-12


@few_examples
@given_case
def test_xsam_turns_by_alpha_psi_and_keeps_the_norm_of_sam(case):
    """Its direction is a unit vector at the angle alpha psi from the ascent, in SAM's plane."""
    step = take_step(case)
    norms = {name: np.linalg.norm(flat(step[name])) for name in ("updates", "sam", "grads")}
    units = {name: flat(step[name]) / norm for name, norm in norms.items()}
    np.testing.assert_allclose(norms["updates"], norms["sam"], rtol=1e-9)
    psi, turned = step["psi"], step["alpha"] * step["psi"]
    for name, other, angle in (
        ("grads", "sam", psi),
        ("grads", "updates", turned),
        ("sam", "updates", turned - psi),
    ):
        np.testing.assert_allclose(units[name] @ units[other], np.cos(angle), atol=1e-9)


@few_examples
@given_case
def test_scaling_the_loss_scales_the_updates_and_keeps_alpha(case):
    """Loss scaling relies on it."""
    plain, scaled = take_step(case), take_step(case, factor=1024.0)
    for name in ("updates", "sam"):
        expected = jax.tree.map(lambda leaf: 1024.0 * leaf, plain[name])
        chex.assert_trees_all_close(scaled[name], expected, rtol=1e-12)
    chex.assert_trees_all_close(scaled["states"], plain["states"], rtol=1e-12)


@few_examples
@given_case
def test_chunks_of_the_grid_do_not_change_xsam(case):
    one_by_one = take_step(case)
    for probe_batch_size in (4, "all"):  # 4 does not divide the grid
        chunked = take_step(case, probe_batch_size=probe_batch_size)
        assert chunked["alpha"] == one_by_one["alpha"]
        chex.assert_trees_all_close(chunked["updates"], one_by_one["updates"], rtol=1e-9)


# --- The loop ---


def test_every_gradient_of_a_step_is_transformed_from_the_incoming_state():
    """And the state after the first one is kept. So an average has one gradient a training step."""
    seen = []

    def update(updates, state, params=None, *, ascent_step, **extra_args):
        seen.append((ascent_step, int(state)))
        return optax.tree.scale(0.01, updates), state + 1 + 100 * ascent_step

    ascent = optax.GradientTransformationExtraArgs(lambda params: jnp.int32(0), update)
    tx = xsam_jax.sharpness_aware(ascent, steps=3)
    params, grads = start_of(problems.quadratic)
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update(grads, state, params, value_fn=problems.quadratic.loss)
    assert seen == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]


def test_extra_arguments_reach_both_slots():
    seen = []

    def link(name):
        def update(updates, state, params=None, **extra_args):
            seen.append((name, extra_args["batch_name"]))
            return updates, state

        return optax.GradientTransformationExtraArgs(lambda params: None, update)

    tx = xsam_jax.sharpness_aware(link("ascent"), link("descent"))
    params = jnp.ones(2)
    tx.update(params, tx.init(params), params, value_fn=jnp.sum, batch_name="a batch")
    assert seen == [("ascent", "a batch"), ("descent", "a batch")]


def test_path_has_the_points_and_gradients_of_the_ascent(x64):
    paths = []

    def update(updates, state, params=None, *, path, **extra_args):
        paths.append(path)
        return updates, state

    record = optax.GradientTransformationExtraArgs(lambda params: None, update)
    ascent = optax.chain(normalize(), scale_by_radius((0.1, 0.3)))
    tx = xsam_jax.sharpness_aware(ascent, record, steps=2)
    loss = problems.rosenbrock.loss
    points = [problems.rosenbrock.make_params(jnp.float64)]
    gradients = [jax.grad(loss)(points[0])]
    for rho in (0.1, 0.3):
        points.append(points[-1] + rho * gradients[-1] / jnp.linalg.norm(gradients[-1]))
        gradients.append(jax.grad(loss)(points[-1]))
    tx.update(gradients[0], tx.init(points[0]), points[0], value_fn=loss)
    tx.update(gradients[0], tx.init(points[0]), points[0], grad_fn=jax.grad(loss), value=0.5)
    norms = jnp.stack([jnp.linalg.norm(g) for g in gradients])
    expected = {
        "displacement": points[2] - points[0],
        "first_gradient": gradients[0],
        "last_gradient": gradients[2],
        "gradient_norms": norms,
        "last_value": loss(points[2]),
    }
    for name, value in expected.items():
        chex.assert_trees_all_close(getattr(paths[0], name), value, rtol=1e-12)
    assert paths[0].first_value is None
    assert paths[1].first_value == 0.5
    assert paths[1].last_value is None


# --- Geometry ---


def trees(min_value=-10.0):
    numbers = st.floats(min_value, 10.0, width=32, allow_subnormal=False)
    leaves = hnp.arrays(np.float32, st.sampled_from([(3,), (2, 2), (1, 4)]), elements=numbers)
    pairs = st.tuples(leaves, st.floats(0.125, 10.0, width=32))
    # The scalar leaf keeps the norm away from zero.
    return pairs.map(lambda pair: {"a": jnp.asarray(pair[0]), "b": [jnp.float32(pair[1]), None]})


def pairs_of_trees():
    return trees().flatmap(
        lambda u: st.tuples(st.just(u), trees().filter(lambda v: v["a"].shape == u["a"].shape))
    )


@jax.jit
def perturb(gradients, rho):
    ascent = optax.chain(normalize(), scale_by_radius(rho))
    return ascent.update(gradients, ascent.init(gradients))[0]


@hypothesis.given(trees(), st.floats(1e-3, 10.0))
def test_norm_of_the_perturbation_is_the_radius(gradients, rho):
    perturbation = flat(perturb(gradients, rho))
    np.testing.assert_allclose(np.linalg.norm(perturbation), rho, rtol=1e-5)
    direction = flat(gradients) / np.linalg.norm(flat(gradients))
    np.testing.assert_allclose(perturbation, rho * direction, rtol=1e-5, atol=1e-9)


angle_of = jax.jit(tree.angle)


@hypothesis.given(pairs_of_trees())
def test_angle_is_that_of_float64(pair):
    a, b = (flat(w) / np.linalg.norm(flat(w)) for w in pair)
    expected = 2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))
    np.testing.assert_allclose(angle_of(*pair), expected, atol=1e-6)


ANGLES = [0.0, 1e-6, 1e-3, 1e-2, 0.1, 0.19, 0.21, 0.5, np.pi / 2, 2.9, 3.0, np.pi - 1e-3, np.pi]


@pytest.mark.parametrize("angle", ANGLES)
def test_angle_is_accurate_from_zero_to_pi(angle, precision):
    """In a thousand dimensions, at lengths far from one. The arc cosine fails at both ends."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((1000, 2)))
    u = jnp.asarray(1e-4 * basis[:, 0])
    v = jnp.asarray(3e5 * (np.cos(angle) * basis[:, 0] + np.sin(angle) * basis[:, 1]))
    # The vectors are rounded, too, which moves the smallest angles.
    u_hat, v_hat = (w / np.linalg.norm(w) for w in (np.asarray(x, np.float64) for x in (u, v)))
    exact = 2 * np.arctan2(np.linalg.norm(u_hat - v_hat), np.linalg.norm(u_hat + v_hat))
    np.testing.assert_allclose(angle_of(u, v), exact, rtol=80 * precision, atol=precision)
    np.testing.assert_allclose(tree.angle(u, v), angle, atol=8 * precision)


@jax.jit
def slerp_of(start, gradients, alpha):
    descent = optax.chain(slerp(alpha), match_norm(unit=True))
    tx = xsam_jax.sharpness_aware(optax.stateless(lambda g, p: start), descent)
    zeros = jax.tree.map(jnp.zeros_like, start)
    return tx.update(gradients, tx.init(zeros), zeros, grad_fn=lambda p: gradients)[0]


def test_slerp_is_accurate_at_every_angle_of_a_plane():
    """Up to the largest angle at which there is a plane."""
    angles = np.array([1e-6, 1e-5, 1e-3, 0.19, 0.21, 1.0, 2.9, 3.0, np.pi - 0.031])
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((1000, 2)))
    ends = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ basis.T
    start = jnp.asarray(0.1 * basis[:, 0], jnp.float32)
    slerp_rows = jax.vmap(slerp_of, (None, 0, None))
    for alpha in (-1.0, 0.0, 0.5, 1.0, 1.7, 3.0):
        updates = slerp_rows(start, jnp.asarray(7.0 * ends, jnp.float32), jnp.float32(alpha))
        turned = alpha * angles
        expected = np.stack([np.cos(turned), np.sin(turned)], axis=1) @ basis.T
        errors = np.linalg.norm(updates / 7.0 - expected, axis=1)
        np.testing.assert_array_less(errors, 1e-5)


@hypothesis.given(pairs_of_trees(), st.floats(-1.0, 3.0))
def test_slerp_gives_a_unit_direction_at_the_fraction_of_the_angle(pair, alpha):
    start, gradients = pair
    psi = float(angle_of(start, gradients))
    hypothesis.assume(psi < 3.0)
    v, length = flat(slerp_of(start, gradients, alpha)), np.linalg.norm(flat(gradients))
    np.testing.assert_allclose(np.linalg.norm(v), length, rtol=1e-5)
    v0 = flat(start) / np.linalg.norm(flat(start))
    np.testing.assert_allclose(v @ v0 / length, np.cos(alpha * psi), atol=1e-4)
