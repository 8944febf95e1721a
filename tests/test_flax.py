"""The Flax adapters: statistics advance once, masks are shared, extra arguments are passed on."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.errors import TraceContextError
from methods import METHODS
from sklearn.datasets import load_digits

import xsam_jax
from xsam_jax import flax_linen, flax_nnx

# One worker runs all tests, which share compiled programs.
pytestmark = pytest.mark.xdist_group("flax")
# The adapters do not depend on the method. These differ in their passes and in their states.
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
        # The units that this pass keeps.
        jax.debug.callback(lambda used: PASSES.append(np.asarray(used) != 0), x)
        return self.outer(x)


PASSES: list = []


def losses_fn(model, x, y):
    return jnp.mean((model(x) - y) ** 2, axis=1)


def loss_fn(model, x, y):
    return jnp.mean(losses_fn(model, x, y))


gradient = nnx.jit(nnx.grad(loss_fn))


def arguments(method, model):
    """The loss as an argument of update, made by the adapter."""
    name, function = ("losses_fn", losses_fn) if method.sample_losses else ("value_fn", loss_fn)
    return {name: flax_nnx.make_value_fn(function, model, X, Y)}


def others(model):
    """All variables that are no parameters: statistics, keys, counters."""
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


@functools.cache
def trained(method):
    """The model after one step, and the units that each pass of the step keeps."""
    model, _, _ = train_step(method)
    return model, tuple(PASSES)


@functools.cache
def variables_after_one_pass():
    model = Network(nnx.Rngs(0))
    nnx.jit(loss_fn)(model, X, Y)
    return others(model)


@every_kind
def test_nnx_statistics_keys_and_counters_advance_once_in_the_clean_pass(method):
    model, _ = trained(method)
    chex.assert_trees_all_close(others(model), variables_after_one_pass(), rtol=1e-6)
    assert int(model.calls[...]) == 1


@every_kind
def test_nnx_passes_of_a_step_share_the_dropout_mask(method):
    _, passes = trained(method)
    assert len(passes) >= 1 + method.gradients
    assert passes[0].any()
    # Units dropped in the clean pass are dropped in all. relu may switch some others off.
    assert all((kept <= dropout_mask()).all() for kept in passes)


@functools.cache
def dropout_mask():
    """The mask of the first pass of `Network(nnx.Rngs(0))`."""
    model = Network(nnx.Rngs(0))
    return np.asarray(model.dropout(jnp.ones((8, 16)))) != 0


def test_nnx_value_fn_made_after_the_clean_pass_has_another_mask():
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
    model, _ = trained(method)
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


def test_nnx_has_aux_drops_the_auxiliary_output():
    model = Network(nnx.Rngs(0))
    value_fn = flax_nnx.make_value_fn(lambda m, x: (jnp.sum(m(x)), "aux"), model, X, has_aux=True)
    assert value_fn(nnx.state(model, nnx.Param)).shape == ()


def test_nnx_wrong_arguments_raise():
    model = Network(nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"model must be an nnx.Module, .* got Array"):
        flax_nnx.make_value_fn(loss_fn, X, model)
    with pytest.raises(TypeError, match=r"loss_fn must be a function .* got Network"):
        flax_nnx.make_value_fn(model, loss_fn, X, Y)
    with pytest.raises(TypeError, match=r"has_aux=True loss_fn must return \(loss, aux\)"):
        flax_nnx.make_value_fn(loss_fn, model, X, Y, has_aux=True)(nnx.state(model, nnx.Param))


def test_nnx_parameters_outside_the_filter_do_not_change():
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


# --- Losses that take rngs, metrics and other modules ---


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["y", "x"], meta_fields=["reduction"]
)
@dataclasses.dataclass
class Batch:
    y: jax.Array
    x: jax.Array
    reduction: str


def test_nnx_arguments_are_passed_unchanged_and_modules_frozen():
    model = nnx.Linear(5, 1, rngs=nnx.Rngs(0))
    rngs = nnx.Rngs(1)
    argument = {
        "batch": Batch(Y, X, "mean"),
        "static": (None, 3, 2.5, "text", jnp.tanh, object(), np.arange(3)),
        "rngs": rngs,
    }
    seen = []

    def keep(model, argument, scale):
        seen.append((argument, scale, argument["rngs"]()))
        return jnp.sum(model(argument["batch"].x))

    value_fn = flax_nnx.make_value_fn(keep, model, argument, 0.5)
    rngs()  # a later draw has no effect
    values = [value_fn(nnx.state(model, nnx.Param)) for _ in range(2)]
    assert values[0] == values[1]
    (arrived, scale, key), (_, _, again) = seen
    assert key == again == nnx.Rngs(1)()
    assert int(rngs.default.count[...]) == 1
    assert scale == 0.5
    assert arrived["batch"].x is X
    assert arrived["batch"].reduction == "mean"
    assert all(a is b for a, b in zip(arrived["static"], argument["static"], strict=True))


def test_nnx_model_and_arguments_keep_sharing_variables():
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(5, 5, rngs=rngs)
            self.rngs = rngs

        def __call__(self, x):
            return self.linear(x) + jax.random.normal(self.rngs(), x.shape)

    def shared_loss(model, x, rngs, same):
        keys = [rngs(), same(), model.rngs()]
        return jnp.sum(model(x) * sum(jax.random.normal(key, x.shape) for key in keys))

    rngs = nnx.Rngs(0)
    model = Noisy(rngs)
    before = int(rngs.default.count[...])
    value_fn = flax_nnx.make_value_fn(shared_loss, model, X, rngs, rngs)
    value = value_fn(nnx.state(model, nnx.Param))
    assert int(rngs.default.count[...]) == before
    np.testing.assert_allclose(value, shared_loss(model, X, rngs, rngs), rtol=1e-6)
    assert int(rngs.default.count[...]) == before + 4


def is_kernel(path, leaf):
    return path in [("inner", "kernel"), ("outer", "kernel")]


@pytest.mark.parametrize("other", [is_kernel, nnx.BatchStat], ids=["fewer", "others"])
def test_nnx_different_filters_raise(other):
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, xsam_jax.sam(0.1), wrt=nnx.Param)
    grads = gradient(model, X, Y)
    value_fn = flax_nnx.make_value_fn(loss_fn, model, X, Y, wrt=other)
    with pytest.raises(ValueError, match=r"the same wrt to nnx\.Optimizer and to make_value_fn"):
        optimizer.update(model, grads, value_fn=value_fn)


def test_nnx_error_of_a_lambda_suggests_make_value_fn():
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, xsam_jax.sam(0.1), wrt=nnx.Param)
    grads = gradient(model, X, Y)
    with pytest.raises(TypeError) as raised:
        optimizer.update(model, grads, value_fn=lambda params: loss_fn(params, X, Y))
    assert "value_fn=make_value_fn(loss, model, batch)" in "".join(raised.value.__notes__)


def test_nnx_error_of_a_loss_that_closes_over_the_model_suggests_make_value_fn():
    model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))

    def loss_of(model):
        return jnp.mean(model(jnp.ones((4, 3))))

    optimizer = nnx.Optimizer(model, xsam_jax.sam(0.1), wrt=nnx.Param)
    grads = nnx.jit(nnx.grad(loss_of))(model)
    with pytest.raises(TraceContextError) as raised:
        optimizer.update(model, grads, value_fn=lambda params: loss_of(model))
    assert "value_fn=make_value_fn(loss, model, batch)" in "".join(raised.value.__notes__)


@pytest.mark.parametrize("wrt", [nnx.Param, is_kernel])
def test_nnx_filter_applies_to_the_model_and_not_to_arguments(wrt):
    """The teacher has parameters of the same names."""
    model, teacher = Network(nnx.Rngs(0)), Network(nnx.Rngs(1))

    def distance(model, x, teacher):
        return jnp.mean((model(x) - teacher(x)) ** 2)

    params = nnx.state(model, wrt)
    value_fn = flax_nnx.make_value_fn(distance, model, X, teacher, wrt=wrt)
    grads = jax.jit(jax.grad(value_fn))(nnx.as_pure(params))
    assert jax.tree.structure(grads) == jax.tree.structure(nnx.as_pure(params))
    assert np.any(grads["inner"]["kernel"] != 0)
    zeros = jax.tree.map(jnp.zeros_like, nnx.as_pure(params))
    assert value_fn(zeros) != value_fn(params)
    assert int(teacher.calls[...]) == 0
    # The loss itself comes last, since it advances statistics and counters.
    np.testing.assert_allclose(value_fn(params), distance(model, X, teacher), rtol=1e-5)


def test_nnx_metrics_as_an_argument_count_the_clean_pass_only():
    model = nnx.Linear(5, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(xsam_jax.sam(0.1), optax.sgd(0.1)), wrt=nnx.Param)
    metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))

    def counted_loss(model, x, y, metrics):
        loss = loss_fn(model, x, y)
        metrics.update(loss=loss)
        return loss

    @nnx.jit
    def step(model, optimizer, metrics):
        value_fn = flax_nnx.make_value_fn(counted_loss, model, X, Y, metrics)
        loss, grads = nnx.value_and_grad(counted_loss)(model, X, Y, metrics)
        optimizer.update(model, grads, value_fn=value_fn)
        return loss

    losses = [step(model, optimizer, metrics) for _ in range(2)]
    assert int(metrics.loss.count[...]) == 2
    np.testing.assert_allclose(metrics.compute()["loss"], np.mean(losses), rtol=1e-6)


class LanguageModel(nnx.Module):
    """As Gemma in Flax's examples: no layer has a key, all draw from the `rngs` of the call."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            2, 8, dropout_rate=0.3, deterministic=False, decode=False, rngs=rngs
        )
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, tokens, rngs):
        x = self.embed(tokens)
        x = x + self.attention(x, mask=nnx.make_causal_mask(tokens), rngs=rngs)
        dropped = self.dropout(x, rngs=rngs)
        jax.debug.callback(lambda used: PASSES.append(np.asarray(used) != 0), dropped)
        return self.embed.attend(dropped)


