"""Methods with the optimizer inside, most with their gradient at `look_ahead`."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import problems
import pytest
import reference
from jax.flatten_util import ravel_pytree

from xsam_jax import (
    asam,
    async_sam,
    gating,
    look_ahead,
    lookbehind,
    momentum_sam,
    sam,
    sampa,
)
from xsam_jax.ascent import scale_by_magnitude

LEARNING_RATE, MOMENTUM, DECAY, NUM_STEPS, RHO = 0.05, 0.9, 0.02, 30, 0.3
SIZE = len(problems.LABELS)
_rng = np.random.default_rng(5)
BATCHES = np.stack([_rng.permutation(SIZE)[: SIZE // 2] for _ in range(NUM_STEPS)])
with jax.enable_x64(True):
    PARAMS = problems.network_params(jnp.float64)
    flat, unravel = ravel_pytree(PARAMS)
    THETA = np.asarray(flat)


def loss(params, indices):
    return problems.network_losses(params, indices).mean()


flat_gradient = jax.jit(jax.grad(lambda theta, indices: loss(unravel(theta), indices)))


def grad_of_step(t):
    return lambda theta: np.asarray(flat_gradient(theta, BATCHES[t]))


def run(tx, looks_ahead=True, batches=BATCHES):
    """The flat parameters after every step. `batches` are those of the caller's gradient."""

    def step(carry, indices):
        params, state = carry
        point = look_ahead(state, params) if looks_ahead else params
        grads = jax.grad(loss)(point, indices[0])
        value_fn = partial(loss, indices=indices[1])
        updates, state = tx.update(grads, state, params, value_fn=value_fn)
        params = optax.apply_updates(params, updates)
        return (params, state), ravel_pytree(params)[0]

    train = jax.jit(lambda params, *xs: jax.lax.scan(step, (params, tx.init(params)), xs)[1])
    return train(PARAMS, batches, BATCHES)


def rising(t):
    return 0.1 + 0.02 * t


def there_and_back(t):
    return jnp.where(t < 15, 0.1 * t, 0.0)


def sgd(**options):
    sgd = optax.sgd(LEARNING_RATE, MOMENTUM, **options)
    return optax.chain(optax.add_decayed_weights(DECAY), sgd)


TRAINING = {
    "learning_rate": LEARNING_RATE,
    "momentum": MOMENTUM,
    "weight_decay": DECAY,
    "num_steps": NUM_STEPS,
}
REFERENCE = partial(
    reference.momentum_sam,
    THETA,
    grad_of_step,
    **TRAINING,
)
LOOKBEHIND = partial(
    reference.lookbehind,
    THETA,
    grad_of_step,
    **TRAINING,
)
SAMPA = partial(
    reference.sampa,
    THETA,
    grad_of_step,
    rho=rising,
    weight=0.3,
    **TRAINING,
)
LAST_BATCHES = np.roll(BATCHES, 1, axis=0)


def last_grad_of_step(t):
    return grad_of_step(t - 1)  # of the last batch, for the first step that of the thirtieth


def cosine_of(first, way):
    return (1 + first @ way / np.linalg.norm(first) / np.linalg.norm(way)) / 2


def cosine_of_each_array(first, way):
    """One alpha for each array, repeated for its entries."""
    arrays = zip(*(jax.tree.leaves(unravel(jnp.asarray(x))) for x in (first, way)), strict=True)
    return np.concatenate(
        [np.full(np.size(a), cosine_of(np.ravel(a), np.ravel(b))) for a, b in arrays]
    )


