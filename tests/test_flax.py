"""Flax NNX and linen: statistics advance once, masks are shared, extra arguments arrive."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from methods import METHODS

import xsam_jax
from xsam_jax import flax_linen, flax_nnx

# The adapters do not know the method. These differ in the passes they take, and in their states.
KINDS = ["sam", "xsam, two steps", "friendly_sam", "gam", "look_sam", "xsam at random", "esam"]
every_kind = pytest.mark.parametrize("method", [METHODS[name] for name in KINDS], ids=KINDS)
X = jax.random.normal(jax.random.key(0), (8, 5))
Y = jax.random.normal(jax.random.key(1), (8, 1))


class Network(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(5, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.outer = nnx.Linear(16, 1, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.calls[...] += 1
        x = self.dropout(nnx.relu(self.norm(self.inner(x))))
        # Statistics and the mask, as this very pass saw them.
        jax.debug.callback(lambda used: PASSES.append(np.asarray(used) != 0), x)
        return self.outer(x)


PASSES: list = []


def losses_fn(model, x, y):
    return jnp.mean((model(x) - y) ** 2, axis=1)


def loss_fn(model, x, y):
    return jnp.mean(losses_fn(model, x, y))


def arguments(method, model):
    """What the method needs of the loss, made by the adapter."""
    name, function = ("losses_fn", losses_fn) if method.sample_losses else ("value_fn", loss_fn)
    return {name: flax_nnx.make_value_fn(function, model, X, Y)}


def others(model):
    """All that is no parameter: statistics, keys, counters."""
    state = nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))
    is_key = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, state)


def with_sgd(method):
    return method.make() if method.optimizer else optax.chain(method.make(), optax.sgd(0.1))


def train_step(method, tx=None, when="before"):
    tx = with_sgd(method) if tx is None else tx
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        if when == "before":
            extra_args = arguments(method, model)
        loss, grads = nnx.value_and_grad(loss_fn)(model, X, Y)
        if when == "after":
            extra_args = arguments(method, model)
        optimizer.update(model, grads, value=loss, **extra_args)
        return loss

    PASSES.clear()
    step(model, optimizer)
    jax.effects_barrier()
    return model, optimizer, step


@every_kind
def test_nnx_statistics_keys_and_counters_advance_once_in_the_clean_pass(method):
    model, _, _ = train_step(method)
    once = Network(nnx.Rngs(0))
    loss_fn(once, X, Y)
    chex.assert_trees_all_close(others(model), others(once), rtol=1e-6)
    assert int(model.calls[...]) == 1


@every_kind
def test_nnx_passes_of_a_step_share_the_dropout_mask(method):
    train_step(method)
    assert len(PASSES) >= 1 + method.gradients
    dropped = [~seen.any(axis=0) for seen in PASSES]
    clean = PASSES[0]
    # Units dropped in the clean pass are dropped in all; relu may switch some others off.
    jax_mask = dropout_mask()
    assert all((seen <= jax_mask).all() for seen in PASSES)
    assert clean.any()
    assert len(dropped) == len(PASSES)


def dropout_mask():
    """The mask of the first pass of `Network(nnx.Rngs(0))`, from what survives of ones."""
    model = Network(nnx.Rngs(0))
    return np.asarray(model.dropout(jnp.ones((8, 16)))) != 0


def test_nnx_a_value_fn_made_after_the_clean_pass_has_a_fresh_mask():
    train_step(METHODS["sam"], when="after")
    mask = dropout_mask()
    assert (PASSES[0] <= mask).all()
    assert not (PASSES[1] <= mask).all()


def test_nnx_steps_do_not_recompile_and_alpha_is_a_variable():
    tx = optax.chain(xsam_jax.xsam(0.3, 0.6, probe_every=1), optax.sgd(0.1))
    model, optimizer, step = train_step(METHODS["xsam"], tx)
    first = float(step(model, optimizer))
    for _ in range(20):
        last = float(step(model, optimizer))
    assert last < first
    state = nnx.as_pure(optimizer.opt_state)
    assert 0 <= float(optax.tree.get(state, "alpha")) <= 2
    assert int(optax.tree.get(state, "count")) == 22


@every_kind
def test_nnx_update_is_the_update_of_bare_jax(method):
    tx = with_sgd(method)
    model, _, _ = train_step(method, tx)
    fresh = Network(nnx.Rngs(0))
    graphdef, params, rest = nnx.split(fresh, nnx.Param, ...)
    params, rest = nnx.as_pure(params), nnx.as_pure(rest)

    def losses(params):
        return losses_fn(nnx.merge(graphdef, params, rest), X, Y)

    def value_fn(params):
        return losses(params).mean()

    @jax.jit
    def update(params):
        loss_functions = {"losses_fn": losses} if method.sample_losses else {"value_fn": value_fn}
        return tx.update(jax.grad(value_fn)(params), tx.init(params), params, **loss_functions)

    updates, _ = update(params)
    expected = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(
        nnx.as_pure(nnx.state(model, nnx.Param)), expected, rtol=1e-4, atol=1e-6
    )


def test_nnx_an_auxiliary_output_is_dropped():
    model = Network(nnx.Rngs(0))
    value_fn = flax_nnx.make_value_fn(lambda m, x: (jnp.sum(m(x)), "aux"), model, X, has_aux=True)
    assert value_fn(nnx.state(model, nnx.Param)).shape == ()


def test_nnx_wrong_arguments_are_explained():
    model = Network(nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"loss_fn must be a function .* got Network"):
        flax_nnx.make_value_fn(model, loss_fn, X, Y)
    with pytest.raises(TypeError, match=r"has_aux=True loss_fn must return \(loss, aux\)"):
        flax_nnx.make_value_fn(loss_fn, model, X, Y, has_aux=True)(nnx.state(model, nnx.Param))


def test_nnx_parameters_outside_the_filter_stay():
    model = nnx.LoRA(5, 2, 1, base_module=nnx.Linear(5, 1, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    tx = optax.chain(xsam_jax.sam(0.1), optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
    before = nnx.as_pure(nnx.state(model))

    @nnx.jit
    def step(model, optimizer):
        value_fn = flax_nnx.make_value_fn(loss_fn, model, X, Y, wrt=nnx.LoRAParam)
        wrt = nnx.DiffState(0, nnx.LoRAParam)
        grads = nnx.grad(loss_fn, argnums=wrt)(model, X, Y)
        optimizer.update(model, grads, value_fn=value_fn)

    step(model, optimizer)
    after = nnx.as_pure(nnx.state(model))
    chex.assert_trees_all_equal(after["base_module"], before["base_module"])
    assert not np.array_equal(after["lora_b"], before["lora_b"])


class LinenNetwork(linen.Module):
    @linen.compact
    def __call__(self, x, train=True):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(16)(x))
        x = linen.Dropout(0.5, deterministic=not train)(linen.relu(x))
        return linen.Dense(1)(x)


class LinenState(flax_linen.TrainState):
    batch_stats: object


def linen_step(state, key):
    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        out, new = state.apply_fn(variables, X, rngs={"dropout": key}, mutable=["batch_stats"])
        return jnp.mean((out - Y) ** 2), new["batch_stats"]

    (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(
        grads=grads, value_fn=lambda p: loss_fn(p)[0], value=loss, batch_stats=batch_stats
    )


def linen_state(tx):
    network = LinenNetwork()
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = network.init(keys, X)
    return LinenState.create(
        apply_fn=network.apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        tx=tx,
    )


@pytest.mark.parametrize("method", [METHODS[name] for name in KINDS if name != "esam"])
def test_linen_passes_the_loss_on_and_replaces_the_rest(method):
    state = linen_state(with_sgd(method))
    step = jax.jit(chex.assert_max_traces(linen_step, n=1))
    chex.clear_trace_counter()
    after = step(state, jax.random.key(2))
    plain = linen_step(linen_state(optax.sgd(0.1)), jax.random.key(2))
    chex.assert_trees_all_close(after.batch_stats, plain.batch_stats, rtol=1e-5)
    assert not np.allclose(after.params["Dense_0"]["kernel"], plain.params["Dense_0"]["kernel"])
    assert after.tx is state.tx
    assert after.step == 1
    step(after, jax.random.key(3))


def test_linen_any_extra_argument_reaches_the_optimizer():
    """What L-BFGS needs is no field of the state, nor known to this library."""
    state = flax_linen.TrainState.create(
        apply_fn=None, params={"w": jnp.ones(3)}, tx=optax.chain(xsam_jax.sam(0.1), optax.lbfgs())
    )

    def value_fn(params):
        return jnp.sum(params["w"] ** 2)

    value, grads = jax.value_and_grad(value_fn)(state.params)
    after = state.apply_gradients(grads=grads, value_fn=value_fn, value=value, grad=grads)
    assert value_fn(after.params) < 0.5 * value


def test_linen_a_plain_optimizer_ignores_the_loss():
    state = linen_step(linen_state(optax.sgd(0.1)), jax.random.key(2))
    chex.assert_tree_all_finite(state.params)


def test_linen_without_a_loss_the_error_says_what_to_write():
    state = linen_state(optax.chain(xsam_jax.sam(0.1), optax.sgd(0.1)))
    with pytest.raises(ValueError, match="value_fn is missing"):
        state.apply_gradients(grads=state.params)