def token_loss(model, tokens, rngs):
    logits = model(tokens[:, :-1], rngs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def test_nnx_language_model_with_rngs_as_an_argument_has_the_update_of_bare_jax():
    method = METHODS["sam"]
    tx = with_sgd(method)
    tokens = jax.random.randint(jax.random.key(0), (4, 6), 0, 7)
    model, rngs = nnx.jit(lambda: LanguageModel(nnx.Rngs(0)))(), nnx.Rngs(dropout=1)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    params, rest = nnx.as_pure(params), nnx.as_pure(rest)

    @nnx.jit
    def step(model, optimizer, tokens, rngs):
        value_fn = flax_nnx.make_value_fn(token_loss, model, tokens, rngs)
        loss, grads = nnx.value_and_grad(token_loss)(model, tokens, rngs)
        optimizer.update(model, grads, value_fn=value_fn, value=loss)

    PASSES.clear()
    step(model, optimizer, tokens, rngs)
    jax.effects_barrier()
    assert len(PASSES) >= 1 + method.gradients
    assert 0.2 < PASSES[0].mean() < 0.8
    assert all(np.array_equal(mask, PASSES[0]) for mask in PASSES)
    once = nnx.Rngs(dropout=1)
    nnx.jit(token_loss)(nnx.merge(graphdef, params, rest), tokens, once)
    assert int(rngs.dropout.count[...]) == int(once.dropout.count[...]) > 0

    @jax.jit
    def update(params):
        def value_fn(params):
            return token_loss(nnx.merge(graphdef, params, rest), tokens, nnx.Rngs(dropout=1))

        return tx.update(jax.grad(value_fn)(params), tx.init(params), params, value_fn=value_fn)

    updates, _ = update(params)
    expected = optax.apply_updates(params, updates)
    actual = nnx.as_pure(nnx.state(model, nnx.Param))
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-6)


