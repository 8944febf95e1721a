"""The analysis package against dense Hessians, closed forms and flat float64 NumPy."""

import functools
import itertools
import sys

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from problems import flatten, network

from xsam_jax import ascent, sam, xsam
from xsam_jax.analysis import (
    _objective,
    alpha_profile,
    ascent_plane,
    average_sharpness,
    gradient_gap,
    hessian_trace,
    loss_line,
    loss_surface,
    make_hvp,
    max_alpha_sharpness,
    random_direction,
    restrict,
    spectral_density,
    top_eigenpairs,
    top_eigenvalues,
    worst_case_sharpness,
)
from xsam_jax.analysis.loss_surface import place_on_plane

KEY = jax.random.key(7)
SHAPES = {"kernel": (3, 4, 5), "bias": (5,)}  # 65 parameters, more than ARPACK starts with
SIZE = 65


def tree_of(flat):
    """A vector as parameters, in the order of the leaves in JAX: bias first."""
    bias, kernel = np.split(np.asarray(flat), [5])
    return {"bias": jnp.asarray(bias), "kernel": jnp.asarray(kernel.reshape(SHAPES["kernel"]))}


def flat_of(tree):
    return np.concatenate([np.ravel(np.asarray(tree[name])) for name in ("bias", "kernel")])


class Quadratic:
    """L(x) = x H x / 2 + b x, with a Hessian of any signs."""

    def __init__(self, seed=0, eigenvalues=None):
        rng = np.random.default_rng(seed)
        self.eigenvalues = rng.normal(size=SIZE) * 3 if eigenvalues is None else eigenvalues
        basis = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
        self.hessian = (basis * self.eigenvalues) @ basis.T
        self.slope = rng.normal(size=SIZE)
        self.start = rng.normal(size=SIZE)
        self.params = tree_of(self.start)

    def __call__(self, params):
        x = jnp.concatenate([params["bias"], params["kernel"].ravel()])
        return 0.5 * x @ jnp.asarray(self.hessian) @ x + jnp.asarray(self.slope) @ x

    def value(self, x):
        return 0.5 * x @ self.hessian @ x + self.slope @ x

    def gradient(self, x):
        return self.hessian @ x + self.slope


@pytest.fixture
def quadratic(x64):
    return Quadratic()


@pytest.fixture
def dense(x64):
    """The small network, and its Hessian of 73 columns."""
    return dense_hessian()


@functools.cache
def dense_hessian():
    params = network.make_params(jnp.float64)
    flat, unravel = ravel_pytree(params)
    hessian = jax.jit(jax.hessian(lambda x: network.loss(unravel(x))))
    return params, np.asarray(hessian(flat))


# --- Curvature ---


def test_products_are_those_of_the_dense_hessian(dense):
    params, hessian = dense
    vector = np.random.default_rng(0).normal(size=len(hessian))
    product = make_hvp(network.loss, params)(ravel_pytree(params)[1](jnp.asarray(vector)))
    chex.assert_trees_all_equal_shapes_and_dtypes(product, params)
    np.testing.assert_allclose(ravel_pytree(product)[0], hessian @ vector, rtol=1e-10, atol=1e-12)


def test_eigenvalues_of_a_network_are_those_of_the_dense_hessian(dense):
    params, hessian = dense
    expected = np.linalg.eigvalsh(hessian)[::-1]
    assert expected[-1] < -1e-3  # so that largest in magnitude and most positive may differ
    for num in (1, 5):
        found = top_eigenvalues(network.loss, params, num, key=KEY)
        assert found.shape == (num,)
        np.testing.assert_allclose(found, expected[:num], rtol=1e-6)


def test_eigenvalues_are_the_most_positive_ones(x64):
    quadratic = Quadratic(eigenvalues=np.linspace(-100.0, 3.0, SIZE))
    found = top_eigenvalues(quadratic, quadratic.params, 3, key=KEY)
    np.testing.assert_allclose(found, np.sort(quadratic.eigenvalues)[:-4:-1], rtol=1e-6)
    lowest = top_eigenvalues(lambda x: -quadratic(x), quadratic.params, 1, key=KEY)
    np.testing.assert_allclose(-lowest, [-100.0], rtol=1e-6)


@pytest.mark.parametrize("num", [1, 3, 6])
def test_eigenvalues_of_few_parameters(x64, num):
    hessian = np.random.default_rng(1).normal(size=(6, 6))
    hessian += hessian.T
    found = top_eigenvalues(lambda x: x @ hessian @ x / 2, jnp.ones(6), num, key=KEY)
    np.testing.assert_allclose(found, np.linalg.eigvalsh(hessian)[::-1][:num], rtol=1e-9)


def test_all_eigenvalues_of_a_large_matrix(quadratic):
    num = SIZE - 2  # ARPACK alone refuses about as many
    found = top_eigenvalues(quadratic, quadratic.params, num, key=KEY)
    expected = np.sort(quadratic.eigenvalues)[::-1][:num]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_eigenvectors_solve_the_eigenproblem(dense):
    params, hessian = dense
    values, vectors = top_eigenpairs(network.loss, params, 3, key=KEY, tolerance=1e-10)
    flat = np.stack([ravel_pytree(vector)[0] for vector in vectors])
    chex.assert_trees_all_equal_shapes_and_dtypes(vectors[0], params)
    np.testing.assert_allclose(flat @ flat.T, np.eye(3), atol=1e-8)
    np.testing.assert_allclose(flat @ hessian, values[:, None] * flat, atol=1e-8)


def test_eigenvalues_in_float32():
    quadratic = Quadratic()
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), quadratic.params)
    found = top_eigenvalues(quadratic, params, 5, key=KEY)
    expected = np.sort(quadratic.eigenvalues)[::-1][:5]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_linear_loss_has_no_curvature():
    slope = jnp.arange(100.0)
    arguments = (lambda x: slope @ x, jnp.ones(100))
    np.testing.assert_array_equal(top_eigenvalues(*arguments, 2, key=KEY), np.zeros(2))
    assert hessian_trace(*arguments, num_probes=2, key=KEY) == (0.0, 0.0)
    grid, density = spectral_density(*arguments, num_probes=1, num_steps=10, key=KEY)
    assert abs(np.trapezoid(grid * density, grid)) < 1e-9