HEAVY_BALL = optax.sgd(LEARNING_RATE, MOMENTUM)
ADAMW = optax.adamw(0.01, weight_decay=DECAY)
# The library's side, and the paper's.
RULES = {
    "momentum_sam": (momentum_sam(sgd(), RHO), lambda: REFERENCE(lambda t: RHO)),
    "momentum_sam, official": (
        momentum_sam(sgd(), RHO, convention="official"),
        lambda: REFERENCE(lambda t: RHO, decays_the_perturbed_point=True),
    ),
    "momentum_sam, Nesterov": (
        momentum_sam(sgd(nesterov=True), RHO),
        lambda: REFERENCE(lambda t: RHO, nesterov=True),
    ),
    "momentum_sam, schedule": (momentum_sam(sgd(), rising), lambda: REFERENCE(rising)),
    "momentum_sam, AdamW": (
        momentum_sam(ADAMW, RHO),
        lambda: reference.momentum_sam_adamw(THETA, grad_of_step, RHO, 0.01, DECAY, NUM_STEPS),
    ),
    **{
        f"async_sam, reuse={reuse}": (
            async_sam(HEAVY_BALL, rising, reuse=reuse),
            partial(
                reference.async_sam,
                *(THETA, grad_of_step, rising, LEARNING_RATE, MOMENTUM, NUM_STEPS),
                reuse=reuse,
            ),
        )
        for reuse in (True, False)
    },
    "async_sam, ascent of ASAM": (
        async_sam(HEAVY_BALL, rising, direction=scale_by_magnitude(0.2)),
        lambda: reference.async_sam(
            *(THETA, grad_of_step, rising, LEARNING_RATE, MOMENTUM, NUM_STEPS),
            reuse=True,
            direction=reference.magnitude(1.0, 0.2),
        ),
    ),
}


RULES |= {
    "sampa": (
        sampa(sgd(), LEARNING_RATE, rising, 0.3),
        lambda: SAMPA(grad_of_step, official=False),
    ),
    "sampa, official, same batch": (
        sampa(sgd(), LEARNING_RATE, rising, 0.3, convention="official"),
        lambda: SAMPA(grad_of_step, official=True),
    ),
    "sampa, official, last batch": (
        sampa(sgd(), LEARNING_RATE, rising, 0.3, convention="official"),
        lambda: SAMPA(last_grad_of_step, official=True),
    ),
    "lookbehind": (lookbehind(sgd(), rising, 3, 0.4), lambda: LOOKBEHIND(rising, 3, 0.4)),
    "lookbehind, adaptive": (
        lookbehind(sgd(), RHO, 2, "adaptive"),
        lambda: LOOKBEHIND(lambda t: RHO, 2, cosine_of),
    ),
    "lookbehind, adaptive, official": (
        lookbehind(sgd(), RHO, 2, "adaptive", convention="official"),
        lambda: LOOKBEHIND(lambda t: RHO, 2, cosine_of_each_array),
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", RULES)
def test_method_is_its_published_formula(name):
    tx, expect = RULES[name]
    batches = LAST_BATCHES if "last batch" in name else BATCHES
    visited = run(tx, looks_ahead="lookbehind" not in name, batches=batches)
    np.testing.assert_allclose(visited, expect(), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_lookbehind_with_one_step_and_alpha_1_is_sam():
    expected = run(optax.chain(sam(RHO), sgd()), looks_ahead=False)
    visited = run(lookbehind(sgd(), RHO, 1, 1.0), looks_ahead=False)
    np.testing.assert_allclose(visited, expected, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_lookbehind_has_the_ascent_of_asam():
    """One step with alpha 1 is ASAM."""
    expected = run(optax.chain(asam(RHO, 0.2), sgd()), looks_ahead=False)
    tx = lookbehind(sgd(), RHO, 1, 1.0, direction=scale_by_magnitude(0.2))
    np.testing.assert_allclose(run(tx, looks_ahead=False), expected, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_formulas_differ_from_each_other():
    ends = [expect()[-1] for _, expect in RULES.values()]
    for i, end in enumerate(ends):
        for other in ends[:i]:
            assert np.linalg.norm(end - other) > 1e-3 * np.linalg.norm(end)


def no_look_ahead(tx):
    """The parameters after every step of the base optimizer."""

    def step(carry, indices):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, indices), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), ravel_pytree(params)[0]

    return jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), BATCHES)[1]


OPTIMIZERS = {
    "sgd": optax.sgd(LEARNING_RATE, MOMENTUM),
    "nesterov": optax.sgd(LEARNING_RATE, MOMENTUM, nesterov=True),
    "adam": optax.adam(0.01),
    "adamw": optax.adamw(0.01),
    "lion": optax.lion(0.003),
    "muon": optax.contrib.muon(0.01),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_radius_it_is_the_optimizer_and_with_one_it_is_not(name):
    optimizer = OPTIMIZERS[name]
    expected = no_look_ahead(optimizer)
    for method in (momentum_sam, async_sam):
        visited = jax.jit(lambda rho, method=method: run(method(optimizer, rho)))
        np.testing.assert_allclose(visited(0.0), expected, rtol=1e-9)
        perturbed = visited(RHO)
        assert np.linalg.norm(perturbed[-1] - expected[-1]) > 1e-3 * np.linalg.norm(expected[-1])


@pytest.mark.usefixtures("x64")
def test_a_radius_that_returns_to_zero_leaves_no_drift():
    """The last steps are those of the optimizer, from the same parameters and momentum."""
    visited = run(momentum_sam(sgd(), there_and_back))
    theta, v = visited[14], (visited[13] - visited[14]) / LEARNING_RATE
    for t in range(15, NUM_STEPS):
        v = MOMENTUM * v + grad_of_step(t)(theta) + DECAY * theta
        theta = theta - LEARNING_RATE * v
        np.testing.assert_allclose(visited[t], theta, rtol=1e-9)


def quadratic(params):
    return 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def params_of(dtype=jnp.float32):
    return {"weight": jnp.full((2, 3), 2.0, dtype), "bias": jnp.full(3, 1.0, dtype)}


def after_a_step(tx, params, grads=None):
    grads = jax.grad(quadratic)(params) if grads is None else grads
    return tx.update(grads, tx.init(params), params, value_fn=quadratic)


def sampa_of(optimizer, rho):
    return sampa(optimizer, 0.1, rho)


LABELS = {"weight": "a", "bias": "b"}
WITH_MOMENTUM = {
    **OPTIMIZERS,
    # The momentum of these is one of steps, not of gradients.
    "lars": optax.lars(0.1),
    "lars, warm-up": optax.lars(optax.linear_schedule(0.0, 0.1, 5)),
    "rmsprop": optax.rmsprop(0.1, momentum=0.9),
    "injected": optax.inject_hyperparams(optax.adam)(1e-3),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, 0.9)),
    "partition": optax.partition({"a": optax.adam(1e-3), "b": optax.sgd(0.1, 0.9)}, LABELS),
    "if finite": optax.apply_if_finite(optax.sgd(0.1, 0.9), 3),
}


