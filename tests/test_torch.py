"""The methods against plain PyTorch loops, which share no code with this library."""

import contextlib
import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import xsam_jax

torch = pytest.importorskip("torch")

LEARNING_RATE, MOMENTUM, NUM_STEPS, BATCH_SIZE = 0.05, 0.9, 30, 16
SHAPES = {"0": (16, 8), "2": (16, 16), "4": (3, 16)}


def dot(u, v):
    return sum((x * y).sum() for x, y in zip(u, v, strict=True))


def unit(u):
    return [x / dot(u, u).sqrt() for x in u]


def combine(a, u, b, v):
    return [a * x + b * y for x, y in zip(u, v, strict=True)]


@contextlib.contextmanager
def moved(model, radius, direction):
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for p, x in zip(model.parameters(), direction, strict=True):
            p.add_(radius * x)
    yield
    model.load_state_dict(start)


def gradient(model, loss):
    model.zero_grad()
    loss().backward()
    return [p.grad.clone() for p in model.parameters()]


def gradient_at(model, loss, radius, direction):
    with moved(model, radius, direction):
        return gradient(model, loss)


def set_gradient(model, u):
    for p, x in zip(model.parameters(), u, strict=True):
        p.grad.copy_(x)


# A method leaves its gradient in `p.grad`. It keeps its state in `memory`.
def sam(model, loss, memory, rho):
    gradient_at(model, loss, rho, unit(gradient(model, loss)))


def asam(model, loss, memory, rho, eta, mask):
    params = dict(model.named_parameters())
    t = [p.detach().abs() + eta if mask(params)[n] else p.new_ones(()) for n, p in params.items()]
    tg = [s * x for s, x in zip(t, gradient(model, loss), strict=True)]
    gradient_at(model, loss, rho, [s * x for s, x in zip(t, unit(tg), strict=True)])


def gsam(model, loss, memory, rho, alpha):
    g0 = gradient(model, loss)
    g1 = gradient_at(model, loss, rho, unit(g0))
    orthogonal = combine(1, g0, -dot(g0, g1) / dot(g1, g1), g1)
    set_gradient(model, combine(1, g1, -alpha, orthogonal))


def wsam(model, loss, memory, rho, gamma):
    g0 = gradient(model, loss)
    g1 = gradient_at(model, loss, rho, unit(g0))
    a = gamma / (1 - gamma)
    set_gradient(model, combine(1 - a, g0, a, g1))


def friendly_sam(model, loss, memory, rho, decay, sigma, convention):
    g = gradient(model, loss)
    if convention == "paper":
        memory["m"] = combine(decay, memory.get("m", [x * 0 for x in g]), 1 - decay, g)
        d = combine(1, g, -sigma, memory["m"])
    elif "m" in memory:
        d = combine(1, g, -sigma, memory["m"])
        memory["m"] = combine(decay, memory["m"], 1 - decay, g)
    else:
        d = memory["m"] = g
    gradient_at(model, loss, rho, unit(d))


def xsam(model, loss, memory, rho, rho_max, probe_every, alpha_max, num_alphas):
    v0 = unit(gradient(model, loss))
    g1 = gradient_at(model, loss, rho, v0)
    v1 = unit(g1)
    psi = dot(v0, v1).arccos()

    def v(a):
        return combine(((1 - a) * psi).sin() / psi.sin(), v0, (a * psi).sin() / psi.sin(), v1)

    def loss_at(a):
        with moved(model, rho_max, v(a)):
            return loss().item()

    step = memory["step"] = memory.get("step", -1) + 1
    if step % probe_every == 0:
        memory["alpha"] = max(np.linspace(0.0, alpha_max, num_alphas).tolist(), key=loss_at)
    set_gradient(model, [dot(g1, g1).sqrt() * x for x in v(memory["alpha"])])