def test_the_trace_and_its_standard_error(quadratic):
    probes = 400
    mean, error = hessian_trace(quadratic, quadratic.params, num_probes=probes, key=KEY)
    off_diagonal = quadratic.hessian - np.diag(np.diag(quadratic.hessian))
    expected_error = np.sqrt(2 * np.sum(off_diagonal**2) / probes)
    # A sample deviation of 400 is 3.5 % off on average.
    assert error == pytest.approx(expected_error, rel=0.15)
    assert abs(mean - np.trace(quadratic.hessian)) < 3 * error
    assert error < 0.2 * np.abs(quadratic.eigenvalues).sum()


def test_the_trace_of_a_diagonal_is_exact():
    curvatures = jnp.arange(1.0, 11.0)
    trace = hessian_trace(
        lambda x: jnp.sum(curvatures * x**2) / 2, curvatures, num_probes=3, key=KEY
    )
    assert trace == (55.0, 0.0)


def test_the_trace_of_a_network(dense):
    params, hessian = dense
    mean, error = hessian_trace(network.loss, params, num_probes=100, key=KEY)
    assert abs(mean - np.trace(hessian)) < 3 * error
    assert error < 0.3 * np.trace(hessian)


def moments(grid, density):
    """Integral, mean, and second moment."""
    return [np.trapezoid(density * grid**power, grid) for power in range(3)]


@pytest.mark.parametrize("num_steps", [3, 20])
def test_the_density_has_the_moments_of_the_spectrum(quadratic, num_steps):
    probes, width = 40, 0.1
    arguments = {"num_probes": probes, "num_steps": num_steps, "key": KEY, "width": width}
    integral, mean, second = moments(*spectral_density(quadratic, quadratic.params, **arguments))
    values = quadratic.eigenvalues
    # The variance of u f(H) u over the unit sphere is 2 / (n + 2) times that of f(lambda).
    error = [np.sqrt(2 * np.var(values**p) / ((SIZE + 2) * probes)) for p in (1, 2)]
    assert integral == pytest.approx(1.0, abs=1e-6)
    assert abs(mean - values.mean()) < 3 * error[0]
    assert abs(second - width**2 - np.mean(values**2)) < 3 * error[1]


def test_the_density_of_a_network_has_its_moments(dense):
    params, hessian = dense
    arguments = {"num_probes": 30, "num_steps": 30, "key": KEY}
    grid, density = spectral_density(network.loss, params, **arguments)
    values = np.linalg.eigvalsh(hessian)
    _, mean, second = moments(grid, density)
    error = [np.sqrt(2 * np.var(values**p) / ((len(values) + 2) * 30)) for p in (1, 2)]
    width = 0.01 * np.ptp(values)
    assert abs(mean - values.mean()) < 3 * error[0]
    assert abs(second - width**2 - np.mean(values**2)) < 3 * error[1]
    # The grid ends five widths beyond the extreme eigenvalues, which Lanczos finds.
    np.testing.assert_allclose(
        grid[[0, -1]], [values[0] - 5 * width, values[-1] + 5 * width], atol=0.01 * np.ptp(values)
    )


def test_the_density_shows_the_share_of_each_cluster(x64):
    clusters = np.repeat([-1.0, 0.0, 2.0], [13, 39, 13])
    quadratic = Quadratic(eigenvalues=clusters)
    probes = 80
    # Three steps span the whole space. Later ones are rounding, and have no weight.
    arguments = {"num_probes": probes, "num_steps": 30, "key": KEY, "width": 0.05}
    grid, density = spectral_density(quadratic, quadratic.params, **arguments)
    for center, share in ((-1.0, 0.2), (0.0, 0.6), (2.0, 0.2)):
        near = np.abs(grid - center) < 0.4
        error = np.sqrt(2 * share * (1 - share) / ((SIZE + 2) * probes))
        assert abs(np.trapezoid(density[near], grid[near]) - share) < 3 * error


def test_the_density_of_a_multiple_of_the_identity():
    arguments = {"num_probes": 2, "num_steps": 10, "key": KEY}
    grid, density = spectral_density(lambda x: 2.5 * jnp.sum(x**2), jnp.ones(30), **arguments)
    integral, mean, _ = moments(grid, density)
    assert integral == pytest.approx(1.0, abs=1e-6)
    assert mean == pytest.approx(5.0, rel=1e-5)


def test_the_spectrum_of_a_layer_is_that_of_its_block(dense):
    params, hessian = dense
    mask = jax.tree.map(lambda _: False, params)
    mask["output"]["weight"] = True
    indices, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params))
    index_tree = unravel(jnp.arange(len(indices), dtype=float))
    block = np.asarray(index_tree["output"]["weight"]).astype(int).ravel()
    expected = np.linalg.eigvalsh(hessian[np.ix_(block, block)])[::-1]
    for given in (mask, lambda params: mask):
        found = top_eigenvalues(*restrict(network.loss, params, given), 4, key=KEY)
        np.testing.assert_allclose(found, expected[:4], rtol=1e-6)
    whole = restrict(network.loss, params, {"hidden": False, "output": True})
    assert sum(leaf.size for leaf in jax.tree.leaves(whole[1])) == 18
    hidden, part = restrict(network.loss, params, {"hidden": True, "output": False})
    np.testing.assert_allclose(hidden(part), network.loss(params))


# --- Batches ---


def batched_loss(params, batch):
    inputs, targets = batch
    return jnp.mean((jnp.tanh(inputs @ params["w"]) - targets) ** 2)


def make_batches(number=4, size=5):
    rng = np.random.default_rng(2)
    return [(rng.normal(size=(size, 6)), rng.normal(size=size)) for _ in range(number)]


