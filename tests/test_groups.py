"""One perturbation per group of examples: values against NumPy, state, cost, devices and errors."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from devices import count_collectives, in_shard_map, make_mesh, on_eight_devices, place
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from methods import METHODS, REPRESENTATIVES

import xsam_jax
from xsam_jax import gated, per_group, split_into_groups
from xsam_jax.descent import record
from xsam_jax.gating import every, gradient_norm

GROUPS, INPUTS, HIDDEN = 8, 3, 4
RATE, STEPS = 0.1, 5

# --------------------------------------------------------------------------------------------------
# A network in JAX, and the same with its gradient in NumPy


def make_params():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(INPUTS, HIDDEN)))
    return {"hidden": hidden, "output": jnp.asarray(rng.normal(size=HIDDEN))}


def make_batch():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(48, INPUTS))
    # Later samples are harder: the groups differ.
    return jnp.asarray(x), jnp.asarray(np.sin(3 * x[:, 0]) * np.linspace(0.5, 2.0, 48))


def sample_losses(params, batch):
    x, y = batch
    return jnp.square(jnp.tanh(x @ params["hidden"]) @ params["output"] - y)


def loss_fn(params, batch):
    return sample_losses(params, batch).mean()


def flat(params):
    return np.concatenate([np.ravel(params["hidden"]), params["output"]]).astype(np.float64)


def numpy_loss_and_grad(x, y):
    """The loss and the gradient of one group, as functions of a flat vector."""

    def forward(theta):
        w, v = theta[: INPUTS * HIDDEN].reshape(INPUTS, HIDDEN), theta[INPUTS * HIDDEN :]
        h = np.tanh(x @ w)
        return v, h, h @ v - y

    def loss(theta):
        return float(np.mean(forward(theta)[2] ** 2))

    def grad(theta):
        v, h, error = forward(theta)
        d = 2 * error / len(y)
        return np.concatenate([(x.T @ (d[:, None] * v * (1 - h**2))).ravel(), h.T @ d])

    return loss, grad


CASES = {
    "sam": (xsam_jax.sam(0.3), functools.partial(reference.sam, rho=0.3)),
    "sam, two steps": (
        xsam_jax.sam(0.3, steps=2),
        lambda theta, loss, grad: reference.sam_gradient(theta, grad, [0.3, 0.3]),
    ),
    "asam": (xsam_jax.asam(0.3, 0.1), functools.partial(reference.asam, rho=0.3, eta=0.1)),
    "gsam": (xsam_jax.gsam(0.3, 0.4), functools.partial(reference.gsam, rho=0.3, alpha=0.4)),
    "friendly_sam": (
        xsam_jax.friendly_sam(0.3, decay=0.6, sigma=0.7),
        functools.partial(reference.FriendlySamOfGroups, 0.3, 0.6, 0.7),
    ),
    "xsam": (
        xsam_jax.xsam(0.3, 0.6, probe_every=2),
        functools.partial(reference.XsamOfGroups, [0.3], 0.6, 2, 21),
    ),
    "xsam, two steps": (
        xsam_jax.xsam(0.2, 0.6, steps=2, probe_every=3, search="section"),
        functools.partial(reference.XsamOfGroups, [0.2, 0.2], 0.6, 3, 21),
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def in_numpy(name, groups=GROUPS):
    """The parameters after some steps of gradient descent, and the last alpha and psi."""
    with jax.enable_x64(True):
        theta, (x, y) = flat(make_params()), map(np.asarray, make_batch())
    parts = zip(np.split(x, groups), np.split(y, groups), strict=True)
    losses, grads = zip(*(numpy_loss_and_grad(*part) for part in parts), strict=True)
    make = CASES[name][1]
    if isinstance(getattr(make, "func", None), type):  # it has a state
        method = make()
        step = method.step
    else:
        method, step = None, functools.partial(reference.mean_over_groups, make)
    for _ in range(STEPS):
        theta = theta - RATE * step(theta, losses, grads)
    return theta, getattr(method, "alpha", None), getattr(method, "psi", None)


def assert_like_numpy(name, params, state, groups=GROUPS):
    theta, alpha, psi = in_numpy(name, groups)
    np.testing.assert_allclose(flat(params), theta, rtol=0, atol=1e-9)
    if alpha is not None:
        np.testing.assert_allclose(optax.tree.get(state, "alpha"), alpha, rtol=1e-12)
        np.testing.assert_allclose(optax.tree.get(state, "psi"), psi, rtol=1e-9)


# --------------------------------------------------------------------------------------------------
# Steps


def grads_of(params, parts, value_fn=loss_fn):
    """The stacked gradients of groups."""
    return jax.vmap(jax.grad(value_fn), in_axes=(None, 0))(params, parts)


@jax.jit
def values_and_grads(params, parts):
    """The stacked losses and gradients of groups."""
    return jax.vmap(jax.value_and_grad(loss_fn), in_axes=(None, 0))(params, parts)


def optimizer(method):
    return optax.chain(method, optax.sgd(RATE))


def stacked_step(method, groups=GROUPS, **kwargs):
    tx = optimizer(per_group(method, **kwargs))

    def step(params, state, batch):
        parts = split_into_groups(batch, groups)
        grads = grads_of(params, parts)
        updates, state = tx.update(grads, state, params, value_fn=loss_fn, groups=parts)
        return optax.apply_updates(params, updates), state

    return step, tx


def own_step(tx, mean=lambda value: value, varying=True):
    """The step of one group. `mean` is that of the members of a group."""

    def step(params, state, batch):
        def value_fn(params):
            return mean(loss_fn(params, batch))

        own = jax.lax.pcast(params, "data", to="varying") if varying else params
        grads = jax.grad(value_fn)(own)
        updates, state = tx.update(grads, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    return step


def train(step, tx, params=None, batch=None, steps=STEPS, mesh=None):
    params, batch = params or make_params(), batch or make_batch()
    state, step = tx.init(params), jax.jit(step)
    if mesh is not None:  # where the first step leaves them: one program for all steps
        params, state = place((params, state), mesh, P())
    for _ in range(steps):
        params, state = step(params, state, batch)
    return params, state


# --------------------------------------------------------------------------------------------------
# Values


@pytest.mark.usefixtures("x64")
@every_case
@pytest.mark.parametrize("evaluation", ["vmap", "map", "unrolled"])
def test_stacked_groups_equal_numpy(name, evaluation):
    step = stacked_step(CASES[name][0], groups=4, evaluation=evaluation)
    assert_like_numpy(name, *train(*step), groups=4)


@pytest.mark.usefixtures("x64")
@every_case
def test_groups_of_a_named_axis_equal_numpy(name):
    tx = optimizer(per_group(CASES[name][0], "data"))

    def step(params, state, batch):
        own = functools.partial(own_step(tx, varying=False), params, state)
        return jax.vmap(own, axis_name="data", out_axes=None)(split_into_groups(batch, GROUPS))

    assert_like_numpy(name, *train(step, tx))


@every_case
def test_groups_differ_from_the_whole_batch(name):
    """Or the comparisons above could not see whether there are groups."""
    assert np.max(np.abs(in_numpy(name)[0] - in_numpy(name, groups=1)[0])) > 1e-2


REFUSED = ("look_sam", "decoupled_wsam", "lookbehind", "eigen_sam")
every_accepted = pytest.mark.parametrize("name", [n for n in REPRESENTATIVES if n not in REFUSED])


@pytest.mark.usefixtures("x64")
@every_accepted
def test_one_group_is_the_method(name):
    """And in a loop, the method of the whole batch evaluated in parts."""
    method = METHODS[name]
    # Losses of samples, or the loss.
    argument, loss = ("losses_fn", sample_losses) if method.sample_losses else ("value_fn", loss_fn)
    tx, params, batch = method.make(), make_params(), make_batch()
    parts = split_into_groups(batch, 1)

    def step(state):
        grads = jax.grad(loss_fn)(params, batch)
        return tx.update(grads, state, params, **{argument: lambda p: loss(p, batch)})

    def step_of_groups(evaluation, state):
        grouped, grads = per_group(tx, evaluation=evaluation), grads_of(params, parts)
        return grouped.update(grads, state, params, groups=parts, **{argument: loss})

    def two_steps(step):
        step = jax.jit(step)
        return step(step(tx.init(params))[1])

    expected = two_steps(step)
    for evaluation in ("vmap", "map"):
        result = two_steps(functools.partial(step_of_groups, evaluation))
        chex.assert_trees_all_close(result, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_the_result_is_the_mean_of_gradient_and_state_of_the_groups():
    """Of parts that the table of values does not have: records, gates, gradient functions."""
    tx = gated(xsam_jax.sharpness_aware(optax.scale(0.1), record()), every(2))
    params, parts = make_params(), split_into_groups(make_batch(), GROUPS)
    values, grads = values_and_grads(params, parts)
    grouped = per_group(tx)
    functions = {"value_fn": loss_fn, "grad_fn": jax.grad(loss_fn)}
    update = jax.jit(functools.partial(grouped.update, **functions))
    result, state = update(grads, grouped.init(params), params, groups=parts, value=values)
    skipped, _ = update(grads, state, params, groups=parts, value=values)
    mean = functools.partial(jax.tree.map, lambda leaf: np.mean(leaf, axis=0))
    chex.assert_trees_all_close(skipped, mean(grads), rtol=1e-12)

    def of_group(grads, value, part):
        own = {"value_fn": lambda p: loss_fn(p, part), "value": value}
        return tx.update(grads, tx.init(params), params, **own)

    expected, states = mean(jax.jit(jax.vmap(of_group))(grads, values, parts))
    chex.assert_trees_all_close(result, expected, rtol=1e-12)
    cosine = optax.tree.get(states, "gradient_cosine")
    np.testing.assert_allclose(optax.tree.get(state, "gradient_cosine"), cosine, rtol=1e-12)
    # A gradient function does not tell losses.
    assert np.isnan(optax.tree.get(state, "loss_rise"))


@pytest.mark.parametrize("evaluation", ["vmap", "map", "unrolled"])
def test_losses_of_the_ascent_are_known_in_every_evaluation(evaluation):
    tx = per_group(xsam_jax.sharpness_aware(optax.scale(0.1), record()), evaluation=evaluation)
    params, parts = make_params(), split_into_groups(make_batch(), GROUPS)
    values, grads = values_and_grads(params, parts)
    update = jax.jit(
        lambda state: tx.update(grads, state, params, groups=parts, value=values, value_fn=loss_fn)
    )
    _, state = update(tx.init(params))

    @jax.jit
    @jax.vmap
    def moved(grad, part):
        return loss_fn(optax.apply_updates(params, optax.tree.scale(0.1, grad)), part)

    rise = float((moved(grads, parts) - values).mean())
    assert rise > 0.01
    np.testing.assert_allclose(optax.tree.get(state, "loss_rise"), rise, rtol=1e-4)


@functools.cache
def step_of_a_shifted_loss(method, seeds, evaluation):
    tx = xsam_jax.xsam(0.3, 0.6) if method == "xsam" else gated(xsam_jax.sam(0.3), every(2))
    grouped = per_group(tx, evaluation=evaluation)
    params, parts = make_params(), split_into_groups(make_batch(), 4)

    def step(shift):
        def value_fn(params, part):
            return loss_fn(params, part) + jnp.sum(jnp.sin(shift * params["output"]))

        grads = grads_of(params, parts, value_fn)
        return grouped.update(grads, grouped.init(params), params, value_fn=value_fn, groups=parts)

    shifts = jnp.array([0.5, 2.0]) if seeds else jnp.float32(0.5)
    return jax.jit(jax.vmap(step) if seeds else step)(shifts)


@pytest.mark.parametrize("evaluation", ["map", "unrolled"])
@pytest.mark.parametrize("seeds", [False, True], ids=["one seed", "seeds"])
@pytest.mark.parametrize("method", ["xsam", "gated"])
def test_a_loop_takes_losses_that_close_over_traced_values(method, seeds, evaluation):
    """As over running statistics. The loss is evaluated within conditionals."""
    result, expected = (step_of_a_shifted_loss(method, seeds, e) for e in (evaluation, "vmap"))
    chex.assert_trees_all_close(result, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_a_gate_reads_the_mean_gradient():
    gate = gradient_norm(0.0, decay=0.5)
    step, tx = stacked_step(gated(xsam_jax.sam(0.3), gate))
    _, state = train(step, tx, steps=1)
    mean = jax.jit(jax.grad(loss_fn))(make_params(), make_batch())
    np.testing.assert_allclose(
        optax.tree.get(state, "mean"), optax.tree.norm(mean, squared=True), rtol=1e-12
    )


def test_a_group_without_a_plane_does_not_keep_the_others_from_probing():
    """The group's gradient is zero, and its losses are the same at all alphas."""
    step, tx = stacked_step(xsam_jax.xsam(0.3, 0.6))
    batch = tuple(map(np.array, make_batch()))
    for leaf in batch:
        leaf[:6] = 0.0  # the first group
    first = jax.jit(jax.grad(loss_fn))(make_params(), tuple(leaf[:6] for leaf in batch))
    assert optax.tree.norm(first) == 0
    _, state = train(step, tx, batch=batch, steps=1)
    assert optax.tree.get(state, "alpha") != 1