class CNN(nnx.Module):
    """The network of Flax's MNIST example, with 256 features for images of 8 by 8, not 3136."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 32, kernel_size=(3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(32, rngs=rngs)
        self.dropout1 = nnx.Dropout(0.025)
        self.conv2 = nnx.Conv(32, 64, kernel_size=(3, 3), rngs=rngs)
        self.norm2 = nnx.BatchNorm(64, rngs=rngs)
        self.pool = functools.partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        self.hidden = nnx.Linear(256, 256, rngs=rngs)
        self.dropout2 = nnx.Dropout(0.025)
        self.output = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x, rngs):
        x = self.pool(nnx.relu(self.norm1(self.dropout1(self.conv1(x), rngs=rngs))))
        x = self.pool(nnx.relu(self.norm2(self.conv2(x))))
        x = self.dropout2(self.hidden(x.reshape(len(x), -1)), rngs=rngs)
        jax.debug.callback(lambda used: PASSES.append(np.asarray(used) != 0), x)
        return self.output(nnx.relu(x))


def image_loss(model, batch, rngs):
    logits = model(batch["image"], rngs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses.mean(), logits


@nnx.jit
def plain_image_step(model, optimizer, metrics, batch, rngs):
    grad_fn = nnx.value_and_grad(image_loss, has_aux=True)
    (loss, logits), grads = grad_fn(model, batch, rngs)
    metrics.update(loss=loss, logits=logits, labels=batch["label"])
    optimizer.update(model, grads)


@nnx.jit
def image_step(model, optimizer, metrics, batch, rngs):
    value_fn = flax_nnx.make_value_fn(image_loss, model, batch, rngs, has_aux=True)
    grad_fn = nnx.value_and_grad(image_loss, has_aux=True)
    (loss, logits), grads = grad_fn(model, batch, rngs)
    metrics.update(loss=loss, logits=logits, labels=batch["label"])
    optimizer.update(model, grads, value_fn=value_fn)


@nnx.jit
def image_eval_step(model, metrics, batch):
    loss, logits = image_loss(model, batch, None)
    metrics.update(loss=loss, logits=logits, labels=batch["label"])


def image_training(tx):
    """The objects of the example's loop."""
    model = CNN(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    metrics = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))
    return model, optimizer, metrics, nnx.Rngs(0)