# Both sides get the same arguments, at which every term of a formula weighs. The mask is the one of
# the official ASAM.
FRIENDLY = {"rho": 0.2, "decay": 0.6, "sigma": 0.7}
PROBES = {"rho_max": 0.6, "probe_every": 7, "alpha_max": 4.0, "num_alphas": 41}
MASK = {"mask": lambda params: {name: "weight" in name for name in params}}
CASES = {
    "sam": (sam, {"rho": 0.2}),
    "asam": (asam, {"rho": 0.5, "eta": 0.01, **MASK}),
    "gsam": (gsam, {"rho": 0.2, "alpha": 0.4}),
    "wsam": (wsam, {"rho": 0.2, "gamma": 0.8}),
    "friendly_sam, paper": (friendly_sam, {**FRIENDLY, "convention": "paper"}),
    "friendly_sam, official": (friendly_sam, {**FRIENDLY, "convention": "official"}),
    "xsam": (xsam, {"rho": 0.2, **PROBES}),
}


def make_problem():
    """The start under PyTorch's names, and inputs and labels of every step."""
    rng = np.random.default_rng(0)
    start = {}
    for layer, (n, m) in SHAPES.items():
        start[f"{layer}.weight"] = rng.normal(size=(n, m)) / np.sqrt(m)
        start[f"{layer}.bias"] = 0.1 * rng.normal(size=n)
    inputs = rng.normal(size=(NUM_STEPS, BATCH_SIZE, 8))
    return start, inputs, np.argmax(inputs @ rng.normal(size=(8, 3)), axis=-1)


def train_in_torch(method, arguments):
    start, inputs, labels = make_problem()
    a, b, c = (torch.nn.Linear(m, n, dtype=torch.float64) for n, m in SHAPES.values())
    model = torch.nn.Sequential(a, torch.nn.Tanh(), b, torch.nn.Tanh(), c)
    model.load_state_dict({name: torch.tensor(x) for name, x in start.items()})
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, momentum=MOMENTUM)
    cross_entropy = torch.nn.functional.cross_entropy
    memory, alphas = {}, []
    for x, y in zip(torch.tensor(inputs), torch.tensor(labels), strict=True):
        method(model, lambda x=x, y=y: cross_entropy(model(x), y), memory, **arguments)
        optimizer.step()
        alphas.append(memory.get("alpha", np.nan))
    return {name: p.detach().numpy() for name, p in model.named_parameters()}, alphas


def train_in_jax(method, arguments):
    start, inputs, labels = make_problem()
    sharpness_aware = getattr(xsam_jax, method.__name__)(**arguments)
    tx = optax.chain(sharpness_aware, optax.sgd(LEARNING_RATE, momentum=MOMENTUM))

    def loss(params, x, y):
        x = jnp.tanh(x @ params["0.weight"].T + params["0.bias"])
        x = jnp.tanh(x @ params["2.weight"].T + params["2.bias"])
        logits = x @ params["4.weight"].T + params["4.bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, opt_state, x, y):
        grads = jax.grad(loss)(params, x, y)
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=lambda p: loss(p, x, y))
        return optax.apply_updates(params, updates), opt_state

    params = jax.tree.map(jnp.asarray, start)
    opt_state, alphas = tx.init(params), []
    for x, y in zip(inputs, labels, strict=True):
        params, opt_state = step(params, opt_state, x, y)
        alphas.append(optax.tree.get(opt_state, "alpha", np.nan))
    return params, alphas


@pytest.mark.parametrize(("method", "arguments"), CASES.values(), ids=CASES)
@pytest.mark.usefixtures("x64")
def test_thirty_steps_equal_a_pytorch_loop(method, arguments):
    params, alphas = train_in_jax(method, arguments)
    expected, expected_alphas = train_in_torch(method, arguments)
    np.testing.assert_allclose(alphas, expected_alphas, rtol=1e-12)
    for name, x in expected.items():
        np.testing.assert_allclose(params[name], x, rtol=1e-9, atol=1e-13, err_msg=name)
