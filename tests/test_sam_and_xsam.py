"""SAM and XSAM against a flat float64 transcription of their formulas, for thirty steps."""

import functools

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

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.xdist_group("values")]


def run(tx, problem):
    """The flat parameters and alpha after every step."""
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


def rho_argument(radii, distinct):
    """A tuple of radii, or a number if all steps have one radius, to test both forms."""
    return tuple(radii) if distinct else radii[0]


def distinct(radii):
    return len(set(radii)) > 1


@functools.cache
def compiled(make, problem, num_steps, are_distinct):
    """`run`, compiled once for all radii and further numbers, which are traced."""

    def run_with(radii, *numbers):
        return run(make(rho_argument(radii, are_distinct), *numbers, steps=num_steps), problem)

    return jax.jit(run_with)


def run_with(make, problem, radii, *numbers):
    return compiled(make, problem, len(radii), distinct(radii))(radii, *numbers)


@pytest.mark.parametrize("radii", RADII.values(), ids=RADII)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_sam_is_the_published_formula(problem, radii):
    params, _ = run_with(xsam_jax.sam, problem, radii)
    expected = expect(lambda theta, loss, grad: reference.sam_gradient(theta, grad, radii), problem)
    np.testing.assert_allclose(params, expected, rtol=1e-9)


@pytest.mark.parametrize("between", ["displacement", "first"])
@pytest.mark.parametrize("name", ["k=1", "per step"])
def test_slerp_sam_is_the_published_formula(name, between):
    radii, alphas = RADII[name], [-1.0, 0.0, 0.75, 3.0]

    def run_at(alpha):
        make = functools.partial(xsam_jax.slerp_sam, steps=len(radii), between=between)
        return run(make(rho_argument(radii, distinct(radii)), alpha), problems.network)[0]

    for alpha, params in zip(alphas, jax.jit(jax.vmap(run_at))(jnp.array(alphas)), strict=True):

        def gradient(*args, alpha=alpha):
            return reference.slerp_sam_gradient(*args, radii, alpha, between=between)

        np.testing.assert_allclose(params, expect(gradient, problems.network), rtol=1e-9)


@functools.cache
def make_xsam(scale="last", **kwargs):
    def make(rho, probe_every, steps):
        return xsam_jax.xsam(
            rho,
            RHO_MAX,
            steps=steps,
            probe_every=probe_every,
            alpha_max=ALPHA_MAX,
            scale=scale,
            **kwargs,
        )

    return make


def check_xsam(problem, radii, probe_every=1, scale="last", **kwargs):
    params, alphas = run_with(make_xsam(scale, **kwargs), problem, radii, probe_every)
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
    assert len(set(alphas)) > 2, "the comparison is weak if alpha hardly moves"


# Rosenbrock's function is not convex, so that slopes vary most.
@pytest.mark.parametrize(
    ("problem", "scale"),
    [
        *((problems.network, scale) for scale in SCALES),
        *((problems.rosenbrock, scale) for scale in ("slope", "slope_max")),
    ],
    ids=str,
)
def test_xsam_with_every_scale_is_algorithm_1(problem, scale):
    check_xsam(problem, RADII["per step"], probe_every=5, scale=scale)


# On the two other problems, the loss has one maximum on every circle they visit.
@pytest.mark.parametrize(
    "options",
    [*({"probe_batch_size": size} for size in (1, 4, 21, "all")), {"search": "section"}],
    ids=str,
)
def test_chunks_and_search_do_not_change_xsam(options):
    check_xsam(problems.network, RADII["k=1"], probe_every=3, **options)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_float32_is_near_float64(problem):
    expected, expected_alphas = run_with(make_xsam(), problem, RADII["k=1"], 5)
    tx = xsam_jax.xsam(0.3, RHO_MAX, probe_every=5, alpha_max=ALPHA_MAX)
    with jax.enable_x64(False):
        params, alphas = run(tx, problem)
    np.testing.assert_allclose(alphas, expected_alphas, rtol=1e-6)
    # Float32 rounding of thirty steps, amplified in the curved valley of Rosenbrock's function.
    np.testing.assert_allclose(params, expected, rtol=2e-4, atol=2e-5)
