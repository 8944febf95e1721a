"""All methods against flat float64 transcriptions of their formulas, on changing batches."""

import inspect
import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
import reference
from jax.flatten_util import ravel_pytree

import xsam_jax
from xsam_jax import _tree as tree
from xsam_jax import ascent, descent, gating

LEARNING_RATE, MOMENTUM, NUM_STEPS = 0.05, 0.9, 30
RHO, RHO_MAX, ALPHA_MAX = 0.3, 0.6, 4.0
SIZE = len(problems.LABELS)
KEY = jax.random.key(7)
SGD = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
SAM = partial(reference.sam, rho=RHO)

_rng = np.random.default_rng(5)
BATCHES = np.stack([_rng.permutation(SIZE)[: SIZE // 2] for _ in range(NUM_STEPS)])

with jax.enable_x64(True):
    PARAMS = problems.network_params(jnp.float64)
    flat, unravel = ravel_pytree(PARAMS)
    THETA = np.asarray(flat)

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.xdist_group("family")]


# --- The batch losses, for the library and for the reference ---


def loss(params, indices):
    return jnp.mean(problems.network_losses(params, indices))


flat_losses = jax.jit(lambda theta, indices: problems.network_losses(unravel(theta), indices))
flat_jacobian = jax.jit(
    jax.jacrev(lambda theta, indices: problems.network_losses(unravel(theta), indices))
)
flat_gradient = jax.jit(jax.grad(lambda theta, indices: loss(unravel(theta), indices)))


def of_batch(function, t):
    return lambda theta: np.asarray(function(theta, BATCHES[t]))


def loss_and_grad(t):
    return lambda theta: float(flat_losses(theta, BATCHES[t]).mean()), of_batch(flat_gradient, t)


def losses_and_jacobian(t):
    return of_batch(flat_losses, t), of_batch(flat_jacobian, t)


# --- Both sides of every comparison: the parameters after every step ---

gradient = jax.grad(loss)


def run(tx, incoming=gradient, optimizer=SGD):
    """The library's side, and the number of sharpness-aware steps so far."""
    tx = optax.chain(tx, optimizer)

    def step(carry, indices):
        params, state = carry
        updates, state = tx.update(
            incoming(params, indices),
            state,
            params,
            value_fn=lambda params: loss(params, indices),
            losses_fn=lambda params: problems.network_losses(params, indices),
        )
        params = optax.apply_updates(params, updates)
        sharp_steps = optax.tree.get(state, "sharp_steps", 0)
        return (params, state), (ravel_pytree(params)[0], sharp_steps)

    visited, sharp_steps = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), BATCHES)[1]
    return visited, sharp_steps


def expect(step, functions_of_step=loss_and_grad):
    """The reference's side. Each step is called with the functions of its batch."""
    visited = []

    def gradient_of_step(theta):
        visited.append(theta)
        return step(theta, *functions_of_step(len(visited) - 1))

    end = reference.momentum_sgd(THETA, gradient_of_step, LEARNING_RATE, MOMENTUM, NUM_STEPS)
    return np.stack([*visited[1:], end])


def numbers_and_statics(alias, kwargs):
    """The floats among the arguments and defaults of a method, and all others."""
    parameters = inspect.signature(getattr(xsam_jax, alias)).parameters.values()
    arguments = {p.name: p.default for p in parameters if isinstance(p.default, float)} | kwargs
    numbers = {name for name, value in arguments.items() if isinstance(value, float)}
    return (
        {name: arguments[name] for name in arguments if name in numbers},
        {name: arguments[name] for name in arguments if name not in numbers},
    )


COMPILED = {}


def run_method(alias, **kwargs):
    """`run`, compiled once for all values of the numbers, which are traced."""
    numbers, statics = numbers_and_statics(alias, kwargs)
    name = alias, tuple(numbers), repr(statics)
    if name not in COMPILED:
        make = partial(getattr(xsam_jax, alias), **statics)
        COMPILED[name] = jax.jit(lambda numbers: run(make(**numbers)))
    return COMPILED[name](numbers)[0]


@cache
def compiled_gate(make_gate):
    """`run` of gated SAM, compiled once for all arguments of a gate."""
    return jax.jit(lambda argument: run(gating.gated(xsam_jax.sam(RHO), make_gate(argument))))


