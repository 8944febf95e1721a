"""Identities between the methods, and geometry as properties of random trees."""

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
from xsam_jax.descent import SCALES, match_norm, slerp

hypothesis.settings.register_profile(
    "tests", deadline=None, max_examples=50, derandomize=True, database=None
)
hypothesis.settings.load_profile("tests")

every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)


def gradient(tx, problem, params=None, state=None):
    params = problem.make_params(jnp.result_type(float)) if params is None else params
    state = tx.init(params) if state is None else state
    grads = jax.grad(problem.loss)(params)
    return tx.update(grads, state, params, value_fn=problem.loss)


@every_problem
@pytest.mark.parametrize("steps", [1, 3])
def test_slerp_sam_at_one_is_sam(problem, steps, precision):
    sam, _ = gradient(xsam_jax.sam(0.2, steps=steps), problem)
    slerp_sam, _ = gradient(xsam_jax.slerp_sam(0.2, 1.0, steps=steps), problem)
    chex.assert_trees_all_close(slerp_sam, sam, rtol=64 * precision, atol=8 * precision)


@every_problem
def test_slerp_sam_at_zero_has_the_direction_of_the_ascent(problem, precision):
    params = problem.make_params(jnp.result_type(float))
    updates, _ = gradient(xsam_jax.slerp_sam(0.2, 0.0), problem)
    clean = tree.unit(jax.grad(problem.loss)(params))
    chex.assert_trees_all_close(tree.unit(updates), clean, rtol=64 * precision, atol=8 * precision)


@every_problem
def test_sam_with_radius_zero_is_the_base_optimizer(problem, precision):
    params = problem.make_params(jnp.result_type(float))
    updates, _ = gradient(xsam_jax.sam(0.0), problem)
    chex.assert_trees_all_equal(updates, jax.grad(problem.loss)(params))


@every_problem
@pytest.mark.parametrize(
    "make", [xsam_jax.sam, lambda rho: xsam_jax.xsam(rho, rho)], ids=["sam", "xsam"]
)
def test_a_vanishing_radius_leads_to_the_base_optimizer(problem, make, x64):
    params = problem.make_params(jnp.float64)
    clean = jax.grad(problem.loss)(params)
    distances = []
    for rho in (1e-2, 1e-4, 1e-6):
        updates, _ = gradient(make(rho), problem)
        distances.append(float(tree.norm(optax.tree.sub(updates, clean)) / tree.norm(clean)))
    assert distances[0] > 1e-4, "at this radius it should differ"
    assert distances[1] < 0.02 * distances[0]
    assert distances[2] < 0.02 * distances[1]


@every_problem
def test_sam_does_not_depend_on_the_scale_of_the_loss(problem, x64):
    """Only the gradient's length does: what loss scaling relies on."""
    scaled = problems.Problem("scaled", lambda p: 1024.0 * problem.loss(p), problem.make_params)
    for make in (xsam_jax.sam, lambda rho: xsam_jax.xsam(rho, 0.4)):
        plain, plain_state = gradient(make(0.2), problem)
        updates, state = gradient(make(0.2), scaled)
        chex.assert_trees_all_close(updates, optax.tree.scale(1024.0, plain), rtol=1e-12)
        chex.assert_trees_all_close(state, plain_state, rtol=1e-12)