@pytest.mark.parametrize("name", ["friendly_sam", "xsam"])
def test_a_gradient_that_is_not_finite_does_not_stay_in_the_state(name):
    tx = per_group(CASES[name][0])
    params, parts = make_params(), split_into_groups(make_batch(), GROUPS)

    @jax.jit
    def update(state):
        grads = grads_of(params, parts)
        grads["output"] = grads["output"].at[3].set(jnp.nan)
        return tx.update(grads, state, params, groups=parts, value_fn=loss_fn)

    result, state = update(tx.init(params))
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(result))
    kept = state.ascent if name == "friendly_sam" else optax.tree.get(state, "alpha")
    chex.assert_tree_all_finite(kept)


@pytest.mark.parametrize("axis_name", [None, "data"])
def test_the_mean_of_float16_gradients_does_not_overflow(axis_name):
    params, tx = jnp.ones(3, jnp.float16), per_group(xsam_jax.sam(0.1), axis_name)
    scale = np.float32([3e4, 5e4, 6e4])[:, None]
    grads, state = (scale * np.ones(3)).astype(np.float16), tx.init(params)

    def value_fn(params, scale):
        return jnp.sum(scale * params.astype(jnp.float32))

    def of_axis(grads, scale):
        return tx.update(grads, state, params, value_fn=lambda params: value_fn(params, scale))

    def of_groups(grads, scale):
        return tx.update(grads, state, params, groups=scale, value_fn=value_fn)

    if axis_name is None:
        updates, _ = jax.jit(of_groups)(grads, scale)
    else:
        updates, _ = jax.jit(jax.vmap(of_axis, axis_name=axis_name, out_axes=None))(grads, scale)
    assert updates.dtype == jnp.float16
    np.testing.assert_allclose(updates, 14e4 / 3, rtol=1e-3)