BATCHES = make_batches()
W = {"w": np.linspace(-1.0, 1.0, 6)}
RADII = {"rho": 0.1, "rho_max": 0.2}
DIRECTION = {"w": np.arange(6.0)}
CALLS = {
    "make_hvp": lambda f, p, **kw: make_hvp(f, p, **kw)(DIRECTION)["w"],
    "top_eigenvalues": lambda f, p, **kw: top_eigenvalues(f, p, 2, key=KEY, **kw),
    "top_eigenpairs": lambda f, p, **kw: top_eigenpairs(f, p, 2, key=KEY, **kw)[0],
    "hessian_trace": lambda f, p, **kw: hessian_trace(f, p, num_probes=3, key=KEY, **kw),
    "spectral_density": lambda f, p, **kw: spectral_density(
        f, p, num_probes=2, num_steps=3, key=KEY, **kw
    ),
    "average_sharpness": lambda f, p, **kw: average_sharpness(
        f, p, 0.1, num_directions=4, normalization="element", key=KEY, **kw
    ),
    "worst_case_sharpness": lambda f, p, **kw: worst_case_sharpness(f, p, 0.1, steps=2, **kw),
    "max_alpha_sharpness": lambda f, p, **kw: max_alpha_sharpness(f, p, **RADII, **kw),
    "loss_surface": lambda f, p, **kw: loss_surface(f, p, p, DIRECTION, [0.0, 1.0], [0.5], **kw),
    "loss_line": lambda f, p, **kw: loss_line(f, p, DIRECTION, [0.0, 0.1], **kw),
    "alpha_profile": lambda f, p, **kw: alpha_profile(f, p, [0.0, 1.5], **RADII, **kw),
    "ascent_plane": lambda f, p, **kw: ascent_plane(f, p, rho=0.1, **kw).gradients,
    "gradient_gap": lambda f, p, **kw: gradient_gap(f, p, [0.1], [0.1, 0.3], **kw),
}


@pytest.mark.parametrize("name", CALLS)
def test_batches_are_averaged(x64, name):
    def whole(params):
        return sum(batched_loss(params, batch) for batch in BATCHES) / len(BATCHES)

    call = CALLS[name]
    over_batches = call(batched_loss, W, batches=BATCHES)
    np.testing.assert_allclose(over_batches, call(whole, W), rtol=1e-7, atol=1e-12)
    # All batches count, not the first or the last of them.
    fewer = call(batched_loss, W, batches=BATCHES[:-1])
    assert not np.allclose(over_batches, fewer, rtol=1e-3)


@pytest.mark.parametrize("name", CALLS)
def test_batches_and_calls_share_one_compilation(name):
    traces = []

    def loss(params, batch):
        traces.append(1)
        return batched_loss(params, batch)

    batches = make_batches(2)
    CALLS[name](loss, W, batches=batches)
    first = len(traces)
    CALLS[name](loss, jax.tree.map(lambda leaf: leaf + 0.1, W), batches=make_batches(7))
    assert len(traces) == first


def test_loss_without_a_hash_is_accepted():
    class Loss:
        __hash__ = None

        def __call__(self, params):
            return jnp.sum(params**2)

    value = top_eigenvalues(Loss(), jnp.ones(3), 1, key=KEY)
    np.testing.assert_allclose(value, [2.0], rtol=1e-6)


def test_params_may_have_other_containers_and_dtypes():
    params = (np.ones(3, np.float32), [jnp.ones((2, 2), jnp.bfloat16)])

    def loss(params):
        return jnp.sum(params[0] ** 2) + 3 * jnp.sum(params[1][0].astype(jnp.float32) ** 2)

    np.testing.assert_allclose(
        top_eigenvalues(loss, params, 5, key=KEY), [6, 6, 6, 6, 2], rtol=1e-5
    )
    direction = random_direction(params, key=KEY, normalization="global")
    surface = loss_surface(loss, params, direction, direction, [0.0], [0.0])
    np.testing.assert_allclose(surface, [[15.0]])
    # A step that half precision cannot take.
    line = loss_line(lambda x: x.astype(float)[0], jnp.ones(1, jnp.bfloat16), jnp.ones(1), [1e-3])
    np.testing.assert_allclose(line, [1.001], rtol=1e-6)


# --- Cost ---


def test_number_of_products_is_as_documented():
    # A few large eigenvalues above a bulk, as networks have.
    values = jnp.concatenate(
        [jnp.array([60.0, 40.0, 30.0, 25.0, 20.0]), jnp.geomspace(10, 1e-3, 1995)]
    )
    arguments = (lambda x: 0.5 * jnp.sum(values * x**2), jnp.ones(2000))
    counts = {}
    for name, call in {
        "eigenvalues": lambda add: top_eigenvalues(*arguments, 5, key=KEY, progress=add),
        "trace": lambda add: hessian_trace(*arguments, num_probes=3, key=KEY, progress=add),
        "density": lambda add: spectral_density(
            *arguments, num_probes=2, num_steps=7, key=KEY, progress=add
        ),
    }.items():
        done = []
        call(done.append)
        counts[name] = sum(done)
    assert 12 <= counts.pop("eigenvalues") <= 40
    assert counts == {"trace": 3, "density": 14}


def test_product_costs_two_to_three_gradients():
    rng = np.random.default_rng(0)
    params = {f"w{i}": jnp.asarray(rng.normal(size=(64, 64)) / 8, jnp.float32) for i in range(4)}
    inputs = jnp.ones((256, 64), jnp.float32)

    def loss(params, batch):
        for weight in params.values():
            batch = jnp.tanh(batch @ weight)
        return jnp.mean(batch**2)

    total = jax.tree.map(jnp.zeros_like, params)

    def analysis(function, *arguments):
        program = function.lower(loss, *arguments).compile()
        return program.cost_analysis()["flops"], program.memory_analysis().temp_size_in_bytes

    gradient = analysis(_objective.add_value_and_gradient, (0.0, total), params, inputs)
    product = analysis(_objective.add_product, total, params, params, inputs)
    assert 1.8 < product[0] / gradient[0] < 3.0
    # Activations, those of the tangents, and one parameter copy.
    assert product[1] < 3 * gradient[1] + 4 * sum(leaf.size for leaf in params.values())


# --- Directions ---


def test_filters_are_slices_along_the_last_axis():
    rng = np.random.default_rng(3)
    params = {
        "conv": jnp.asarray(rng.normal(size=(3, 3, 4, 5)) * np.arange(1, 6), jnp.float32),
        "bias": jnp.ones(5),
        "scalar": jnp.ones(()),
    }
    direction = random_direction(params, key=KEY)
    for i in range(5):
        np.testing.assert_allclose(
            np.linalg.norm(direction["conv"][..., i]),
            np.linalg.norm(params["conv"][..., i]),
            rtol=1e-5,
        )
    assert not np.any(direction["bias"])
    assert not np.any(direction["scalar"])
    # Directions of a filter are uniform, not those of the weights.
    first = np.asarray(direction["conv"][..., 0]).ravel()
    weights = np.asarray(params["conv"][..., 0]).ravel()
    assert abs(first @ weights) < 0.6 * np.linalg.norm(first) * np.linalg.norm(weights)