@every_problem
@pytest.mark.parametrize("scale", SCALES)
def test_xsam_keeps_alpha_on_the_grid_and_the_direction_in_the_plane(problem, scale, precision):
    tx = xsam_jax.xsam(0.3, 0.6, alpha_max=4.0, num_alphas=9, scale=scale)
    updates, state = gradient(tx, problem)
    alpha = optax.tree.get(state, "alpha")
    assert float(alpha) in [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
    fixed, _ = gradient(xsam_jax.slerp_sam(0.3, alpha), problem)
    sign = jnp.sign(optax.tree.vdot(updates, fixed))
    chex.assert_trees_all_close(
        tree.unit(updates),
        optax.tree.scale(sign, tree.unit(fixed)),
        rtol=256 * precision,
        atol=32 * precision,
    )


@every_problem
def test_xsam_probes_the_first_step_and_every_nth(problem):
    tx = xsam_jax.xsam(0.3, 0.6, probe_every=3, alpha_max=4.0)
    params, state, alphas = problem.make_params(), tx.init(problem.make_params()), []
    for _ in range(7):
        updates, state = gradient(tx, problem, params, state)
        params = optax.apply_updates(params, optax.tree.scale(-0.1, updates))
        alphas.append(float(optax.tree.get(state, "alpha")))
    assert alphas[0] == alphas[1] == alphas[2]
    assert alphas[3] == alphas[4] == alphas[5]
    assert len({alphas[0], alphas[3], alphas[6]}) > 1
    assert optax.tree.get(state, "count") == 7


def test_every_gradient_of_a_step_is_transformed_from_the_incoming_state():
    """An average inside the ascent sees one gradient a training step, however many are taken."""
    seen = []

    def update(updates, state, params=None, *, ascent_step, **extra_args):
        seen.append((ascent_step, int(state)))
        return optax.tree.scale(0.01, updates), state + 1

    ascent = optax.GradientTransformationExtraArgs(lambda params: jnp.int32(0), update)
    tx = xsam_jax.sharpness_aware(ascent, steps=3)
    state = tx.init(problems.quadratic.make_params())
    for _ in range(2):
        _, state = gradient(tx, problems.quadratic, state=state)
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


def test_the_path_holds_what_was_seen(x64):
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


def flat(tree_):
    return np.asarray(jax.flatten_util.ravel_pytree(tree_)[0], np.float64)


@hypothesis.given(trees(), st.floats(1e-3, 10.0))
def test_a_perturbation_is_as_long_as_its_radius(gradients, rho):
    ascent = optax.chain(normalize(), scale_by_radius(rho))
    perturbation, _ = ascent.update(gradients, ascent.init(gradients))
    np.testing.assert_allclose(np.linalg.norm(flat(perturbation)), rho, rtol=1e-5)
    np.testing.assert_allclose(
        flat(perturbation),
        rho * flat(gradients) / np.linalg.norm(flat(gradients)),
        rtol=1e-5,
        atol=1e-9,
    )


@hypothesis.given(pairs_of_trees())
def test_the_angle_is_that_of_float64(pair):
    a, b = (flat(w) / np.linalg.norm(flat(w)) for w in pair)
    expected = 2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))
    np.testing.assert_allclose(tree.angle(*pair), expected, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 0.5, np.pi / 2, 3.0, np.pi - 1e-3, np.pi])
def test_the_angle_is_accurate_from_zero_to_pi(angle, precision):
    """In a thousand dimensions, at lengths far from one; the arc cosine fails both ends."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((1000, 2)))
    u = jnp.asarray(1e-4 * basis[:, 0])
    v = jnp.asarray(3e5 * (np.cos(angle) * basis[:, 0] + np.sin(angle) * basis[:, 1]))
    np.testing.assert_allclose(tree.angle(u, v), angle, atol=8 * precision)


@hypothesis.given(pairs_of_trees(), st.floats(-1.0, 3.0))
def test_slerp_gives_a_unit_direction_at_the_fraction_of_the_angle(pair, alpha):
    start, gradients = pair
    psi = float(tree.angle(start, gradients))
    hypothesis.assume(psi < 3.0)
    descent = optax.chain(slerp(alpha), match_norm(unit=True))
    tx = xsam_jax.sharpness_aware(optax.stateless(lambda g, p: start), descent)
    zeros = jax.tree.map(jnp.zeros_like, start)
    updates, _ = tx.update(gradients, tx.init(zeros), zeros, grad_fn=lambda p: gradients)
    v, length = flat(updates), np.linalg.norm(flat(gradients))
    np.testing.assert_allclose(np.linalg.norm(v), length, rtol=1e-5)
    v0 = flat(start) / np.linalg.norm(flat(start))
    np.testing.assert_allclose(v @ v0 / length, np.cos(alpha * psi), atol=1e-4)