# --------------------------------------------------------------------------------------------------
# State rules


@pytest.mark.parametrize("name", METHODS)
def test_methods_with_a_rule_for_their_state_are_accepted(name):
    tx = per_group(METHODS[name].make())
    if name not in REFUSED:
        state = tx.init(make_params())
        chex.assert_trees_all_equal(state, METHODS[name].make().init(make_params()))
        return
    part = {
        "look_sam": ".orthogonal",
        "eigen_sam": ".ascent[0].vector",
        "decoupled_wsam": ".base[0].trace",
        "lookbehind": ".descent.base[0].trace",
    }[name]
    with pytest.raises(TypeError, match=rf"no rule .* state{re.escape(part)}"):
        tx.init(make_params())


def test_state_that_only_update_can_check_is_refused_there():
    """The method needs an argument that `init` does not have."""

    def update(updates, state, params=None, *, temperature, **extra_args):
        return updates, state + temperature * jax.tree.leaves(updates)[0].sum()

    ascent = optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)
    tx = per_group(xsam_jax.sharpness_aware(ascent))
    state, parts = tx.init(make_params()), split_into_groups(make_batch(), GROUPS)
    grads = grads_of(make_params(), parts)
    arguments = {"value_fn": loss_fn, "groups": parts, "temperature": 2.0}
    with pytest.raises(TypeError, match=r"no rule .* state\.ascent"):
        tx.update(grads, state, make_params(), **arguments)