def test_filter_without_weights_does_not_move():
    params = jnp.zeros((3, 2)).at[:, 0].set(1.0)
    direction = random_direction(params, key=KEY)
    assert np.all(np.isfinite(direction))
    assert not np.any(direction[:, 1])


def test_norms_of_the_other_normalizations():
    params = {"a": jnp.asarray([[3.0, -4.0], [0.0, 2.0]]), "b": jnp.full(3, 2.0)}
    layer = random_direction(params, normalization="layer", key=KEY)
    np.testing.assert_allclose(np.linalg.norm(layer["a"]), np.sqrt(29.0), rtol=1e-6)
    assert not np.any(layer["b"])
    whole = random_direction(params, normalization="global", key=KEY)
    np.testing.assert_allclose(np.linalg.norm(ravel_pytree(whole)[0]), 1.0, rtol=1e-6)
    assert np.all(ravel_pytree(whole)[0] != 0)
    element = random_direction(jnp.full(4000, -3.0), normalization="element", key=KEY)
    assert np.std(element) == pytest.approx(3.0, rel=0.05)
    assert abs(np.mean(element)) < 3 * 3 / np.sqrt(4000)
    assert random_direction(params, normalization="element", key=KEY)["a"][1, 0] == 0


def test_directions_differ_from_leaf_to_leaf_and_key_to_key():
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    one = random_direction(params, key=KEY)
    other = random_direction(params, key=jax.random.key(8))
    assert np.all(one["a"] != one["b"])
    assert np.all(one["a"] != other["a"])
    chex.assert_trees_all_equal(one, random_direction(params, key=KEY))


# --- Sharpness ---


def expected_rise(quadratic, normalization):
    """The mean of d H d / 2 over the directions, from the definition of each."""
    diagonal, x = np.diag(quadratic.hessian), quadratic.start
    if normalization == "global":
        return np.sum(diagonal) / (2 * SIZE)
    if normalization == "element":
        return np.sum(diagonal * x**2) / 2
    kernel_diagonal, kernel = diagonal[5:].reshape(12, 5), x[5:].reshape(12, 5)
    if normalization == "layer":
        return np.sum(kernel**2) * kernel_diagonal.mean() / 2
    return np.sum(np.sum(kernel**2, axis=0) * kernel_diagonal.mean(axis=0)) / 2


@pytest.mark.parametrize("normalization", ["global", "element", "layer", "filter"])
def test_average_sharpness_of_a_quadratic_is_its_closed_form(x64, normalization):
    quadratic = Quadratic(eigenvalues=np.linspace(0.5, 4.0, SIZE))
    radius = 5.0  # where the slope, whose mean is zero, adds little
    arguments = {"num_directions": 400, "normalization": normalization, "key": KEY}
    mean, error = average_sharpness(quadratic, quadratic.params, radius, **arguments)
    expected = radius**2 * expected_rise(quadratic, normalization)
    assert abs(mean - expected) < 3 * error
    assert error < 0.05 * expected


def test_the_standard_error_is_that_of_the_samples(quadratic):
    arguments = {"num_directions": 20, "normalization": "global", "key": KEY}
    mean, error = average_sharpness(quadratic, quadratic.params, 0.5, **arguments)
    rises = []
    for j in range(20):
        key = jax.random.fold_in(KEY, j)
        d = flat_of(random_direction(quadratic.params, normalization="global", key=key))
        rises.append(quadratic.value(quadratic.start + 0.5 * d) - quadratic.value(quadratic.start))
    np.testing.assert_allclose(mean, np.mean(rises), rtol=1e-9)
    np.testing.assert_allclose(error, np.std(rises, ddof=1) / np.sqrt(20), rtol=1e-9)


def ascend(gradient, start, length, steps, direction=lambda g, x: g / np.linalg.norm(g)):
    """Points and gradients of an ascent in NumPy."""
    points, gradients = [start], []
    for _ in range(steps):
        gradients.append(gradient(points[-1]))
        points.append(points[-1] + length * direction(gradients[-1], points[-1]))
    return points, [*gradients, gradient(points[-1])]


@pytest.mark.parametrize("steps", [1, 3])
def test_worst_case_sharpness_is_that_of_the_ascent(x64, steps):
    start, loss, gradient, unravel = flatten(network)
    points, _ = ascend(gradient, start, 0.6 / steps, steps)
    expected = max(map(loss, points)) - loss(start)
    found = worst_case_sharpness(network.loss, unravel(start), 0.6, steps=steps)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_worst_case_sharpness_with_an_ascent_of_the_library(x64):
    start, loss, gradient, unravel = flatten(network)

    def asam(g, x):
        magnitude = np.abs(x) + 0.01
        return magnitude**2 * g / np.linalg.norm(magnitude * g)

    points, _ = ascend(gradient, start, 0.5, 2, asam)
    found = worst_case_sharpness(
        network.loss, unravel(start), 1.0, steps=2, ascent=ascent.scale_by_magnitude(0.01)
    )
    np.testing.assert_allclose(found, max(map(loss, points)) - loss(start), rtol=1e-9)
    default = worst_case_sharpness(network.loss, unravel(start), 1.0, steps=2)
    named = worst_case_sharpness(
        network.loss, unravel(start), 1.0, steps=2, ascent=ascent.normalize()
    )
    assert default == pytest.approx(named, rel=1e-9)
    assert abs(default - found) > 1e-3


def test_worst_case_may_be_before_the_end_of_the_ascent():
    # From 0.5 in two steps of pi to beyond the crest: sin is 1 at pi / 2, on the way.
    found = worst_case_sharpness(lambda x: jnp.sin(x), jnp.float32(0.5), 4.0, steps=4)
    way = np.sin([0.5, 1.5, 2.5, 1.5, 2.5])
    assert found == pytest.approx(way.max() - way[0], rel=1e-5)
    # One step overshoots to where the loss is lower than at the start.
    assert worst_case_sharpness(lambda x: jnp.sin(x), jnp.float32(0.5), 4.0) == 0.0