@pytest.mark.parametrize("name", WITH_MOMENTUM)
def test_the_perturbation_points_where_the_optimizer_goes(name):
    params = params_of()
    tx = momentum_sam(WITH_MOMENTUM[name], RHO)
    _, state = after_a_step(tx, params)
    _, state = tx.update(jax.grad(quadratic)(params), state, params)
    ahead = jax.tree.map(jnp.subtract, look_ahead(state, params), params)
    assert optax.tree.norm(ahead) == pytest.approx(RHO, rel=1e-4)
    assert all(jnp.all(leaf < 0) for leaf in jax.tree.leaves(ahead))


def test_a_parameter_without_momentum_is_not_perturbed():
    params = params_of()
    tx = momentum_sam(optax.masked(optax.sgd(0.1, 0.9), {"weight": True, "bias": False}), RHO)
    _, state = after_a_step(tx, params)
    point = look_ahead(state, params)
    chex.assert_trees_all_equal(point["bias"], params["bias"])
    length = jnp.linalg.norm(point["weight"] - params["weight"])
    assert length == pytest.approx(RHO, rel=1e-4)


@pytest.mark.parametrize("method", [momentum_sam, async_sam, sampa_of])
def test_dtypes_of_the_parameters_are_kept(method):
    params = params_of(jnp.bfloat16)
    tx = method(optax.sgd(0.1, 0.9), 1.0)
    updates, state = after_a_step(tx, params)
    point = look_ahead(state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, updates, point)
    assert jnp.all(point["bias"] != params["bias"])


def test_the_momentum_may_have_the_name_of_a_parameter():
    params = {"mu": jnp.ones(2), "trace": jnp.ones(3)}
    _, state = after_a_step(momentum_sam(optax.adam(1e-3), RHO), params)
    difference = jax.tree.map(jnp.subtract, look_ahead(state, params), params)
    assert optax.tree.norm(difference) == pytest.approx(RHO, rel=1e-4)


@pytest.mark.usefixtures("x64")
def test_async_sam_with_a_constant_gradient_is_sam():
    """The gradient of the last step and that of this step are the same, so both ascend alike."""
    grads, sgd = unravel(THETA), optax.sgd(LEARNING_RATE)

    def curved(params):
        return optax.tree.norm(params) ** 4

    tx, method = async_sam(sgd, RHO), optax.chain(sam(RHO), sgd)

    @jax.jit
    def second_step():
        _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
        return tx.update(jax.grad(curved)(look_ahead(state, PARAMS)), state, PARAMS)[0]

    @jax.jit
    def step():
        return method.update(grads, method.init(PARAMS), PARAMS, value_fn=curved)[0]

    chex.assert_trees_all_close(second_step(), step(), rtol=1e-9)