@pytest.mark.parametrize(
    ("method", "part"),
    [
        (xsam_jax.sampa(optax.sgd(0.1), 0.1, 0.1), ".gradient"),
        (xsam_jax.async_sam(optax.sgd(0.1), 0.1), ".ahead"),
        (xsam_jax.momentum_sam(optax.sgd(0.1, momentum=0.9), 0.1), ".base[0].trace"),
    ],
    ids=["sampa", "async_sam", "momentum_sam"],
)
def test_gradients_at_look_ahead_are_refused(method, part):
    with pytest.raises(TypeError, match=rf"no rule .* state{re.escape(part)}"):
        per_group(method).init(make_params())


def test_an_optimizer_inside_is_refused():
    tx = per_group(optax.chain(xsam_jax.sam(0.1), optax.sgd(0.1, momentum=0.9)))
    with pytest.raises(TypeError, match=r"state\[1\].*An optimizer in a chain comes after"):
        tx.init(make_params())


# --------------------------------------------------------------------------------------------------
# Cost


def wide_step(grouped, evaluation="vmap", groups=4):
    """A compiled step of a network whose activations need more memory than its parameters."""
    params = {"hidden": jnp.ones((64, 256)), "output": jnp.ones(256)}
    batch = jnp.ones((1024, 64)), jnp.ones(1024)
    if grouped:
        step, tx = stacked_step(xsam_jax.sam(0.1), groups, evaluation=evaluation)
    else:
        tx = optimizer(xsam_jax.sam(0.1))

        def step(params, state, batch):
            grads = jax.grad(loss_fn)(params, batch)
            updates, state = tx.update(grads, state, params, value_fn=lambda p: loss_fn(p, batch))
            return optax.apply_updates(params, updates), state

    return jax.jit(step).lower(params, tx.init(params), batch).compile()