def slerp(v0, v1, alpha):
    v0, v1 = v0 / np.linalg.norm(v0), v1 / np.linalg.norm(v1)
    psi = np.arccos(v0 @ v1)
    return (np.sin((1 - alpha) * psi) * v0 + np.sin(alpha * psi) * v1) / np.sin(psi)


@pytest.mark.parametrize("steps", [1, 3])
def test_alpha_profile_is_the_published_formula(x64, steps):
    start, loss, gradient, unravel = flatten(network)
    points, gradients = ascend(gradient, start, 0.2, steps)
    alphas = np.linspace(-0.5, 3.0, 9)
    expected = [
        loss(start + 0.7 * slerp(points[-1] - start, gradients[-1], alpha)) for alpha in alphas
    ]
    arguments = {"rho": 0.2, "rho_max": 0.7, "steps": steps}
    found = alpha_profile(network.loss, unravel(start), alphas, **arguments)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 2])
def test_maximum_over_alpha_is_that_of_xsam(x64, steps):
    start, loss, _, unravel = flatten(network)
    params = unravel(start)
    search = {"alpha_max": 3.0, "num_alphas": 31}
    tx = xsam(rho=0.3, rho_max=1.0, steps=steps, **search)
    gradient = jax.jit(jax.grad(network.loss))(params)
    update = jax.jit(functools.partial(tx.update, value_fn=network.loss))
    _, state = update(gradient, tx.init(params), params)
    arguments = {"rho": 0.3, "rho_max": 1.0, "steps": steps}
    rise, alpha = max_alpha_sharpness(network.loss, params, **arguments, **search)
    assert 0.0 < alpha < 3.0
    assert alpha == pytest.approx(float(optax.tree.get(state, "alpha")))
    at_alpha = alpha_profile(network.loss, params, [alpha], **arguments)[0]
    assert rise == pytest.approx(at_alpha - loss(start), rel=1e-9)


# --- Landscapes ---


@pytest.mark.parametrize("points_per_call", [1, 4, 100])
def test_surface_equals_direct_evaluation(quadratic, points_per_call):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, SIZE))
    xs, ys = [-1.0, 0.0, 2.0, 3.0], [0.5, -0.5, 1.0]
    done = []
    surface = loss_surface(
        quadratic,
        quadratic.params,
        tree_of(x),
        tree_of(y),
        xs,
        ys,
        points_per_call=points_per_call,
        progress=done.append,
    )
    expected = [[quadratic.value(quadratic.start + a * x + b * y) for a in xs] for b in ys]
    np.testing.assert_allclose(surface, expected, rtol=1e-10)
    assert sum(done) == 12
    line = loss_line(quadratic, quadratic.params, tree_of(x), xs, points_per_call=points_per_call)
    np.testing.assert_allclose(
        line, [quadratic.value(quadratic.start + a * x) for a in xs], rtol=1e-10
    )