def image_batches(start, stop, size=32):
    digits = load_digits()
    images, labels = digits.images[..., None].astype(np.float32) / 16, digits.target
    return [
        {"image": images[i : i + size], "label": labels[i : i + size]}
        for i in range(start, stop, size)
    ]


def masks_of(step, *arguments):
    """The units that each pass of the step keeps."""
    jax.effects_barrier()
    PASSES.clear()
    step(*arguments)
    jax.effects_barrier()
    return list(PASSES)


def test_nnx_mnist_example_learns_digits_with_the_lines_of_the_readme():
    """A step without these lines gives the same statistics, counts and metrics."""
    base, method = optax.adamw(0.005, 0.9), xsam_jax.xsam(0.05, 0.1)
    model, optimizer, metrics, rngs = image_training(optax.chain(method, base))
    plain_model, plain_optimizer, plain_metrics, plain_rngs = image_training(base)
    train, test = image_batches(0, 640), image_batches(640, 1152)

    model.train()
    plain_model.train()
    plain_image_step(plain_model, plain_optimizer, plain_metrics, train[0], plain_rngs)
    masks = masks_of(image_step, model, optimizer, metrics, train[0], rngs)
    assert len(masks) >= 2
    assert all(np.array_equal(mask, masks[0]) for mask in masks)
    chex.assert_trees_all_close(others(model), others(plain_model), rtol=1e-6)
    chex.assert_trees_all_equal(others(rngs), others(plain_rngs))
    chex.assert_trees_all_close(metrics.compute(), plain_metrics.compute(), rtol=1e-6)

    losses = []
    for epoch in range(4):
        for batch in train[epoch == 0 :]:
            image_step(model, optimizer, metrics, batch, rngs)
        losses.append(float(metrics.compute()["loss"]))
        metrics.reset()
    assert int(rngs.default.count[...]) == 2 * 4 * len(train)  # two layers draw in each step
    model.eval()
    for batch in test:
        image_eval_step(model, metrics, batch)
    assert metrics.compute()["accuracy"] > 0.8  # chance is 0.1
    assert losses[-1] < 0.3 * losses[0]
    assert 0 <= float(optax.tree.get(nnx.as_pure(optimizer.opt_state), "alpha")) <= 2

    model.train()
    later = masks_of(image_step, model, optimizer, metrics, train[0], rngs)
    assert all(np.array_equal(mask, later[0]) for mask in later)
    assert not np.array_equal(later[0], masks[0])