def test_groups_take_the_gradients_of_the_whole_batch_once():
    flops = wide_step(False).cost_analysis()["flops"]
    # The rest is the geometry of four trees in place of one.
    assert 0.99 * flops < wide_step(True).cost_analysis()["flops"] < 1.03 * flops


def test_a_loop_holds_the_activations_of_one_group():
    def memory(evaluation):
        tx = per_group(xsam_jax.sam(0.1, steps=2), evaluation=evaluation)
        params = {"hidden": jnp.ones((8, 64)), "output": jnp.ones(64)}

        # Without the gradient of the caller, which needs its activations, too.
        def update(grads, params, parts):
            return tx.update(grads, tx.init(params), params, groups=parts, value_fn=loss_fn)

        parts = jnp.ones((16, 256, 8)), jnp.ones((16, 256))
        grads = jax.tree.map(lambda leaf: jnp.ones((16, *leaf.shape)), params)
        compiled = jax.jit(update).lower(grads, params, parts).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    activations = 4 * 16 * 256 * 64
    assert memory("vmap") - memory("map") > 0.8 * 15 / 16 * activations


# --------------------------------------------------------------------------------------------------
# Several devices


def collectives(step, *args):
    return count_collectives(jax.jit(step).lower(*args).compile())


@on_eight_devices
class TestOnEightDevices:
    """Groups on devices equal groups on one, and NumPy."""

    @pytest.mark.usefixtures("x64")
    @every_case
    @pytest.mark.parametrize("groups", [4, 8, 16])
    def test_a_sharded_batch(self, name, groups):
        step, tx, mesh = *stacked_step(CASES[name][0], groups), make_mesh()
        result = train(step, tx, batch=place(make_batch(), mesh, P("data")), mesh=mesh)
        assert_like_numpy(name, *result, groups)

    @pytest.mark.usefixtures("x64")
    @every_case
    @pytest.mark.parametrize("groups", [8, 16])
    def test_an_explicit_mesh(self, name, groups):
        mesh = make_mesh(AxisType.Explicit)
        with jax.set_mesh(mesh):
            step, tx = stacked_step(CASES[name][0], groups)
            params = place(make_params(), mesh, P())
            params, state = train(step, tx, params, place(make_batch(), mesh, P("data")))
        assert_like_numpy(name, params, state, groups)

    @pytest.mark.usefixtures("x64")
    @every_case
    @pytest.mark.parametrize("check_vma", [True, False])
    def test_a_group_on_each_device(self, name, check_vma):
        tx = optimizer(per_group(CASES[name][0], "data"))
        step = in_shard_map(own_step(tx, varying=check_vma), check_vma=check_vma)
        assert_like_numpy(name, *train(step, tx, mesh=make_mesh()))

    @pytest.mark.usefixtures("x64")
    @every_case
    def test_pmap(self, name):
        tx = optimizer(per_group(CASES[name][0], "data"))
        step = own_step(tx, varying=False)
        mapped = jax.pmap(step, "data", in_axes=(None, None, 0), out_axes=None)
        result = train(
            lambda p, s, batch: mapped(p, s, split_into_groups(batch, 8)), tx, mesh=make_mesh()
        )
        assert_like_numpy(name, *result)

    @pytest.mark.usefixtures("x64")
    @every_case
    def test_groups_of_two_devices(self, name):
        tx, mesh = optimizer(per_group(CASES[name][0], "data")), make_mesh(sizes=(4, 2))
        step = own_step(tx, lambda loss: jax.lax.pmean(loss, "member"))
        result = train(in_shard_map(step, mesh), tx, mesh=mesh)
        assert_like_numpy(name, *result, groups=4)

    @every_accepted
    def test_every_method_in_shard_map_equals_stacked_groups(self, name):
        method = METHODS[name]
        argument = "losses_fn" if method.sample_losses else "value_fn"
        loss = sample_losses if method.sample_losses else loss_fn
        params, batch = make_params(), make_batch()

        def update(params, state, batch):
            own = jax.lax.pcast(params, "data", to="varying")
            arguments = {argument: lambda p: loss(p, batch)}
            grads = jax.grad(loss_fn)(own, batch)
            return per_group(method.make(), "data").update(grads, state, params, **arguments)

        @jax.jit
        def stacked(params, state, batch):
            parts = split_into_groups(batch, 8)
            grads = grads_of(params, parts)
            arguments = {argument: loss, "groups": parts}
            return per_group(method.make()).update(grads, state, params, **arguments)

        mapped, state = jax.jit(in_shard_map(update)), method.make().init(params)
        result = mapped(params, state, batch)
        chex.assert_trees_all_close(result, stacked(params, state, batch), rtol=2e-4, atol=2e-6)

    @pytest.mark.usefixtures("x64")
    @every_case
    def test_groups_of_two_devices_without_check_vma(self, name):
        """There `jax.grad` of the mean of a group is the gradient of one device."""
        tx, mesh = optimizer(per_group(CASES[name][0], "data")), make_mesh(sizes=(4, 2))

        def step(params, state, batch):
            def grad_fn(params):
                return jax.lax.pmean(jax.grad(loss_fn)(params, batch), "member")

            functions = {"value_fn": lambda p: jax.lax.pmean(loss_fn(p, batch), "member")}
            functions["grad_fn"] = grad_fn
            updates, state = tx.update(grad_fn(params), state, params, **functions)
            return optax.apply_updates(params, updates), state

        mapped = in_shard_map(step, mesh, check_vma=False)
        assert_like_numpy(name, *train(mapped, tx, mesh=mesh), groups=4)

    @pytest.mark.usefixtures("x64")
    def test_a_perturbation_without_the_gradient_has_the_gradient_of_one_group(self):
        """All devices then have equal perturbed parameters, whose gradient JAX would sum."""
        noise = optax.stateless(lambda updates, params: jax.tree.map(lambda p: 0.1 * p, params))
        method = xsam_jax.sharpness_aware(noise)
        tx = optimizer(per_group(method, "data"))
        result = train(in_shard_map(own_step(tx)), tx)
        chex.assert_trees_all_close(result, train(*stacked_step(method)), rtol=1e-9)

    def test_a_gate_reads_float16_gradients_without_overflow(self):
        tx = per_group(gated(xsam_jax.sam(0.1), gradient_norm(0.0)), "data")
        params = jnp.ones(3, jnp.float16)

        def update(state, scale):
            def value_fn(p):
                return jnp.sum(scale * p.astype(jnp.float32))

            grads = jnp.broadcast_to(scale, (3,)).astype(jnp.float16)
            return tx.update(grads, state, params, value_fn=value_fn)[1]

        mapped = jax.shard_map(update, mesh=make_mesh(), in_specs=(P(), P("data")), out_specs=P())
        state = jax.jit(mapped)(tx.init(params), jnp.full(8, 6e4))
        np.testing.assert_allclose(optax.tree.get(state, "mean"), 3 * 6e4**2, rtol=1e-2)

    @pytest.mark.parametrize("name", ["friendly_sam", "xsam"])
    def test_sharded_parameters(self, name):
        step, tx = stacked_step(CASES[name][0])
        mesh = make_mesh()
        x, y = make_batch()
        batch = jnp.concatenate([x, jnp.ones((48, 5))], axis=1), y
        params = {"hidden": jnp.ones((8, HIDDEN)) / 4, "output": jnp.ones(HIDDEN)}
        expected = train(step, tx, params, batch)
        spec = {"hidden": P("data"), "output": P()}
        sharded = {key: place(params[key], mesh, spec[key]) for key in spec}
        result = train(step, tx, sharded, place(batch, mesh, P("data")))
        chex.assert_trees_all_close(result, expected, rtol=2e-5, atol=2e-6)

    def test_groups_do_not_communicate_during_the_ascent(self):
        """Without groups, the means of both gradients and of the losses are taken."""
        tx = optimizer(xsam_jax.sam(0.3))

        def whole(params, state, batch):
            grads = jax.grad(loss_fn)(params, batch)
            updates, state = tx.update(grads, state, params, value_fn=lambda p: loss_fn(p, batch))
            return optax.apply_updates(params, updates), state

        arguments = make_params(), tx.init(make_params())
        batch = place(make_batch(), make_mesh(), P("data"))
        step, _ = stacked_step(xsam_jax.sam(0.3))
        assert collectives(whole, *arguments, batch) == {"all-reduce": 2}
        assert collectives(step, *arguments, batch) == {"all-reduce": 1}

    def test_the_summed_gradient_of_shared_parameters_raises(self):
        """It would be eight times as long, and the same in all groups."""
        tx = per_group(xsam_jax.sam(0.3), "data")
        step = in_shard_map(own_step(tx, varying=False))
        message = r"^grads do not differ .* 'data', .* Write .*pcast\(params, \('data',\), to="
        with pytest.raises(ValueError, match=message):
            train(step, tx)

    def test_the_mean_loss_of_all_groups_raises(self):
        tx = per_group(xsam_jax.sam(0.3), "data")

        def step(params, state, batch):
            own = jax.lax.pcast(params, "data", to="varying")
            mean = lambda p: jax.lax.pmean(loss_fn(p, batch), "data")  # noqa: E731
            return tx.update(jax.grad(loss_fn)(own, batch), state, params, value_fn=mean)

        message = r"^value_fn must return the loss of its own group, .* leave out jax.lax.pmean"
        with pytest.raises(ValueError, match=message):
            train(in_shard_map(step), tx)

    def test_stacked_groups_inside_shard_map_raise(self):
        step, tx = stacked_step(xsam_jax.sam(0.3), 2)
        with pytest.raises(ValueError, match=r"^stacked groups inside jax.shard_map over 'data'"):
            train(in_shard_map(step), tx)

    def test_an_unknown_axis_raises(self):
        tx = per_group(xsam_jax.sam(0.3), "devices")
        with pytest.raises(ValueError, match=r"^axis_name 'devices' is not an axis here: "):
            train(in_shard_map(own_step(tx)), tx)