def assert_same(visited, expected):
    """After the first step, the thirtieth, and all between."""
    np.testing.assert_allclose(visited, expected, rtol=1e-9)


def distance(end, other):
    return np.linalg.norm(end - other) / np.linalg.norm(other)


# --- The rows: a method and its arguments, which are those of the reference too ---


def weights(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "weight", params)


WEIGHTS = weights(PARAMS)
FLAT_WEIGHTS = np.concatenate(
    [np.full(np.size(x), w) for w, x in zip(*map(jax.tree.leaves, (WEIGHTS, PARAMS)), strict=True)]
)
FRIENDLY = {"decay": 0.7, "sigma": 0.6}
GAM = {"rho": 0.2, "gradient_rho": 0.1, "beta_0": 0.4, "beta_1": 0.7, "gamma": 0.5}
OFFICIAL = {"convention": "official"}

METHODS = [
    ("sam", {"rho": RHO}),
    ("asam", {"rho": 1.0}),
    ("asam", {"rho": RHO, "eta": 0.2, "steps": 3}),
    ("asam", {"rho": RHO, "eta": 0.2, "mask": WEIGHTS}),
    ("asam", {"rho": 0.5, "eta": 0.2, "mask": weights, "steps": 2}),
    ("fisher_sam", {"rho": RHO}),
    ("fisher_sam", {"rho": RHO, "eta": 100.0}),
    ("friendly_sam", {"rho": RHO}),
    ("friendly_sam", {"rho": RHO, **FRIENDLY}),
    ("friendly_sam", {"rho": RHO, **FRIENDLY, **OFFICIAL}),
    ("friendly_asam", {"rho": 1.0}),
    ("friendly_asam", {"rho": RHO, "eta": 0.2, "mask": weights, **FRIENDLY}),
    ("friendly_asam", {"rho": RHO, "eta": 0.2, **FRIENDLY, **OFFICIAL}),
    ("friendly_asam", {"rho": RHO, "eta": 0.0, **FRIENDLY, **OFFICIAL}),  # the official code
    ("friendly_sam", {"rho": RHO, "decay": 0.7, "sigma": "cosine"}),
    ("friendly_sam", {"rho": RHO, "decay": 0.7, "sigma": "cosine", **OFFICIAL}),
    ("friendly_asam", {"rho": RHO, "decay": 0.7, "sigma": "cosine"}),
    ("vasso", {"rho": RHO, "theta": 0.3}),
    ("wsam", {"rho": RHO, "gamma": 0.8}),
    ("gradient_norm_penalty", {"rho": RHO, "alpha": 0.6}),
    ("gradient_norm_penalty", {"rho": RHO, "alpha": 0.6, **OFFICIAL}),
    ("gsam", {"rho": RHO, "alpha": 0.7}),
    *(
        (name, {"rho": RHO, "steps": steps, "include_first": include_first, "scale": scale})
        for name in ["msam", "lsam"]
        for steps, include_first, scale in [(3, True, "last"), (3, False, None)]
    ),
    ("msam", {"rho": RHO, "steps": 2}),
    ("lsam", {"rho": RHO, "steps": 2}),
    ("cr_sam", {"rho": RHO}),
    ("cr_sam", {"rho": RHO, "gamma": 0.4, "beta": 0.3}),
    ("gam", GAM),
    ("gam", {**GAM, "convention": "paper"}),
    ("look_sam", {"rho": RHO, "alpha": 0.7, "every": 3}),
    ("look_sam", {"rho": lambda t: 0.1 + 0.02 * t, "alpha": 0.7, "every": 3}),
]
IDS = [f"{i} {alias}" for i, (alias, _) in enumerate(METHODS)]
WITH_MEMORY = {
    "friendly_sam": reference.FriendlySam,
    "friendly_asam": reference.FriendlyAsam,
    "vasso": reference.Vasso,
    "look_sam": reference.LookSam,
}


def step_of(alias, kwargs):
    kwargs = {**kwargs, "mask": FLAT_WEIGHTS} if "mask" in kwargs else kwargs
    if alias in WITH_MEMORY:
        return WITH_MEMORY[alias](**kwargs).step
    return partial(getattr(reference, alias), **kwargs)


@cache
def expect_row(index):
    return expect(step_of(*METHODS[index]))


