"""Theorems and arguments of the two papers, on problems where they can be checked."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xsam_jax import friendly_sam
from xsam_jax.ascent import subtract_ema

# A noisy quadratic: the gradient of batch i is H w + noise_i, and the noise of all batches is zero.
HESSIAN = np.diag([0.1, 0.5, 1.0, 2.0])
_rng = np.random.default_rng(0)
NOISE = _rng.normal(size=(64, 4))
NOISE -= NOISE.mean(axis=0)
START = np.array([3.0, -2.0, 1.0, -1.0])


@pytest.mark.usefixtures("x64")
def test_the_direction_of_friendly_sam_is_orthogonal_to_the_full_gradient_in_expectation():
    """F-SAM paper, lemma 1: with an unbiased average and sigma = 1, but not with another sigma."""
    full = HESSIAN @ START
    for sigma, orthogonal in ((1.0, True), (0.5, False)):
        tx = subtract_ema(decay=1.0, sigma=sigma)  # a decay of 1 keeps the average
        state = tx.init(jnp.asarray(START))._replace(average=jnp.asarray(full))
        products = [tx.update(jnp.asarray(full + e), state)[0] @ full for e in NOISE]
        share = np.mean(products) / (full @ full)
        assert (abs(share) < 1e-12) == orthogonal


def error_of_average(learning_rate, steps=4000):
    """The mean distance of F-SAM's average from the full gradient, in the second half of a run."""
    tx = friendly_sam(0.5, decay=1 - learning_rate ** (2 / 3))
    rows = jax.random.randint(jax.random.key(0), (steps,), 0, len(NOISE))

    def step(carry, row):
        w, state = carry

        def grad_fn(w):
            return jnp.asarray(HESSIAN) @ w + jnp.asarray(NOISE)[row]

        updates, state = tx.update(grad_fn(w), state, w, grad_fn=grad_fn)
        error = jnp.linalg.norm(optax.tree.get(state, "average") - jnp.asarray(HESSIAN) @ w)
        return (w - learning_rate * updates, state), error

    w = jnp.asarray(START)
    _, errors = jax.jit(lambda: jax.lax.scan(step, (w, tx.init(w)), rows))()
    return float(errors[steps // 2 :].mean())


@pytest.mark.usefixtures("x64")
def test_the_average_nears_the_full_gradient_with_the_cube_root_of_the_learning_rate():
    """F-SAM paper, theorem 1, with the average of weight gamma^(2/3) for the new gradient."""
    errors = [error_of_average(rate) for rate in (0.064, 0.008, 0.001)]
    # Learning rates fall by eight, so the bound falls by two.
    for larger, smaller in itertools.pairwise(errors):
        assert 1.7 < larger / smaller < 2.3


def slope(w):
    """The derivative of log(exp(w) + exp(-3 w)), which is steeper on the left of its minimum.

    So its mean over w - rho and w + rho vanishes elsewhere.
    """
    return (jnp.exp(w) - 3 * jnp.exp(-3 * w)) / (jnp.exp(w) + jnp.exp(-3 * w))


def mean_squared_gradient(rho, steps):
    """The left side of theorem 2 for F-SAM, the sum of the loss above over four parameters."""
    tx = optax.chain(friendly_sam(rho, decay=0.9), optax.sgd(0.25 / np.sqrt(steps)))
    rows = jax.random.randint(jax.random.key(1), (steps,), 0, len(NOISE))

    def step(carry, row):
        w, state = carry

        def grad_fn(w):
            return slope(w) + jnp.asarray(NOISE)[row]

        updates, state = tx.update(grad_fn(w), state, w, grad_fn=grad_fn)
        return (optax.apply_updates(w, updates), state), jnp.sum(slope(w) ** 2)

    w = jnp.asarray(START)
    _, squares = jax.jit(lambda: jax.lax.scan(step, (w, tx.init(w)), rows))()
    return float(squares.mean())


@pytest.mark.usefixtures("x64")
def test_friendly_sam_converges_at_the_rate_of_theorem_2():
    """The bound of the theorem with its constants, and no slower than log(T) / sqrt(T).

    With a constant radius it does not converge.
    """
    beta, gamma_0, rho_0 = 4.0, 0.25, 2.0
    variance = (NOISE**2).sum(axis=1).mean()
    minimum = np.log(3) / 4
    losses = [np.log(np.exp(w) + np.exp(-3 * w)) for w in (START, minimum)]
    gap = np.sum(losses[0] - losses[1])
    previous = np.inf, 0.0
    for steps in (1024, 4096, 16384):
        falling = mean_squared_gradient(lambda count: rho_0 / jnp.sqrt(count + 1.0), steps)
        constant = mean_squared_gradient(rho_0, steps)
        theta = 2 * beta * variance * gamma_0 + rho_0**2 * beta**3 * gamma_0
        right = 2 * gap / gamma_0 + theta + rho_0**2 * beta**2 * np.log(steps)
        assert falling <= right / np.sqrt(steps)
        rates = [mean * np.sqrt(steps) / np.log(steps) for mean in (falling, constant)]
        assert rates[0] < 1.05 * previous[0]
        assert rates[1] > 1.3 * previous[1]
        previous = tuple(rates)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(5))
def test_each_further_gradient_is_better_where_the_last_one_stands(seed):
    """XSAM paper, section 2.2.3: g_{i+1} applied at theta_i, by proposition 1 at every step."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    hessian = basis @ np.diag(rng.uniform(0.5, 8.0, 6)) @ basis.T

    def loss(w):
        return 0.5 * w @ hessian @ w

    def far(w, g):
        return loss(w + 50.0 * g / np.linalg.norm(g))

    points = [rng.normal(size=6)]
    for _ in range(4):
        g = hessian @ points[-1]
        points.append(points[-1] + 0.3 * g / np.linalg.norm(g))
    for i in range(4):
        at, after = hessian @ points[i], hessian @ points[i + 1]
        assert far(points[i], after) > far(points[i], at)
        # There are better directions than that of SAM, beyond it.
        assert far(points[i], 1.5 * after - 0.5 * at) > far(points[i], after)