class Counted:
    """Batches that know how often they were begun."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


def test_surface_takes_one_pass_through_the_data():
    batches = Counted(make_batches())  # anew, as JAX remembers what it made of these under x64
    loss_surface(batched_loss, W, W, DIRECTION, np.linspace(0, 1, 6), [0.0, 1.0], batches=batches)
    assert batches.passes == 3  # two of them begun only, to see whether they begin anew


def test_memory_of_a_surface_grows_with_points_per_call_alone():
    params = jnp.ones(1000)
    shared = (params, params, params)

    def loss(x):
        return jnp.sum(jnp.sin(x) ** 2)

    def temporary(function, point):
        lowered = function.lower(loss, place_on_plane, shared, point)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(_objective.value_at_place, jnp.zeros(2)) <= 2 * 4000
    assert temporary(_objective.values_at_places, jnp.zeros((8, 2))) <= 2 * 8 * 4000


def test_surface_returns_infinite_losses():
    surface = loss_line(lambda x: jnp.log(x), jnp.float32(1.0), jnp.float32(1.0), [-2.0, -1.0, 0.0])
    np.testing.assert_array_equal(surface, [np.nan, -np.inf, 0.0])


def test_losses_that_are_not_finite_never_win():
    def loss(x):  # infinite where it would be highest
        return jnp.where(x[1] > 0.56, jnp.inf, x[0] ** 2 + 10 * x[1] ** 2 + x[0])

    arguments = {"rho": 0.1, "rho_max": 0.5}
    alphas = np.linspace(0.0, 2.0, 5)
    losses = alpha_profile(loss, jnp.array([0.1, 0.1]), alphas, **arguments)
    finite = np.isfinite(losses)
    assert finite[0]
    assert not finite[-1]
    rise, alpha = max_alpha_sharpness(loss, jnp.array([0.1, 0.1]), **arguments, num_alphas=5)
    assert rise == pytest.approx(losses[finite].max() - 0.21, rel=1e-5)
    assert alpha == alphas[finite][-1]


@pytest.mark.parametrize("steps", [1, 3])
def test_ascent_plane_has_the_points_and_gradients(x64, steps):
    start, _, gradient, unravel = flatten(network)
    points, gradients = ascend(gradient, start, 0.2, steps)
    plane = ascent_plane(network.loss, unravel(start), rho=0.2, steps=steps)
    x, y = (np.asarray(ravel_pytree(tree)[0]) for tree in (plane.direction_x, plane.direction_y))
    np.testing.assert_allclose([x @ x, y @ y, x @ y], [1.0, 1.0, 0.0], atol=1e-12)
    moved = points[-1] - start
    np.testing.assert_allclose(y, moved / np.linalg.norm(moved), atol=1e-9)
    # The last gradient lies in the plane, to the right.
    right, up = plane.gradients[-1]
    assert right > 0
    np.testing.assert_allclose(right * x + up * y, gradients[-1], atol=1e-9)
    np.testing.assert_allclose(plane.psi, np.arctan2(right, up), rtol=1e-9)
    for coordinates, vectors in (
        (plane.path, [point - start for point in points]),
        (plane.gradients, gradients),
    ):
        expected = [[vector @ x, vector @ y] for vector in vectors]
        np.testing.assert_allclose(coordinates, expected, atol=1e-9)
    for alpha in (0.0, 0.4, 1.0, 2.2):
        a, b = plane.point(alpha, 0.7)
        direction = slerp(points[-1] - start, gradients[-1], alpha)
        np.testing.assert_allclose(a * x + b * y, 0.7 * direction, atol=1e-9)
    chex.assert_shape(plane.point([0.0, 1.0, 2.0], 1.0), (3, 2))


def test_gradient_gap_is_a_difference_of_losses(x64):
    start, loss, gradient, unravel = flatten(network)
    rhos, rho_maxs = [0.05, 0.4], [0.1, 0.5, 2.0]
    expected = np.empty((2, 3))
    g0 = gradient(start)
    for (i, rho), (j, far) in itertools.product(enumerate(rhos), enumerate(rho_maxs)):
        g1 = gradient(start + rho * g0 / np.linalg.norm(g0))
        high, low = (loss(start + far * g / np.linalg.norm(g)) for g in (g1, g0))
        expected[i, j] = high - low
    done = []
    found = gradient_gap(network.loss, unravel(start), rhos, rho_maxs, progress=done.append)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-12)
    assert sum(done) == 9


def positive_definite_loss(x, batch):
    hessian, slope = batch
    return 0.5 * x @ hessian @ x + slope @ x


@hypothesis.given(
    seed=st.integers(0, 2**31),
    rho=st.floats(0.01, 10.0),
    spread=st.floats(1.5, 1e3),
)
@hypothesis.settings(max_examples=25, deadline=None)
def test_proposition_1_on_positive_definite_quadratics(seed, rho, spread):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    hessian = (basis * np.geomspace(1.0, spread, 8)) @ basis.T
    slope, x = rng.normal(size=(2, 8))
    g0 = hessian @ x + slope
    g1 = g0 + rho * hessian @ g0 / np.linalg.norm(g0)
    g0_hat, g1_hat = g0 / np.linalg.norm(g0), g1 / np.linalg.norm(g1)
    hypothesis.assume(np.arccos(min(g0_hat @ g1_hat, 1.0)) > 1e-3)  # not parallel

    # Along a unit vector u the loss is L + r g0 u + r^2 / 2 u H u. From this radius on, the gain of
    # the second order exceeds the loss of the first.
    first_order = g0 @ g1_hat - np.linalg.norm(g0)
    second_order = g1_hat @ hessian @ g1_hat - g0_hat @ hessian @ g0_hat
    assert first_order < 0 < second_order
    threshold = -2 * first_order / second_order
    batches = [(hessian, slope)]
    with jax.enable_x64(True):
        factors = np.array([1e-3, 0.5, 0.99, 1.01, 2.0, 1e3])
        [gaps] = gradient_gap(
            positive_definite_loss, x, [rho], factors * threshold, batches=batches
        )
        assert (gaps < 0).tolist() == [True, True, True, False, False, False]

        # Some alpha beyond 1 does better than SAM's gradient, at a large radius.
        alphas = np.linspace(1.0, 2.0, 21)
        losses = alpha_profile(
            positive_definite_loss, x, alphas, rho=rho, rho_max=1e6 * threshold, batches=batches
        )
        assert losses.argmax() > 0
    # The same in the straight combination that the proposition is about.
    curvatures = []
    for alpha in (1.0, 1.001):
        g_alpha = alpha * g1 + (1 - alpha) * g0
        curvatures.append(g_alpha @ hessian @ g_alpha / (g_alpha @ g_alpha))
    assert curvatures[1] > curvatures[0]


# --- Errors ---

GOOD = (lambda params: jnp.sum(params["w"] ** 2), {"w": jnp.ones((2, 3))})
NAN = (lambda params: jnp.sum(params["w"]) * jnp.nan, GOOD[1])
HINGE = (lambda params: jnp.maximum(jnp.sum(params["w"]) - 100.0, 0.0), GOOD[1])
DIRECTIONS = (GOOD[1], GOOD[1])
BAD_FOR_ALL = {
    "a vector": (lambda p: p["w"], GOOD[1], TypeError, r"got float32\[2, 3\]: take the mean"),
    "a tuple": (lambda p: (1.0, 2.0), GOOD[1], TypeError, "the loss alone, got a tuple of 2"),
    "no argument": (lambda: 1.0, GOOD[1], TypeError, "is called as value_fn.*too many positional"),
    "another argument": (lambda p, x, y: 1.0, GOOD[1], TypeError, "missing a required argument"),
    "words": (GOOD[0], {"w": "x"}, TypeError, "floating-point leaves, got 'x'"),
    "an integer": (lambda p: 1, GOOD[1], TypeError, "a real scalar"),
    "nothing": (lambda p: None, GOOD[1], TypeError, "a real scalar, got None"),
    "no function": (3.0, GOOD[1], TypeError, "value_fn must be a function"),
    "no parameters": (GOOD[0], {}, ValueError, "params has no parameters"),
    "empty parameters": (GOOD[0], {"w": jnp.zeros((0, 3))}, ValueError, "no parameters"),
    "integers": (GOOD[0], {"w": jnp.ones(2, jnp.int32)}, TypeError, r"real floating.* int32\[2\]"),
    "complex": (GOOD[0], {"w": jnp.ones(2, complex)}, TypeError, "real floating"),
}
GENERAL = {
    "make_hvp": make_hvp,
    "top_eigenvalues": lambda *args, **kw: top_eigenvalues(*args, 2, key=KEY, **kw),
    "hessian_trace": lambda *args, **kw: hessian_trace(*args, num_probes=2, key=KEY, **kw),
    "spectral_density": lambda *args, **kw: spectral_density(
        *args, num_probes=1, num_steps=2, key=KEY, **kw
    ),
    "average_sharpness": lambda *args, **kw: average_sharpness(
        *args, 0.1, num_directions=2, key=KEY, **kw
    ),
    "worst_case_sharpness": lambda *args, **kw: worst_case_sharpness(*args, 0.1, **kw),
    "max_alpha_sharpness": lambda *args, **kw: max_alpha_sharpness(*args, **RADII, **kw),
    "loss_surface": lambda *args, **kw: loss_surface(*args, *DIRECTIONS, [0.0], [0.0], **kw),
    "loss_line": lambda *args, **kw: loss_line(*args, DIRECTIONS[0], [0.0], **kw),
    "alpha_profile": lambda *args, **kw: alpha_profile(*args, [1.0], **RADII, **kw),
    "ascent_plane": lambda *args, **kw: ascent_plane(*args, rho=0.1, **kw),
    "gradient_gap": lambda *args, **kw: gradient_gap(*args, [0.1], [0.1], **kw),
}


def rows_of(cases, of_every_function):
    """All cases with one function, and one case with every function: they share the checks."""
    rows = [("hessian_trace", case) for case in cases]
    rows += [(call, case) for call in GENERAL for case in of_every_function]
    return pytest.mark.parametrize(("call", "bad"), dict.fromkeys(rows))


@rows_of(BAD_FOR_ALL, ["a vector", "no parameters"])
def test_bad_losses_and_parameters_raise(call, bad):
    value_fn, params, error, message = BAD_FOR_ALL[bad]
    with pytest.raises(error, match=message):
        GENERAL[call](value_fn, params)


class Dry:
    """Looks like a re-iterable, but has less at every pass."""

    def __init__(self):
        self.batches = list(range(5))

    def __iter__(self):
        self.batches.pop()
        return iter([jnp.ones(())] * len(self.batches))


class Once:
    """Begins once only."""

    def __init__(self):
        self.iterator = iter([jnp.ones(())] * 3)

    def __iter__(self):
        return self.iterator


BAD_BATCHES = {
    "an object that begins once": (Once, TypeError, "runs dry after the first"),
    "one batch": (lambda: (jnp.ones((3, 2)), jnp.ones(3, int)), TypeError, "are not alike"),
    "a mapping": (lambda: {"image": jnp.ones(3)}, TypeError, r"got a mapping.*batches=\[batch\]"),
    "a word": (lambda: "abc", TypeError, "must be an iterable"),
    "a generator": (lambda: (b for b in [jnp.ones(())]), TypeError, "runs dry after the first"),
    "an array": (lambda: jnp.ones((3, 4)), TypeError, r"write batches=\[batch\]"),
    "a number": (lambda: 3, TypeError, "must be an iterable"),
    "none at all": (lambda: [], ValueError, "batches has no batch"),
}


@rows_of(BAD_BATCHES, ["an array"])
def test_bad_batches_raise(call, bad):
    make, error, message = BAD_BATCHES[bad]
    with pytest.raises(error, match=message):
        GENERAL[call](lambda p, batch: batch * GOOD[0](p), GOOD[1], batches=make())


@pytest.mark.parametrize("call", sorted(set(GENERAL) - {"make_hvp", "loss_surface", "loss_line"}))
def test_batches_that_run_out_later_raise(call):
    with pytest.raises(ValueError, match=r"batches had (\d|some) at first and \d in a later pass"):
        GENERAL[call](lambda p, batch: batch * GOOD[0](p), GOOD[1], batches=Dry())


@pytest.mark.parametrize("call", sorted(set(GENERAL) - {"make_hvp"}))
def test_loss_that_is_not_finite_raises(call):
    with pytest.raises(FloatingPointError, match="not finite"):
        GENERAL[call](*NAN)


CLIMBING = [
    *("worst_case_sharpness", "max_alpha_sharpness", "alpha_profile", "ascent_plane"),
    "gradient_gap",
]


@pytest.mark.parametrize("call", CLIMBING)
def test_gradient_of_zero_raises(call):
    with pytest.raises(ValueError, match="gradient at params is zero"):
        GENERAL[call](*HINGE)


def test_parallel_gradients_raise_where_a_plane_is_needed():
    slope = np.arange(1.0, 7.0).reshape(2, 3)

    def linear(params):
        return jnp.sum(slope * params["w"])

    with pytest.raises(ValueError, match="span no plane: their angle is 0"):
        ascent_plane(linear, GOOD[1], rho=0.1)
    # Every alpha is the one direction.
    losses = alpha_profile(linear, GOOD[1], [0.0, 1.0, 2.0], **RADII)
    np.testing.assert_allclose(losses, 21 + 0.2 * np.linalg.norm(slope), rtol=1e-6)
    assert max_alpha_sharpness(linear, GOOD[1], **RADII)[1] == 0.0
    with pytest.raises(ValueError, match=r"span no plane: their angle is 3\.14159"):
        alpha_profile(jnp.sin, jnp.float32(1.5), [0.0], rho=0.3, rho_max=0.1)


BAD_ARGUMENTS = {
    "num 0": (lambda: top_eigenvalues(*GOOD, 0, key=KEY), ValueError, "num must be at least 1"),
    "num": (lambda: top_eigenvalues(*GOOD, 7, key=KEY), ValueError, "num must be at most 6"),
    "num 1.5": (lambda: top_eigenvalues(*GOOD, 1.5, key=KEY), TypeError, "num must be an integer"),
    "key": (lambda: top_eigenvalues(*GOOD, 1, key=0), TypeError, "key must be a single random key"),
    "tolerance": (
        lambda: top_eigenvalues(*GOOD, 1, key=KEY, tolerance=0.0),
        ValueError,
        "tolerance must be greater than 0",
    ),
    "num_probes": (
        lambda: hessian_trace(*GOOD, num_probes=1, key=KEY),
        ValueError,
        "num_probes must be at least 2",
    ),
    "trace key": (lambda: hessian_trace(*GOOD, num_probes=2, key=1), TypeError, "random key"),
    "no probes": (
        lambda: spectral_density(*GOOD, num_probes=0, num_steps=2, key=KEY),
        ValueError,
        "num_probes must be at least 1",
    ),
    "no steps": (
        lambda: spectral_density(*GOOD, num_probes=1, num_steps=0, key=KEY),
        ValueError,
        "num_steps must be at least 1",
    ),
    "width": (
        lambda: spectral_density(*GOOD, num_probes=1, num_steps=2, key=KEY, width=0.0),
        ValueError,
        "width must be greater than 0",
    ),
    "coarse grid": (
        lambda: spectral_density(
            lambda x: x[0] ** 2 - x[1] ** 2,
            jnp.ones(2),
            num_probes=1,
            num_steps=2,
            key=KEY,
            width=1e-3,
            num_points=100,
        ),
        ValueError,
        r"num_points must be at least \d+ for a width",
    ),
    "no directions": (
        lambda: average_sharpness(*GOOD, 0.1, num_directions=0, key=KEY),
        ValueError,
        "num_directions must be at least 2",
    ),
    "radius": (
        lambda: average_sharpness(*GOOD, 0.0, key=KEY),
        ValueError,
        "radius must be greater",
    ),
    "normalization": (
        lambda: average_sharpness(*GOOD, 0.1, normalization="filters", key=KEY),
        ValueError,
        "normalization must be one of 'filter', 'element', 'layer', 'global', got 'filters'",
    ),
    "directions of zero": (
        lambda: average_sharpness(lambda x: jnp.sum(x**2), jnp.ones(3), 0.1, key=KEY),
        ValueError,
        "'filter' moves none of these parameters",
    ),
    "a vector of another shape": (
        lambda: make_hvp(*GOOD)({"w": jnp.ones(6)}),
        TypeError,
        "the vector must have the structure and shapes of params",
    ),
    "few points": (
        lambda: spectral_density(*GOOD, num_probes=1, num_steps=2, key=KEY, num_points=220),
        ValueError,
        "num_points must be at least 221",
    ),
    "a radius too large": (
        lambda: average_sharpness(
            lambda x: jnp.sum(jnp.log(x)),
            jnp.ones(3),
            100.0,
            num_directions=8,
            normalization="global",
            key=KEY,
        ),
        FloatingPointError,
        "of 8 points: use a smaller radius than 100",
    ),
    "worst radius": (lambda: worst_case_sharpness(*GOOD, -1.0), ValueError, "radius must be great"),
    "worst steps": (lambda: worst_case_sharpness(*GOOD, 1.0, steps=0), ValueError, "steps must be"),
    "worst method": (
        lambda: worst_case_sharpness(*GOOD, 1.0, ascent=sam(0.1)),
        TypeError,
        "got a whole method",
    ),
    "worst ascent": (
        lambda: worst_case_sharpness(*GOOD, 1.0, ascent=0.1),
        TypeError,
        "ascent must be an optax.GradientTransformation",
    ),
    "alpha_max": (
        lambda: max_alpha_sharpness(*GOOD, **RADII, alpha_max=0.0),
        ValueError,
        "alpha_max must be greater than 0",
    ),
    "num_alphas": (
        lambda: max_alpha_sharpness(*GOOD, **RADII, num_alphas=1),
        ValueError,
        "num_alphas must be at least 2",
    ),
    "rho": (
        lambda: alpha_profile(*GOOD, [1.0], rho=0.0, rho_max=0.1),
        ValueError,
        "rho must be greater than 0",
    ),
    "rho_max": (
        lambda: alpha_profile(*GOOD, [1.0], rho=0.1, rho_max=0.0),
        ValueError,
        "rho_max must be greater than 0",
    ),
    "no alphas": (lambda: alpha_profile(*GOOD, [], **RADII), ValueError, "alphas is empty"),
    "one alpha": (lambda: alpha_profile(*GOOD, 1.0, **RADII), TypeError, "alphas must be a list"),
    "no rhos": (lambda: gradient_gap(*GOOD, [], [0.1]), ValueError, "rhos is empty"),
    "a rho of zero": (lambda: gradient_gap(*GOOD, [0.0], [0.1]), ValueError, "rho must be greater"),
    "another tree": (
        lambda: loss_surface(*GOOD, {"v": 1.0}, GOOD[1], [0.0], [0.0]),
        TypeError,
        "direction_x must have the structure and shapes of params",
    ),
    "another shape": (
        lambda: loss_surface(*GOOD, GOOD[1], {"w": jnp.ones((3, 2))}, [0.0], [0.0]),
        TypeError,
        r"direction_y must have .*\[\(2, 3\)\], got .*\[\(3, 2\)\]",
    ),
    "a direction of zero": (
        lambda: loss_line(*GOOD, {"w": jnp.zeros((2, 3))}, [0.0]),
        ValueError,
        "direction_x is zero",
    ),
    "a direction of NaN": (
        lambda: loss_line(*GOOD, {"w": jnp.full((2, 3), jnp.nan)}, [0.0]),
        FloatingPointError,
        "norm of direction_x is not finite",
    ),
    "no xs": (lambda: loss_line(*GOOD, GOOD[1], []), ValueError, "xs is empty"),
    "xs of words": (lambda: loss_line(*GOOD, GOOD[1], ["a"]), TypeError, "xs must be a list of re"),
    "xs of NaN": (lambda: loss_line(*GOOD, GOOD[1], [np.nan]), ValueError, "xs must be finite"),
    "points_per_call": (
        lambda: loss_line(*GOOD, GOOD[1], [0.0], points_per_call=0),
        ValueError,
        "points_per_call must be at least 1",
    ),
    "a mask that does not fit": (
        lambda: restrict(*GOOD, {"w": True, "v": True}),
        ValueError,
        "mask must be a pytree of booleans with the structure",
    ),
    "a mask of numbers": (lambda: restrict(*GOOD, {"w": 1}), TypeError, "mask must hold booleans"),
    "a mask of nothing": (lambda: restrict(*GOOD, False), ValueError, "mask selects no parameters"),
    "restrict no function": (lambda: restrict(3, GOOD[1], True), TypeError, "must be a function"),
}


@pytest.mark.parametrize("bad", BAD_ARGUMENTS)
def test_bad_arguments_raise(bad):
    call, error, message = BAD_ARGUMENTS[bad]
    with pytest.raises(error, match=message):
        call()


def test_iteration_that_does_not_converge_raises(monkeypatch):
    values = jnp.linspace(1.0, 2.0, 3000)
    module = sys.modules["xsam_jax.analysis.top_eigenvalues"]
    monkeypatch.setattr(module, "RESTARTS", 1)
    with pytest.raises(RuntimeError, match="raise tolerance, which is 1e-08"):
        top_eigenvalues(
            lambda x: 0.5 * jnp.sum(values * x**2), jnp.ones(3000), 5, key=KEY, tolerance=1e-8
        )
