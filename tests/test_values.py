"""SAM and XSAM against a flat float64 transcription of their formulas, step by step for thirty."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
import reference
from problems import PROBLEMS

import xsam_jax
from xsam_jax.descent import SCALES

LEARNING_RATE, MOMENTUM, NUM_STEPS = 0.05, 0.9, 30
RHO_MAX, ALPHA_MAX = 0.6, 4.0
RADII = {"k=1": [0.3], "k=2": [0.15, 0.15], "k=3": [0.1, 0.1, 0.1], "per step": [0.05, 0.2, 0.1]}

pytestmark = pytest.mark.usefixtures("x64")


def run(tx, problem):
    """The parameters, flat, after every step, and every alpha on the way."""
    tx = optax.chain(tx, optax.sgd(LEARNING_RATE, momentum=MOMENTUM))

    def step(carry, _):
        params, opt_state = carry
        grads = jax.grad(problem.loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=problem.loss)
        alpha = optax.tree.get(opt_state, "alpha", jnp.nan)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), (jax.flatten_util.ravel_pytree(params)[0], alpha)

    params = problem.make_params(jnp.result_type(float))
    return jax.lax.scan(step, (params, tx.init(params)), length=NUM_STEPS)[1]


def expect(gradient_of_step, problem):
    """The reference's parameters after every step."""
    theta, loss, grad, _ = problems.flatten(problem)
    visited = []

    def gradient(theta):
        visited.append(theta)
        return gradient_of_step(theta, loss, grad)

    end = reference.momentum_sgd(theta, gradient, LEARNING_RATE, MOMENTUM, NUM_STEPS)
    return np.stack([*visited[1:], end])


def rho_argument(radii):
    """A number where all steps have one radius, so that both forms of the argument are seen."""
    return radii[0] if len(set(radii)) == 1 else tuple(radii)


@pytest.mark.parametrize("radii", RADII.values(), ids=RADII)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_sam_is_the_published_formula(problem, radii):
    tx = xsam_jax.sam(rho_argument(radii), steps=len(radii))
    params, _ = run(tx, problem)
    expected = expect(lambda theta, loss, grad: reference.sam_gradient(theta, grad, radii), problem)
    np.testing.assert_allclose(params, expected, rtol=1e-9)


@pytest.mark.parametrize("between", ["displacement", "first"])
@pytest.mark.parametrize("radii", RADII.values(), ids=RADII)
def test_slerp_sam_is_the_published_formula(radii, between):
    def run_with(alpha):
        tx = xsam_jax.slerp_sam(rho_argument(radii), alpha, steps=len(radii), between=between)
        return run(tx, problems.network)[0]

    alphas = [-1.0, 0.0, 0.75, 3.0]
    for alpha, params in zip(alphas, jax.vmap(run_with)(jnp.array(alphas)), strict=True):

        def gradient(*args, alpha=alpha):
            return reference.slerp_sam_gradient(*args, radii, alpha, between=between)

        np.testing.assert_allclose(params, expect(gradient, problems.network), rtol=1e-9)


def check_xsam(problem, radii, probe_every=1, scale="last", **kwargs):
    tx = xsam_jax.xsam(
        rho_argument(radii),
        RHO_MAX,
        steps=len(radii),
        probe_every=probe_every,
        alpha_max=ALPHA_MAX,
        scale=scale,
        **kwargs,
    )
    params, alphas = run(tx, problem)
    algorithm = reference.Xsam(radii, RHO_MAX, probe_every, ALPHA_MAX, scale=scale)
    expected_alphas = []

    def step(*args):
        update = algorithm.step(*args)
        expected_alphas.append(algorithm.alpha)
        return update

    expected = expect(step, problem)
    np.testing.assert_allclose(alphas, expected_alphas, rtol=1e-14)
    np.testing.assert_allclose(params, expected, rtol=1e-9)
    return expected_alphas


@pytest.mark.parametrize("probe_every", [1, 5])
@pytest.mark.parametrize("radii", RADII.values(), ids=RADII)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_xsam_is_algorithm_1(problem, radii, probe_every):
    alphas = check_xsam(problem, radii, probe_every=probe_every)
    assert len(set(alphas)) > 2, "the comparison is weak where alpha hardly moves"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_xsam_with_every_scale_is_algorithm_1(problem, scale):
    check_xsam(problem, RADII["per step"], probe_every=5, scale=scale)


@pytest.mark.parametrize("search", ["grid", "section"])
@pytest.mark.parametrize("probe_batch_size", [1, 4, 21, None])
def test_neither_chunks_nor_search_change_xsam(probe_batch_size, search):
    # Two of the three problems have one maximum on every circle they visit.
    check_xsam(
        problems.network, [0.3], probe_batch_size=probe_batch_size, search=search, probe_every=3
    )


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_float32_stays_near_float64(problem):
    tx = xsam_jax.xsam(0.3, RHO_MAX, probe_every=5, alpha_max=ALPHA_MAX)
    expected, expected_alphas = run(tx, problem)
    with problems.x64(False):
        params, alphas = run(tx, problem)
    np.testing.assert_allclose(alphas, expected_alphas, rtol=1e-6)
    # Thirty steps of float32 rounding, amplified on the curved valley of Rosenbrock.
    np.testing.assert_allclose(params, expected, rtol=2e-4, atol=2e-5)