@pytest.mark.parametrize("index", range(len(METHODS)), ids=IDS)
def test_method_is_its_published_formula(index):
    alias, kwargs = METHODS[index]
    assert_same(run_method(alias, **kwargs), expect_row(index))


def test_formulas_differ_from_each_other():
    ends = [expect_row(index)[-1] for index in range(len(METHODS))]
    for (name, end), (other_name, other) in itertools.combinations(zip(IDS, ends, strict=True), 2):
        assert distance(end, other) > 1e-3, (name, other_name)


def learning_rate(t):
    """Triangular, and so low at both ends that the radius of GSAM's rule would be negative."""
    return 0.1 - abs(t - 15.0) / 150


@pytest.mark.parametrize(
    ("alias", "kwargs"),
    [("sam", {}), ("gsam", {"alpha": 0.7}), ("gam", {k: GAM[k] for k in GAM if k != "rho"})],
)
def test_radius_follows_the_learning_rate_and_stops_at_zero(alias, kwargs):
    arguments = {"rho_min": 0.02, "rho_max": 0.5, "lr_min": 0.02, "lr_max": 0.1}
    radii = [reference.lr_coupled_rho(learning_rate(t), **arguments) for t in range(NUM_STEPS)]
    assert radii[0] == 0 < radii[3] < max(radii)
    scheduled = reference.Scheduled(step_of(alias, kwargs), rho=lambda t: radii[t])
    rho = xsam_jax.lr_coupled_rho(learning_rate, **arguments)
    assert_same(run(getattr(xsam_jax, alias)(rho, **kwargs))[0], expect(scheduled.step))


# --- XSAM on other ascents: the links of the library, and k steps of the reference ---

library_xsam = partial(xsam_jax.xsam, rho_max=RHO_MAX, probe_every=5, alpha_max=ALPHA_MAX)


def reference_xsam(route):
    return reference.Xsam(route, RHO_MAX, probe_every=5, alpha_max=ALPHA_MAX).step


def along(direction, k):
    return reference.along(direction, reference.radius(RHO), k)


ASCENTS = {
    "asam": (
        [ascent.scale_by_magnitude(mask=weights)],
        lambda k: [reference.magnitude(RHO, mask=FLAT_WEIGHTS)] * k,
    ),
    "fisher_sam": ([ascent.scale_by_fisher()], lambda k: [reference.fisher(RHO)] * k),
    "friendly_sam": (
        [ascent.subtract_ema(), ascent.normalize()],
        lambda k: along(reference.FriendlyDirection(), k),
    ),
    "friendly_sam, official": (
        [ascent.subtract_ema(**FRIENDLY, **OFFICIAL), ascent.normalize()],
        lambda k: along(reference.FriendlyDirection(**FRIENDLY, **OFFICIAL), k),
    ),
    "vasso": (
        [ascent.ema_of_gradients(0.3), ascent.normalize()],
        lambda k: along(reference.AverageDirection(0.3), k),
    ),
}


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", ASCENTS)
def test_xsam_on_any_ascent_is_algorithm_1(name, k):
    links, route = ASCENTS[name]
    expected = expect(reference_xsam(route(k)))
    assert_same(run(library_xsam(RHO, steps=k, direction=optax.chain(*links)))[0], expected)
    assert distance(expected[-1], expect(reference_xsam([RHO] * k))[-1]) > 1e-3


# --- Further formulas ---