# --- Linen ---


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


@functools.cache
def linen_network():
    network = LinenNetwork()
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return network, jax.jit(network.init)(keys, X)


def linen_state(tx):
    network, variables = linen_network()
    return LinenState.create(
        apply_fn=network.apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        tx=tx,
    )


@functools.cache
def plain_linen_step():
    return jax.jit(linen_step)(linen_state(optax.sgd(0.1)), jax.random.key(2))


@pytest.mark.parametrize("name", ["sam", "look_sam", "xsam at random"])
def test_linen_passes_the_loss_on_and_replaces_other_fields(name):
    state = linen_state(with_sgd(METHODS[name]))
    step = jax.jit(chex.assert_max_traces(linen_step, n=1))
    chex.clear_trace_counter()
    after = step(state, jax.random.key(2))
    plain = plain_linen_step()
    chex.assert_trees_all_close(after.batch_stats, plain.batch_stats, rtol=1e-5)
    assert not np.allclose(after.params["Dense_0"]["kernel"], plain.params["Dense_0"]["kernel"])
    assert after.tx is state.tx
    assert after.step == 1
    step(after, jax.random.key(3))


# --- Chunks of the probe, with BatchNorm and Dropout ---


def nnx_loss():
    model = Network(nnx.Rngs(0))
    return nnx.state(model, nnx.Param), flax_nnx.make_value_fn(loss_fn, model, X, Y)


def linen_loss():
    state = linen_state(optax.identity())

    def value_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        rngs = {"dropout": jax.random.key(2)}
        out, _ = state.apply_fn(variables, X, rngs=rngs, mutable=["batch_stats"])
        return jnp.mean((out - Y) ** 2)

    return state.params, value_fn


@pytest.mark.parametrize("make_loss", [nnx_loss, linen_loss], ids=["nnx", "linen"])
def test_chunks_of_the_probe_have_the_same_losses_and_alpha(make_loss):
    params, value_fn = make_loss()
    grads = jax.jit(jax.grad(value_fn))(params)

    def probe(probe_batch_size):
        losses = []

        def recorded(params):
            loss = value_fn(params)
            jax.debug.callback(losses.append, loss)
            return loss

        tx = xsam_jax.xsam(0.3, 1.5, num_alphas=11, probe_batch_size=probe_batch_size)
        update = jax.jit(lambda grads, state: tx.update(grads, state, params, value_fn=recorded))
        _, state = update(grads, tx.init(params))
        jax.effects_barrier()
        return optax.tree.get(state, "alpha"), np.sort(losses)

    alpha, losses = probe(1)
    assert len(losses) == 1 + 11  # the end of the ascent, and the grid
    assert 0 < alpha < 2
    assert np.ptp(losses) > 0.1
    for size in (None, 3, 4, "all"):
        alpha_in_chunks, losses_in_chunks = probe(size)
        assert alpha_in_chunks == alpha
        np.testing.assert_allclose(losses_in_chunks, losses, rtol=1e-5)


def test_linen_extra_arguments_reach_the_optimizer():
    """The arguments of L-BFGS are neither fields of the state nor known to this library."""
    state = flax_linen.TrainState.create(
        apply_fn=None, params={"w": jnp.ones(3)}, tx=optax.chain(xsam_jax.sam(0.1), optax.lbfgs())
    )

    def value_fn(params):
        return jnp.sum(params["w"] ** 2)

    @jax.jit
    def step(state):
        value, grads = jax.value_and_grad(value_fn)(state.params)
        after = state.apply_gradients(grads=grads, value_fn=value_fn, value=value, grad=grads)
        return after, value

    after, value = step(state)
    assert value_fn(after.params) < 0.5 * value


def test_linen_plain_optimizer_ignores_the_loss():
    chex.assert_tree_all_finite(plain_linen_step().params)


def test_linen_without_a_loss_raises():
    state = linen_state(optax.chain(xsam_jax.sam(0.1), optax.sgd(0.1)))
    with pytest.raises(ValueError, match="value_fn is missing"):
        state.apply_gradients(grads=state.params)