# --------------------------------------------------------------------------------------------------
# Errors


def update_of_groups(tx=None, grads=None, groups=None, **arguments):
    params, tx = make_params(), tx or per_group(xsam_jax.sam(0.1))
    parts = split_into_groups(make_batch(), GROUPS) if groups is None else groups
    if grads is None:
        grads = jax.tree.map(lambda leaf: jnp.ones((GROUPS, *leaf.shape)), params)
    arguments = {"value_fn": loss_fn} | arguments
    return tx.update(grads, tx.init(params), params, groups=parts, **arguments)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: per_group(0.1), TypeError, "^method must be an optax.GradientTransformation"),
        (
            lambda: per_group(xsam_jax.sam(0.1), evaluation="scan"),
            ValueError,
            "^evaluation must be one of 'vmap', 'map', 'unrolled', got 'scan'",
        ),
        (
            lambda: per_group(xsam_jax.sam(0.1), "data", evaluation="map"),
            ValueError,
            "^evaluation='map' is for stacked groups",
        ),
        (
            lambda: split_into_groups(make_batch(), 7),
            ValueError,
            r"^groups must divide the examples .* groups=7 and an .* \[48, 3\] at batch\[0\]$",
        ),
        (lambda: split_into_groups(jnp.ones(()), 1), ValueError, r"shape \[\] at batch$"),
        (lambda: split_into_groups(make_batch(), 0), ValueError, "^groups must be at least 1"),
        (lambda: split_into_groups(make_batch(), 2.0), TypeError, "^groups must be an integer"),
        (
            lambda: update_of_groups(groups=()),
            ValueError,
            r"^groups is missing: .* groups = split_into_groups\(batch, n\)",
        ),
        (
            lambda: update_of_groups(groups=(jnp.ones((8, 6, 3)), jnp.ones(6))),
            ValueError,
            r"^groups must hold .* leading axis, .* \[8, 6, 3\], \[6\]: write groups = split",
        ),
        (
            lambda: update_of_groups(grads=make_params()),
            ValueError,
            r"^grads must be stacked, one gradient for each of the 8 groups, .* \[3, 4\]: write",
        ),
        (
            lambda: update_of_groups(grads=jnp.ones((8, 3))),
            TypeError,
            "^each of the stacked grads must be a gradient with the structure of params",
        ),
        (
            lambda: update_of_groups(value_fn=lambda params: loss_fn(params, make_batch())),
            TypeError,
            r"^value_fn is called with the parameters and the examples of a group, .*\(params\) .*"
            r"value_fn=lambda params, group: loss\(params, group\)",
        ),
        (
            lambda: update_of_groups(per_group(per_group(xsam_jax.sam(0.1)))),
            ValueError,
            "^per_group must not be inside a gate or another per_group",
        ),
        (
            lambda: update_of_groups(value_fn=lambda p, group: (loss_fn(p, group), 0.0)),
            TypeError,
            "^value_fn must return the loss alone, got a tuple of 2",
        ),
        (
            lambda: update_of_groups(xsam_jax.sam(0.1), make_params()),
            ValueError,
            r"^groups is for per_group\(method\)",
        ),
        (
            lambda: update_of_groups(per_group(xsam_jax.sam(0.1), "data")),
            ValueError,
            "^groups is for stacked groups",
        ),
        (
            lambda: per_group(xsam_jax.sam(0.1), 4),
            TypeError,
            "^axis_name must be the name of a mesh axis, got 4: the number of groups is",
        ),
        (
            lambda: update_of_groups(value_fn=3.0),
            TypeError,
            "^value_fn must be a function of parameters and group, got 3.0",
        ),
        (
            lambda: update_of_groups(obj_fn=loss_fn),
            ValueError,
            "^value_fn and obj_fn are two names of the loss",
        ),
        (lambda: update_of_groups(value_fn=None), ValueError, "^value_fn is missing: "),
        (
            lambda: update_of_groups(value=jnp.ones(3)),
            ValueError,
            r"^value must have an entry for each of the 8 groups, got shape \[3\]",
        ),
        (
            lambda: per_group(xsam_jax.sam(0.1), "data").update(
                make_params(), None, make_params(), value_fn=loss_fn
            ),
            ValueError,
            "^axis_name 'data' is not an axis here: .* per_group\\(method\\), with stacked groups",
        ),
        (
            lambda: update_of_groups(gated(per_group(xsam_jax.sam(0.1)), every(2))),
            ValueError,
            r"^per_group must not be inside a gate .* per_group\(gated\(sam\(0.1\), gate\)\)",
        ),
    ],
)
def test_error(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_an_error_of_the_loss_says_that_value_fn_takes_the_group():
    with pytest.raises(TypeError) as raised:
        update_of_groups(value_fn=lambda p, group: (loss_fn(p, group), 0.0))
    assert "value_fn=lambda params, group: loss_fn(params, group)[0]" in "".join(
        raised.value.__notes__
    )
