"""Small smooth problems with known structure, as JAX losses of pytrees."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

PyTree = Any


@dataclass(frozen=True)
class Problem:
    """A pure scalar loss of a pytree, and the start in the dtype asked for."""

    name: str
    loss: Callable[[PyTree], jax.Array]
    make_params: Callable[..., PyTree]

    def __str__(self) -> str:
        return self.name


CURVATURES = {
    "weight": np.geomspace(0.1, 2.0, 6).reshape(3, 2),
    "bias": np.geomspace(0.2, 5.0, 4),
}


def quadratic_loss(params: PyTree) -> jax.Array:
    """Half the sum of curvature x^2: Hessian diag(CURVATURES), minimum 0 at the origin."""
    terms = jax.tree.map(lambda c, x: jnp.sum(jnp.asarray(c, x.dtype) * x**2), CURVATURES, params)
    return 0.5 * sum(jax.tree.leaves(terms))


def quadratic_params(dtype: Any = jnp.float32) -> PyTree:
    """Every eigenvector of the Hessian has a share, with signs that differ within a leaf."""
    weight = np.array([[1.5, -1.2], [0.9, 0.7], [-0.8, 0.5]])
    bias = np.array([-1.0, 0.8, 0.6, -0.4])
    return {"weight": jnp.asarray(weight, dtype), "bias": jnp.asarray(bias, dtype)}


def rosenbrock_loss(params: PyTree) -> jax.Array:
    """The curved valley, ten times as steep as it slopes: not convex, minimum 0 at (1, ..., 1)."""
    # The usual hundred would need rates and radii far below those of the other problems.
    x = params
    return jnp.sum((x[1:] - x[:-1] ** 2) ** 2 + 0.1 * (1 - x[:-1]) ** 2)


def rosenbrock_params(dtype: Any = jnp.float32) -> PyTree:
    """The pytree is one leaf without a container."""
    return jnp.asarray([-1.2, 1.0, -0.5, 0.8], dtype)


WIDTHS = (4, 5, 5, 3)


def _network_data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(16, WIDTHS[0]))
    teacher = rng.normal(size=(WIDTHS[0], WIDTHS[-1]))
    return inputs, np.argmax(inputs @ teacher, axis=1)


INPUTS, LABELS = _network_data()


def network_logits(params: PyTree, indices: Any = slice(None)) -> jax.Array:
    """The outputs of a tanh network with two hidden layers for some of the samples."""
    # NumPy's float64 would lift everything to float64 under x64.
    x = jnp.asarray(INPUTS, params["output"]["bias"].dtype)[indices]
    for layer in params["hidden"]:
        x = jnp.tanh(x @ layer["weight"] + layer["bias"])
    return x @ params["output"]["weight"] + params["output"]["bias"]


def network_losses(params: PyTree, indices: Any) -> jax.Array:
    """The cross-entropy of each of some samples."""
    logits, labels = network_logits(params, indices), jnp.asarray(LABELS)[indices]
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


def network_loss(params: PyTree) -> jax.Array:
    """Cross-entropy of the network, with labels of a linear teacher."""
    log_probabilities = jax.nn.log_softmax(network_logits(params))
    return -jnp.mean(jnp.take_along_axis(log_probabilities, LABELS[:, None], axis=1))


def network_params(dtype: Any = jnp.float32) -> PyTree:
    """73 parameters in nested dicts and a list."""
    rng = np.random.default_rng(1)
    layers = [
        {
            "weight": jnp.asarray(rng.normal(size=(n, m)) / np.sqrt(n), dtype),
            "bias": jnp.asarray(0.1 * rng.normal(size=m), dtype),
        }
        for n, m in pairwise(WIDTHS)
    ]
    return {"hidden": layers[:-1], "output": layers[-1]}


quadratic = Problem("quadratic", quadratic_loss, quadratic_params)
rosenbrock = Problem("rosenbrock", rosenbrock_loss, rosenbrock_params)
network = Problem("network", network_loss, network_params)

PROBLEMS = [quadratic, rosenbrock, network]


@functools.cache
def flatten(
    problem: Problem,
) -> tuple[
    np.ndarray,
    Callable[[np.ndarray], float],
    Callable[[np.ndarray], np.ndarray],
    Callable[[np.ndarray], PyTree],
]:
    """(theta0, loss, grad, unravel) in float64, as `reference` wants them, with x64 on or off."""
    # A float32 test compares with the float64 reference too, so x64 is switched on just here.
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(problem.make_params(jnp.float64))
        theta0 = np.array(flat)
    jitted_loss = jax.jit(lambda theta: problem.loss(unravel(theta)))
    jitted_grad = jax.jit(jax.grad(lambda theta: problem.loss(unravel(theta))))

    def loss(theta: np.ndarray) -> float:
        with jax.enable_x64(True):
            return float(jitted_loss(theta))

    def grad(theta: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(jitted_grad(theta), np.float64)

    def unravel64(theta: np.ndarray) -> PyTree:
        with jax.enable_x64(True):
            return unravel(jnp.asarray(theta, jnp.float64))

    return theta0, loss, grad, unravel64