@pytest.mark.parametrize("method", [momentum_sam, async_sam, sampa_of])
def test_a_run_resumes_with_equal_bits_from_clean_parameters(method, tmp_path):
    tx, params = method(optax.adam(0.1), optax.linear_schedule(0.1, 1.0, 5)), params_of()

    @jax.jit
    def step(params, state):
        grads = jax.grad(quadratic)(look_ahead(state, params))
        updates, state = tx.update(grads, state, params, value_fn=quadratic)
        return optax.apply_updates(params, updates), state

    saved = step(*step(params, tx.init(params)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", saved)
        checkpointer.wait_until_finished()
        abstract = jax.eval_shape(lambda: (params, tx.init(params)))
        restored = checkpointer.restore(tmp_path / "saved", abstract)
    chex.assert_trees_all_equal(step(*step(*restored)), step(*step(*saved)))


@pytest.mark.parametrize("method", [momentum_sam, async_sam, sampa_of])
def test_a_bad_gradient_does_not_stay_in_the_state(method):
    """The optimizer inside is guarded. The perturbation after the bad batch must be finite, too."""
    tx, params = method(optax.apply_if_finite(HEAVY_BALL, 3), RHO), params_of()
    _, state = after_a_step(tx, params)

    def nan(params):
        return jnp.nan * quadratic(params)

    updates, state = tx.update(jax.grad(nan)(params), state, params, value_fn=nan)
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
    chex.assert_tree_all_finite(look_ahead(state, params))
    assert optax.tree.norm(optax.tree.sub(look_ahead(state, params), params)) > RHO / 2


@pytest.mark.parametrize("method", [momentum_sam, async_sam, sampa_of])
def test_an_array_of_the_caller_is_not_donated(method):
    """The state has the radius, too, and JAX refuses to donate a buffer twice."""
    rho = jnp.float32(RHO)
    injected = optax.inject_hyperparams(lambda rho: method(HEAVY_BALL, rho))(rho=RHO)
    for tx in (method(HEAVY_BALL, rho), injected):
        state = tx.init(params_of())
        jax.block_until_ready(jax.jit(lambda state: state, donate_argnums=0)(state))
    assert not rho.is_deleted()


def test_look_ahead_finds_the_state_in_wrappers():
    params = params_of()
    for wrap in (
        lambda tx: optax.chain(optax.clip(1.0), tx),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    ):
        _, state = after_a_step(wrap(momentum_sam(optax.sgd(0.1, 0.9), RHO)), params)
        assert jnp.all(look_ahead(state, params)["bias"] < params["bias"])


# --- Errors ---


SGD = optax.sgd(0.1)


def two_momenta():
    return optax.chain(optax.trace(0.9), optax.adam(1e-3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: momentum_sam(0.1, 0.3), TypeError, "optimizer must be an optax.Gradient"),
        (lambda p: async_sam(0.1, 0.3), TypeError, "optimizer must be an optax.Gradient"),
        (lambda p: momentum_sam(optax.adam(0.1), -1.0), ValueError, "rho must be at least 0"),
        (lambda p: async_sam(optax.adam(0.1), -1.0), ValueError, "rho must be at least 0"),
        (
            lambda p: momentum_sam(optax.adam(0.1), 0.3, convention="paper"),
            ValueError,
            "convention must be one of 'chain', 'official', got 'paper'",
        ),
        (lambda p: momentum_sam(optax.sgd(0.1), 0.3).init(p), ValueError, "has no momentum"),
        (lambda p: momentum_sam(optax.sm3(0.1), 0.3).init(p), ValueError, "has no momentum"),
        (lambda p: momentum_sam(two_momenta(), 0.3).init(p), ValueError, "several momenta"),
        (
            lambda p: momentum_sam(optax.chain(sam(0.1), HEAVY_BALL), 0.3).init(p),
            TypeError,
            "optimizer must be .* no method belongs inside the optimizer of another",
        ),
        (
            lambda p: lookbehind(optax.chain(sam(0.1), HEAVY_BALL), 0.3).init(p),
            TypeError,
            "optimizer must be .* no method belongs inside",
        ),
        (
            lambda p: async_sam(SGD, 0.3, direction=asam(0.1)).init(p),
            TypeError,
            "direction must be one slot of a method",
        ),
        *(
            (
                lambda p, method=method: look_ahead(
                    method(HEAVY_BALL, 0.3).init(p | {"bias": jnp.ones(1)}), p
                ),
                ValueError,
                "opt_state does not belong to params",
            )
            for method in (momentum_sam, async_sam)
        ),
        (
            lambda p: optax.masked(
                momentum_sam(HEAVY_BALL, 0.3), {"weight": True, "bias": False}
            ).init(p),
            ValueError,
            r"momentum_sam\(optax.partition\(...\), rho\), which",
        ),
        (lambda p: async_sam(SGD, (0.1, 0.2)), TypeError, "rho must be"),
        (lambda p: async_sam(SGD, 0.1, direction=0.1), TypeError, "direction must be"),
        (
            lambda p: look_ahead(optax.adam(0.1).init(p), p),
            TypeError,
            "opt_state has no states of momentum_sam, async_sam or sampa",
        ),
        (
            lambda p: look_ahead([momentum_sam(optax.adam(0.1), 0.3).init(p)] * 2, p),
            TypeError,
            "opt_state has 2 states of momentum_sam",
        ),
        (
            lambda p: look_ahead(momentum_sam(optax.adam(0.1), 0.3).init(p), {"bias": p["bias"]}),
            ValueError,
            "opt_state does not belong to params",
        ),
        (
            lambda p: look_ahead(async_sam(optax.adam(0.1), 0.3).init(p), {"bias": p["bias"]}),
            ValueError,
            "opt_state does not belong to params",
        ),
        (
            lambda p: async_sam(optax.adam(0.1), 0.3, reuse=False).update(
                p, async_sam(optax.adam(0.1), 0.3).init(p), p
            ),
            ValueError,
            "value_fn is missing",
        ),
        (
            lambda p: sampa_of(SGD, 0.3).update(p, sampa_of(SGD, 0.3).init(p), p),
            ValueError,
            "value_fn is missing",
        ),
        (lambda p: sampa(0.1, 0.1, 0.3), TypeError, "optimizer must be an optax.Gradient"),
        (lambda p: sampa(SGD, -0.1, 0.3), ValueError, "learning_rate must be at least 0"),
        (lambda p: sampa(SGD, 0.1, -0.3), ValueError, "rho must be at least 0"),
        (lambda p: sampa(SGD, 0.1, 0.3, 1.1), ValueError, "weight must be at most 1, got 1.1"),
        (lambda p: sampa(SGD, 0.1, 0.3, convention="x"), ValueError, "convention must be one of"),
        (lambda p: lookbehind(0.1, 0.3), TypeError, "optimizer must be an optax.Gradient"),
        (lambda p: lookbehind(SGD, 0.3, 0), ValueError, "steps must be at least 1"),
        (lambda p: lookbehind(SGD, (0.3, 0.1, 0.2), 2), ValueError, "one radius per ascent step"),
        (lambda p: lookbehind(SGD, 0.3, 2, 1.5), ValueError, "alpha must be at most 1, got 1.5"),
        (lambda p: lookbehind(SGD, 0.3, 2, "cosine"), ValueError, "alpha must be one of 'adap"),
        (lambda p: lookbehind(SGD, 0.3, convention="x"), ValueError, "convention must be one of"),
        (
            lambda p: momentum_sam(optax.adam(0.1), 0.3).update(
                p, momentum_sam(optax.adam(0.1), 0.3).init(p)
            ),
            ValueError,
            "params is missing",
        ),
        (
            lambda p: momentum_sam(optax.adam(0.1), 0.3).update(p, optax.adam(0.1).init(p), p),
            TypeError,
            "opt_state is not a state of this transformation",
        ),
        (
            lambda p: gating.gated(momentum_sam(optax.adam(0.1), 0.3), gating.every(2)).init(p),
            TypeError,
            "gated must not have decoupled_wsam, lookbehind, momentum_sam",
        ),
    ],
)
def test_wrong_arguments_raise(call, error, message):
    with pytest.raises(error, match=message):
        call(params_of())