ABLATIONS = {
    "SAM-full": (reference.sam_full, tree.project, np.arange(SIZE)),
    "SAM-noise": (reference.sam_noise, tree.reject, np.arange(SIZE)),
    "SAM-db": (reference.sam_db, lambda batch, other: other, np.arange(0, SIZE, 3)),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_friendly_sam_ablations_are_other_incoming_gradients(name):
    step, combine, others = ABLATIONS[name]

    def incoming(params, indices):
        return combine(gradient(params, indices), gradient(params, others))

    def gradients(t):
        return of_batch(flat_gradient, t), lambda theta: np.asarray(flat_gradient(theta, others))

    expected = expect(partial(step, rho=RHO), gradients)
    assert_same(run(xsam_jax.sam(RHO), incoming)[0], expected)
    assert distance(expected[-1], expect(SAM)[-1]) > 1e-3


@pytest.mark.parametrize("rate", [0.03, learning_rate], ids=["number", "schedule"])
def test_decoupled_wsam_corrects_outside_the_inner_optimizer(rate):
    # The inner optimizer has a rate of its own, so that the two cannot be exchanged.
    def inner_rate(t):
        return 0.01 + 0.001 * t

    expected = reference.decoupled_wsam(
        THETA,
        lambda t: of_batch(flat_gradient, t),
        inner_rate,
        MOMENTUM,
        rate if callable(rate) else lambda t: rate,
        rho=RHO,
        gamma=0.8,
        num_steps=NUM_STEPS,
    )
    inner = optax.sgd(inner_rate, momentum=MOMENTUM)
    tx = xsam_jax.decoupled_wsam(inner, rate, RHO, 0.8)
    assert_same(run(tx, optimizer=optax.identity())[0], expected)


flat_hessian = jax.jit(jax.hessian(lambda theta, indices: loss(unravel(theta), indices)))


@pytest.mark.parametrize(("alpha", "every", "iterations"), [(0.4, 7, 5), (1.5, 3, 2)])
def test_eigen_sam_is_its_published_formula(alpha, every, iterations):
    algorithm = reference.EigenSam(
        RHO, alpha, every, lambda t: of_batch(flat_hessian, t), iterations
    )
    expected = expect(algorithm.step)
    tx = xsam_jax.eigen_sam(RHO, alpha, every, iterations=iterations)
    assert_same(run(tx)[0], expected)
    assert distance(expected[-1], expect(SAM)[-1]) > 1e-3


def test_eigen_sam_without_the_eigenvector_is_sam():
    assert_same(run(xsam_jax.eigen_sam(RHO, 0.0))[0], expect(SAM))


@pytest.mark.parametrize(("maximum", "minimum_loss"), [(10.0, 0.0), (0.5, 0.0), (10.0, 0.6)])
def test_polyak_step_is_its_published_formula(maximum, minimum_loss):
    """Mostly free, mostly at the upper bound, and sometimes at the lower bound."""
    theta, visited, arguments = THETA, [], (RHO, maximum, minimum_loss, 0.01)
    for t in range(NUM_STEPS):
        theta = theta - reference.sam_sps_step(theta, *loss_and_grad(t), *arguments)
        visited.append(theta)
    route = optax.chain(ascent.normalize(), ascent.scale_by_radius(RHO))
    tx = xsam_jax.sharpness_aware(route, descent.polyak_step(*arguments[1:]))
    assert_same(run(tx, optimizer=optax.sgd(1.0))[0], np.stack(visited))


def cross_entropy(logits, indices):
    labels = jnp.asarray(problems.LABELS)[indices]
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def test_functional_sam_is_its_published_formula():
    theta, batch = THETA, BATCHES[0]

    def network(params):
        return problems.network_logits(params, batch)

    def flat_network(theta):
        return network(unravel(theta)).ravel()

    def derivative(logits):
        probabilities = np.exp(np.reshape(logits, (len(batch), -1)))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        targets = np.eye(probabilities.shape[1])[problems.LABELS[batch]]
        return ((probabilities - targets) / len(batch)).ravel()

    compiled = [jax.jit(flat_network), jax.jit(jax.jacrev(flat_network))]
    rule = *(lambda x, f=f: np.asarray(f(x)) for f in compiled), derivative
    tx, xsam = xsam_jax.sam(RHO), xsam_jax.xsam(RHO, RHO_MAX)

    @jax.jit
    def step(params):
        """The gradient, and the updates of SAM and XSAM, which reads losses, too."""
        grad_fn = xsam_jax.functional_grad_fn(
            network, partial(cross_entropy, indices=batch), params
        )
        grads, functions = grad_fn(params), {"grad_fn": grad_fn}
        updates = [tx.update(grads, tx.init(params), params, **functions)[0]]
        functions["value_fn"] = partial(loss, indices=batch)
        updates.append(xsam.update(grads, xsam.init(params), params, **functions)[0])
        return grads, *updates

    grads, updates, xsam_updates = (ravel_pytree(found)[0] for found in step(PARAMS))
    expected = reference.functional_sam(theta, *rule, RHO)
    assert_same(grads, of_batch(flat_gradient, 0)(theta))
    assert_same(updates, expected)
    np.testing.assert_allclose(np.linalg.norm(xsam_updates), np.linalg.norm(expected), rtol=1e-9)
    assert distance(expected, reference.sam(theta, *loss_and_grad(0), RHO)) > 1e-3
    trained = PARAMS
    for _ in range(NUM_STEPS):
        trained = jax.tree.map(lambda p, u: p - 0.1 * u, trained, step(trained)[1])
        theta = theta - 0.1 * reference.functional_sam(theta, *rule, RHO)
    assert_same(ravel_pytree(trained)[0], theta)
    # A scan over layers, as in language models: three forward passes would be five loops.
    layers = jnp.stack([jnp.eye(4)] * 3)

    def scanned(layers):
        return jax.lax.scan(lambda x, layer: (jnp.tanh(x @ layer), None), jnp.ones(4), layers)[0]

    @jax.jit
    def step(layers):
        grad_fn = xsam_jax.functional_grad_fn(scanned, lambda x: jnp.sum(x**2), layers)
        return tx.update(grad_fn(layers), tx.init(layers), layers, grad_fn=grad_fn)[0]

    assert step.lower(layers).compile().as_text().count(" while(") == 4


def test_functional_sam_of_a_linear_network_is_the_gradient():
    """Its Jacobian is the same everywhere, so no ascent changes anything."""
    x = jnp.asarray(problems.INPUTS)
    params = jnp.linspace(-1.0, 1.0, x.shape[1])

    def squared(outputs):
        return jnp.mean((outputs - 1.0) ** 2)

    grad_fn = xsam_jax.functional_grad_fn(lambda params: x @ params, squared, params)
    tx, grads = xsam_jax.sam(RHO), grad_fn(params)
    updates, _ = tx.update(grads, tx.init(params), params, grad_fn=grad_fn)
    closed_form = 2 * x.T @ (x @ params - 1.0) / len(x)
    np.testing.assert_allclose(updates, closed_form, rtol=1e-9)


def factors_of_subset(beta, **convention):
    """Mask / beta of every training step, one row each: a key for each step, then for each leaf."""
    rows = []
    for t in range(NUM_STEPS):
        row = []
        for index, leaf in enumerate(jax.tree.leaves(PARAMS)):
            key = jax.random.fold_in(jax.random.fold_in(KEY, t), index)
            shape = () if convention == OFFICIAL else leaf.shape
            mask = jax.random.bernoulli(key, np.float32(beta), shape)
            row.append(np.broadcast_to(mask, leaf.shape).ravel() / beta)
        rows.append(np.concatenate(row))
    return np.stack(rows)


@cache
def compiled_esam(**convention):
    return jax.jit(lambda *arguments: run(xsam_jax.esam(RHO, *arguments, **convention))[0])


def run_esam(beta, gamma, key, **convention):
    return compiled_esam(**convention)(beta, gamma, key)


@pytest.mark.parametrize(
    ("beta", "gamma", "num_selected", "convention"),
    [
        (0.6, 0.5, 3, {}),
        (0.6, 0.25, 1, OFFICIAL),
        (0.6, 0.99, 8, {"convention": "paper"}),
        (1.0, 0.1, 8, {}),
        (1.0, 0.9, 6, OFFICIAL),
    ],
)
def test_esam_is_its_published_formula(beta, gamma, num_selected, convention):
    algorithm = reference.Esam(RHO, gamma, factors_of_subset(beta, **convention))
    expected = expect(algorithm.step, losses_and_jacobian)
    assert set(algorithm.num_selected) == {num_selected}
    assert_same(run_esam(beta, gamma, KEY, **convention), expected)
    assert (distance(expected[-1], expect(SAM)[-1]) > 1e-3) == (beta < 1 or num_selected < 8)
    other_key = run_esam(beta, gamma, jax.random.key(9), **convention)
    assert (distance(other_key[-1], expected[-1]) > 1e-3) == (beta < 1)


# --- Gates: the library's, its argument, and the decision at step t with the gradient g ---


def threshold(t):
    return 1 - 2 * t / NUM_STEPS


def bernoulli(p):
    return gating.bernoulli(p, KEY)


def scheduled_bernoulli(slope):
    return gating.bernoulli(lambda t: slope * t, KEY)


def scheduled_gradient_norm(decay):
    return gating.gradient_norm(threshold, decay=decay)


def draw(t, p):
    return jax.random.bernoulli(jax.random.fold_in(KEY, t), np.float32(p))


GATES = {
    "every": (gating.every, 3, lambda t, g: t % 3 == 0),
    "after": (gating.after, 17, lambda t, g: t >= 17),
    "bernoulli": (bernoulli, 0.4, lambda t, g: draw(t, 0.4)),
    "bernoulli, schedule": (scheduled_bernoulli, 0.03, lambda t, g: draw(t, 0.03 * t)),
    "gradient_norm": (gating.gradient_norm, 0.5, reference.GradientNorm(lambda t: 0.5)),
    "gradient_norm, schedule": (
        scheduled_gradient_norm,
        0.6,
        reference.GradientNorm(threshold, decay=0.6),
    ),
}


@pytest.mark.parametrize("name", GATES)
def test_gate_decides_when_a_step_is_sharpness_aware(name):
    make_gate, argument, decide = GATES[name]
    algorithm = reference.Gated(SAM, decide)
    expected = expect(algorithm.step)
    assert 3 <= sum(algorithm.decisions) <= NUM_STEPS - 3
    visited, sharp_steps = compiled_gate(make_gate)(argument)
    assert_same(visited, expected)
    np.testing.assert_array_equal(sharp_steps, np.cumsum(algorithm.decisions))


def test_gated_method_keeps_its_state_in_skipped_steps():
    decide = GATES["every"][2]
    for tx, step in [
        (library_xsam(RHO), reference_xsam([RHO])),
        (xsam_jax.friendly_sam(RHO), reference.FriendlySam(RHO).step),
    ]:
        visited, _ = run(gating.gated(tx, gating.every(3)))
        assert_same(visited, expect(reference.Gated(step, decide).step))


# --- Identities within the library ---

IDENTITIES = {
    "gsam, alpha=0": ("sam", lambda: run_method("gsam", rho=RHO, alpha=0.0)),
    "wsam, gamma=1/2": ("sam", lambda: run_method("wsam", rho=RHO, gamma=0.5)),
    "gradient_norm_penalty, alpha=1": (
        "sam",
        lambda: run_method("gradient_norm_penalty", rho=RHO, alpha=1.0),
    ),
    "msam, k=1": ("sam", lambda: run_method("msam", rho=RHO, steps=1)),
    "lsam, k=1": ("sam", lambda: run_method("lsam", rho=RHO, steps=1)),
    "friendly_sam, sigma=0": ("sam", lambda: run_method("friendly_sam", rho=RHO, sigma=0.0)),
    "vasso, theta=1": ("sam", lambda: run_method("vasso", rho=RHO, theta=1.0)),
    "asam, T=1": (
        "sam",
        lambda: run_method("asam", rho=RHO, mask=jax.tree.map(lambda x: False, PARAMS)),
    ),
    "fisher_sam, eta=0": ("sam", lambda: run_method("fisher_sam", rho=RHO, eta=0.0)),
    "look_sam, every=1": ("sam", lambda: run_method("look_sam", rho=RHO, alpha=0.7, every=1)),
    "cr_sam, gamma=beta=0": ("sam", lambda: run_method("cr_sam", rho=RHO, gamma=0.0, beta=0.0)),
    "esam, beta=gamma=1": ("sam", lambda: run_esam(1.0, 1.0, KEY)),
    "gated, always": ("sam", lambda: compiled_gate(gating.every)(1)[0]),
    "gated, with probability 1": ("sam", lambda: compiled_gate(bernoulli)(1.0)[0]),
    "gated, with probability 0": ("sgd", lambda: compiled_gate(bernoulli)(0.0)[0]),
    "gated, never": ("sgd", lambda: compiled_gate(gating.after)(10**9)[0]),
    "xsam on sam": (
        "xsam",
        lambda: run(library_xsam(RHO, steps=2, direction=ascent.normalize()))[0],
    ),
}


@cache
def run_simpler(name):
    runs = {
        "sam": lambda: run_method("sam", rho=RHO),
        "sgd": lambda: run(optax.identity())[0],
        "xsam": lambda: run(library_xsam(RHO, steps=2))[0],
    }
    return runs[name]()


@pytest.mark.parametrize("name", IDENTITIES)
def test_method_without_its_idea_is_the_simpler_one(name):
    simpler, run_special_case = IDENTITIES[name]
    np.testing.assert_allclose(run_special_case(), run_simpler(simpler), rtol=1e-10)
