"""Steps on eight devices equal steps on one, and losses that would make them differ raise."""

import functools
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import (
    EIGHT_DEVICES,
    STARTED,
    count_collectives,
    in_shard_map,
    make_mesh,
    on_eight_devices,
    place,
)
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from methods import METHODS, REPRESENTATIVES

import xsam_jax
from xsam_jax.analysis._objective import Objective
from xsam_jax.ascent import normalize, scale_by_radius
from xsam_jax.descent import record


def test_on_eight_devices():
    """Runs the other tests of this file, and others of several devices, in one process."""
    tests = [
        "test_devices.py",
        "test_groups.py::TestOnEightDevices",
        "test_pages.py::test_several_devices_compute_the_step_of_one",
        "test_pages.py::test_groups_have_the_mean_of_their_updates",
        "test_pages.py::test_sampa_on_two_halves_of_the_devices_is_sampa",
        "test_pages.py::test_nnx_state_has_the_sharding_of_the_metadata",
        "test_augment.py::test_an_image_does_not_depend_on_the_number_of_devices",
        "test_optax_suites.py::test_optax_suite",
    ]
    folder = pathlib.Path(__file__).parent
    command = [sys.executable, "-m", "pytest", *(f"{folder}/{test}" for test in tests)]
    command += ["-k", "not test_optax_suite or sharding_test", "-q", "--tb=short", "-n", "0"]
    done = subprocess.run(command, env=os.environ | EIGHT_DEVICES, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


if STARTED:  # or this would be a process that starts itself
    test_on_eight_devices = None


# --------------------------------------------------------------------------------------------------
# A network whose leaves and batch eight devices can share


def make_params(dtype=jnp.float32):
    rng = np.random.default_rng(3)
    shapes = {"hidden": (8, 8), "output": (8,)}
    return {key: jnp.asarray(0.4 * rng.normal(size=shapes[key]), dtype) for key in shapes}


def make_batch():
    x = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    # Later samples are harder: the losses of the devices differ.
    y = np.sin(3 * x[:, 0]) * np.linspace(0.5, 2.0, 32, dtype=np.float32)
    return jnp.asarray(x), jnp.asarray(y)


def sample_losses(params, batch):
    x, y = batch
    return jnp.square(jnp.tanh(x @ params["hidden"]) @ params["output"] - y)


def loss_fn(params, batch):
    return sample_losses(params, batch).mean()


def gathered_loss_fn(params, batch):
    """The loss of parameters that are sharded on an explicit mesh."""
    return loss_fn(jax.sharding.reshard(params, P()), batch)


def pmean(loss_or_gradient):
    return lambda *args: jax.lax.pmean(loss_or_gradient(*args), "data")


def make_step(tx, value_fn=loss_fn, grad_fn=None, pass_grad_fn=False):
    """Returns a training step. `grad_fn`, if given, also takes the first gradient."""
    grad_fn = grad_fn or jax.grad(value_fn)

    def step(params, state, batch):
        arguments = {"value_fn": lambda p: value_fn(p, batch)}
        if pass_grad_fn:
            arguments["grad_fn"] = lambda p: grad_fn(p, batch)
        updates, state = tx.update(grad_fn(params, batch), state, params, **arguments)
        return optax.apply_updates(params, updates), state

    return step


def make_esam_step(tx, losses=sample_losses):
    def step(params, state, batch):
        grads = jax.grad(lambda p: losses(p, batch).mean())(params)
        updates, state = tx.update(grads, state, params, losses_fn=lambda p: losses(p, batch))
        return optax.apply_updates(params, updates), state

    return step


def train(step, params, state, batch, steps=4):
    step = jax.jit(step)
    for _ in range(steps):
        params, state = step(params, state, batch)
    return params, state


TRANSFORMS = {
    "sam": xsam_jax.sam(0.3),
    "xsam": xsam_jax.xsam(0.3, 0.6, probe_every=2),
    "friendly_sam": xsam_jax.friendly_sam(0.3, 0.6),
    "look_sam": xsam_jax.look_sam(0.3, 0.7, 2),
}
TRANSFORMS = {name: optax.chain(tx, optax.sgd(0.1)) for name, tx in TRANSFORMS.items()}
ESAM = optax.chain(
    xsam_jax.esam(0.3, beta=0.6, gamma=0.5, key=jax.random.key(3)), optax.sgd(0.1, momentum=0.9)
)
every_transform = pytest.mark.parametrize("tx", TRANSFORMS.values(), ids=TRANSFORMS)
sam_and_xsam = pytest.mark.parametrize(
    "tx", [TRANSFORMS["sam"], TRANSFORMS["xsam"]], ids=["sam", "xsam"]
)
every_kind = pytest.mark.parametrize("name", REPRESENTATIVES)
every_mesh = pytest.mark.parametrize(
    "axis_type", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"]
)


@functools.cache
def on_one_device(tx):
    """Parameters and state after four steps, to compare with."""
    params, batch = make_params(), make_batch()
    return train((make_esam_step if tx is ESAM else make_step)(tx), params, tx.init(params), batch)


def on_all_devices(tx):
    """Parameters and state where the first step leaves them: one program for all steps."""
    params = make_params()
    return place((params, tx.init(params)), make_mesh(), P())


def in_pmap(step):
    """The step of all devices, of stacked parameters and state."""

    def mapped(params, state, batch):
        local_batch = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), batch)
        return jax.pmap(step, axis_name="data")(params, state, local_batch)

    return mapped


def in_unchecked_shard_map(step):
    """As `in_pmap`, by `jax.shard_map` with `check_vma=False`."""

    def local_step(params, state, batch):
        params, state = jax.tree.map(lambda leaf: leaf[0], (params, state))
        return jax.tree.map(lambda leaf: leaf[None], step(params, state, batch))

    return in_shard_map(local_step, in_specs=P("data"), out_specs=P("data"), check_vma=False)


def on_replicas(mapped, tx):
    """Parameters and state of all devices after four steps, stacked."""
    params = make_params()
    stacked = jax.tree.map(lambda leaf: np.stack([leaf] * 8), (params, tx.init(params)))
    return train(mapped, *place(stacked, make_mesh(), P("data")), make_batch())


def assert_close(actual, expected):
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def drift(replicas):
    """The largest difference of a parameter between devices."""
    return max(np.ptp(leaf, axis=0).max() for leaf in map(np.asarray, jax.tree.leaves(replicas)))


def error(replicas, expected):
    differences = jax.tree.map(
        lambda a, b: np.max(np.abs(np.asarray(a) - np.asarray(b))), replicas, expected
    )
    return max(jax.tree.leaves(differences))


# --------------------------------------------------------------------------------------------------
# jax.jit and jax.shard_map


@on_eight_devices
@sam_and_xsam
def test_jit_with_a_sharded_batch_equals_one_device(tx):
    batch = place(make_batch(), make_mesh(), P("data"))
    result = train(make_step(tx), *on_all_devices(tx), batch)
    assert_close(result, on_one_device(tx))


@on_eight_devices
@every_transform
def test_an_explicit_mesh_with_a_sharded_batch_equals_one_device(tx):
    mesh = make_mesh(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params = place(make_params(), mesh, P())
        result = train(make_step(tx), params, tx.init(params), place(make_batch(), mesh, P("data")))
    assert_close(result, on_one_device(tx))


@on_eight_devices
@every_transform
def test_shard_map_with_the_mean_loss_equals_one_device(tx):
    step = in_shard_map(make_step(tx, pmean(loss_fn)))
    assert_close(train(step, *on_all_devices(tx), make_batch()), on_one_device(tx))


def trace_in_shard_map(update, mesh=None, axes="data"):
    """Traces `update(params, batch)`, which computes nothing."""
    mesh = mesh or make_mesh()
    mapped = jax.shard_map(update, mesh=mesh, in_specs=(P(), P(axes)), out_specs=P())
    return jax.eval_shape(mapped, make_params(), make_batch())


def update_with(tx, params, batch, axes="data", **arguments):
    """An update with the right first gradient, so that only `arguments` can be wrong."""
    mean = jax.lax.pmean(jax.grad(loss_fn)(jax.lax.pcast(params, axes, to="varying"), batch), axes)
    return tx.update(mean, tx.init(params), params, **arguments)[0]


@on_eight_devices
@every_kind
def test_shard_map_with_the_loss_of_one_device_raises(name):
    method = METHODS[name]
    tx = method.make()

    def update(params, batch):
        arguments = method.arguments(lambda p: loss_fn(p, batch))
        return update_with(tx, params, batch, **arguments)

    with pytest.raises(ValueError) as raised:
        trace_in_shard_map(update)
    message = str(raised.value)
    if method.sample_losses:
        assert message.startswith("losses_fn differs between the devices of mesh axis 'data'")
        assert "jax.lax.all_gather(losses, 'data', tiled=True, to=\"invarying\")" in message
    else:
        assert message.startswith("value_fn differs between the devices of mesh axis 'data'")
        assert "value_fn=lambda params: jax.lax.pmean(loss(params), 'data')" in message


@on_eight_devices
@pytest.mark.parametrize("axes", ["x", ("x", "y")], ids=str)
def test_error_names_the_missing_axes(axes):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)

    def update(params, batch):
        def value_fn(params):
            loss = loss_fn(params, batch)
            return jax.lax.pmean(loss, "y") if axes == "x" else loss

        return update_with(xsam_jax.sam(0.1), params, batch, ("x", "y"), value_fn=value_fn)

    with pytest.raises(ValueError) as raised:
        trace_in_shard_map(update, mesh, ("x", "y"))
    assert f"pmean(loss(params), {axes!r})" in str(raised.value)


@on_eight_devices
def test_shard_map_with_the_value_of_one_device_raises():
    def update(params, batch):
        def value_fn(params):
            return pmean(loss_fn)(params, batch)

        value = loss_fn(params, batch)
        return update_with(xsam_jax.sam(0.1), params, batch, value_fn=value_fn, value=value)

    with pytest.raises(ValueError, match=r"^value differs .*value=jax.lax.pmean\(loss, 'data'\)"):
        trace_in_shard_map(update)


def two_updates(name, params, grads, batch):
    """The second of two updates, which reads the state of the first one."""
    method = METHODS[name]
    tx, arguments = method.make(), method.arguments(lambda p: loss_fn(p, batch))
    _, state = tx.update(grads, tx.init(params), params, **arguments)
    grads = jax.tree.map(lambda leaf: 1.5 * leaf, grads)
    return tx.update(grads, state, params, **arguments)[0]


@functools.cache
def mean_update_of_groups(name):
    params = make_params()

    @jax.jit
    def group_update(batch):
        return two_updates(name, params, jax.grad(loss_fn)(params, batch), batch)

    x, y = map(np.asarray, make_batch())
    updates = [group_update(batch) for batch in zip(np.split(x, 8), np.split(y, 8), strict=True)]
    return jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *updates)


def updates_per_device(name, varying):
    """A function of parameters and batch that returns the mean of the devices' second updates."""

    def local_update(params, batch):
        own = jax.lax.pcast(params, "data", to="varying")
        grads = jax.grad(loss_fn)(own, batch)
        updates = two_updates(name, own if varying == "params" else params, grads, batch)
        return jax.lax.pmean(updates, "data")

    return in_shard_map(local_update, in_specs=(P(), P("data")))


@on_eight_devices
@every_kind
def test_varying_params_give_one_perturbation_per_device(name):
    updates = jax.jit(updates_per_device(name, "params"))(make_params(), make_batch())
    assert_close(updates, mean_update_of_groups(name))


@on_eight_devices
@pytest.mark.parametrize("name", ["sam", "xsam, two steps", "look_sam", "xsam at random", "esam"])
def test_varying_updates_give_one_perturbation_per_device(name):
    updates = jax.jit(updates_per_device(name, "updates"))(make_params(), make_batch())
    assert_close(updates, mean_update_of_groups(name))


@on_eight_devices
@every_kind
def test_varying_updates_are_accepted(name):
    """Traced only. A state or a conditional that mixes varying and other values raises then."""
    updates = jax.eval_shape(updates_per_device(name, "updates"), make_params(), make_batch())
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, make_params())


@on_eight_devices
@every_kind
def test_shards_of_the_parameters_in_shard_map_raise(name):
    """Each device would take the norm of its shard."""
    method = METHODS[name]
    tx = method.make()

    def update(params, batch):
        def value_fn(shards):
            whole = jax.lax.all_gather(shards, "data", tiled=True)
            return pmean(loss_fn)(whole, batch)

        arguments = method.arguments(value_fn)
        grads = jax.grad(value_fn)(params)
        return tx.update(grads, tx.init(params), params, **arguments)[0]

    mapped = jax.shard_map(
        update, mesh=make_mesh(), in_specs=(P("data"), P("data")), out_specs=P("data")
    )
    with pytest.raises(ValueError, match=r"mesh axis 'data', .* a shard .* \(FSDP\) under jax.jit"):
        jax.eval_shape(mapped, make_params(), make_batch())


@on_eight_devices
@every_kind
@pytest.mark.parametrize(
    ("varying", "message"),
    [
        ("params", r"^params differ .* 'data', but grads do not"),
        ("updates", r"^grads differ between the devices of mesh axis 'data'"),
    ],
)
def test_varying_params_or_gradient_beside_a_mean_loss_raise(name, varying, message):
    """Either the first gradient or the further ones would be those of one device."""
    method = METHODS[name]
    tx = method.make()

    def update(params, batch):
        own = jax.lax.pcast(params, "data", to="varying")
        grads = jax.grad(loss_fn)(own, batch)
        if varying == "params":
            params, grads = own, jax.lax.pmean(grads, "data")
        arguments = method.arguments(lambda p: pmean(loss_fn)(p, batch))
        return tx.update(grads, tx.init(params), params, **arguments)[0]

    with pytest.raises(ValueError, match=message):
        trace_in_shard_map(update)


def update_of_replicas(tx, params, state, batch, mean_loss=True, mean_gradient=True):
    """An update with the mean gradient, of parameters that each device has for itself."""
    own = jax.lax.pcast(params, "data", to="varying")
    value_fn, grad_fn = loss_fn, jax.grad(loss_fn)
    arguments = {
        "value_fn": lambda p: (pmean(value_fn) if mean_loss else value_fn)(p, batch),
        "grad_fn": lambda p: (pmean(grad_fn) if mean_gradient else grad_fn)(p, batch),
    }
    state = tx.init(own) if state is None else state
    return tx.update(pmean(grad_fn)(own, batch), state, own, **arguments)


@on_eight_devices
@every_transform
def test_replicas_with_the_mean_gradient_as_function_equal_one_device(tx):
    def step(params, state, batch):
        updates, state = update_of_replicas(tx, params, state, batch)
        return optax.apply_updates(params, updates), state

    result = train(in_shard_map(step), *on_all_devices(tx), make_batch())
    assert_close(result, on_one_device(tx))


takes_grad_fn = pytest.mark.parametrize("name", [n for n in REPRESENTATIVES if n != "esam"])


def trace_replicas(name, **means):
    """Traces an update of replicas that make the state, too."""
    tx = METHODS[name].make()

    def update(params, batch):
        return jax.lax.pmean(update_of_replicas(tx, params, None, batch, **means)[0], "data")

    return trace_in_shard_map(update)


@on_eight_devices
@takes_grad_fn
def test_replicas_may_initialize_the_state(name):
    chex.assert_trees_all_equal_shapes_and_dtypes(trace_replicas(name), make_params())


@on_eight_devices
@takes_grad_fn
@pytest.mark.parametrize(
    ("means", "message"),
    [
        ({"mean_loss": False}, r"^value_fn differs .* losses .* must be equal"),
        ({"mean_gradient": False}, r"^grad_fn differs .*jax.lax.pmean\(jax.grad\(loss\)\(params\)"),
    ],
    ids=["loss", "gradient"],
)
def test_replicas_with_a_function_of_one_device_beside_the_mean_gradient_raise(
    name, means, message
):
    with pytest.raises(ValueError, match=message):
        trace_replicas(name, **means)


@on_eight_devices
def test_recorded_diagnostics_vary_like_the_gradient_in_a_scan():
    ascent = optax.chain(normalize(), scale_by_radius(0.3))
    tx = xsam_jax.sharpness_aware(ascent, record())

    def update(params, batch):
        own = jax.lax.pcast(params, "data", to="varying")

        def step(state, _):
            grads = jax.grad(loss_fn)(own, batch)
            return tx.update(grads, state, own, value_fn=lambda p: loss_fn(p, batch))[::-1]

        state = jax.lax.pcast(tx.init(own), "data", to="varying")
        state, _ = jax.lax.scan(step, state, length=2)
        return state.descent.diagnostics["loss_rise"][None]

    mapped = in_shard_map(update, in_specs=(P(), P("data")), out_specs=P("data"))
    assert jax.eval_shape(mapped, make_params(), make_batch()).shape == (8,)


# --------------------------------------------------------------------------------------------------
# jax.pmap, and jax.shard_map with check_vma=False


@on_eight_devices
@sam_and_xsam
def test_pmap_with_the_mean_loss_and_the_mean_gradient_equals_one_device(tx):
    assert_replicas_equal_one_device(in_pmap, tx)


@on_eight_devices
@every_transform
def test_unchecked_shard_map_with_the_mean_loss_and_gradient_equals_one_device(tx):
    assert_replicas_equal_one_device(in_unchecked_shard_map, tx)


def assert_replicas_equal_one_device(mapped, tx):
    step = make_step(tx, pmean(loss_fn), pmean(jax.grad(loss_fn)), pass_grad_fn=True)
    replicas = on_replicas(mapped(step), tx)
    assert drift(replicas) == 0
    assert_close(jax.tree.map(lambda leaf: leaf[0], replicas), on_one_device(tx))


@on_eight_devices
@pytest.mark.parametrize("mapped", [in_pmap, in_unchecked_shard_map])
@pytest.mark.parametrize("value_fn", [loss_fn, pmean(loss_fn)], ids=["local", "mean"])
def test_without_the_mean_gradient_devices_drift_apart(mapped, value_fn):
    """If this fails, JAX has changed, and the warning of the recipe is out of date."""
    tx = TRANSFORMS["sam"]
    params, _ = on_replicas(mapped(make_step(tx, value_fn, pmean(jax.grad(loss_fn)))), tx)
    assert drift(params) > 0.01
    assert error(params, on_one_device(tx)[0]) > 0.01


# --------------------------------------------------------------------------------------------------
# esam


@on_eight_devices
def test_esam_in_shard_map_with_gathered_losses_equals_one_device():
    def gathered(params, batch):
        losses = sample_losses(params, batch)
        return jax.lax.all_gather(losses, "data", tiled=True, to="invarying")

    step = in_shard_map(make_esam_step(ESAM, gathered))
    assert_close(train(step, *on_all_devices(ESAM), make_batch()), on_one_device(ESAM))


@on_eight_devices
@pytest.mark.parametrize("pass_losses", [False, True], ids=["computed", "passed"])
def test_esam_in_shard_map_with_varying_gathered_losses_raises(pass_losses):
    def update(params, batch):
        def losses_fn(params, to="varying"):
            return jax.lax.all_gather(sample_losses(params, batch), "data", tiled=True, to=to)

        arguments = {"losses_fn": losses_fn}
        if pass_losses:
            arguments["losses_fn"] = functools.partial(losses_fn, to="invarying")
            arguments["losses"] = losses_fn(params)
        return update_with(ESAM, params, batch, **arguments)

    name = "losses" if pass_losses else "losses_fn"
    with pytest.raises(ValueError, match=f"^{name} differs .*'data'.* to=\"invarying\""):
        trace_in_shard_map(update)


@on_eight_devices
@every_mesh
@pytest.mark.parametrize("spec", [P(), P("data")], ids=["replicated", "sharded"])
def test_esam_with_a_sharded_batch_equals_one_device(axis_type, spec):
    def losses(params, batch):
        explicit = axis_type == AxisType.Explicit
        params = jax.sharding.reshard(params, P()) if explicit else params
        return sample_losses(params, batch)

    mesh = make_mesh(axis_type)
    with jax.set_mesh(mesh):
        params, batch = place(make_params(), mesh, spec), place(make_batch(), mesh, P("data"))
        result = train(make_esam_step(ESAM, losses), params, ESAM.init(params), batch)
    assert_close(result, on_one_device(ESAM))


@on_eight_devices
@pytest.mark.parametrize("convention", ["paper", "official"])
def test_random_subset_does_not_depend_on_sharding(convention):
    tx = xsam_jax.ascent.random_subset(0.6, jax.random.key(0), convention=convention)
    updates = make_params()["hidden"]
    expected, _ = jax.jit(tx.update)(updates, tx.init(updates))
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        sharded = place(updates, make_mesh(axis_type), P("data"))
        kept, _ = jax.jit(tx.update)(sharded, tx.init(sharded))
        np.testing.assert_array_equal(kept, expected)
        assert sharding(kept) == sharding(sharded)


# --------------------------------------------------------------------------------------------------
# Sharded parameters (FSDP)


def sharding(leaf):
    """The type, which has the explicit axes, and the placement, in a form that can be compared."""
    return str(jax.typeof(leaf)), leaf.sharding.devices_indices_map(leaf.shape)


def state_of_parameters(state, params):
    """The leaves of the state that have the shape of parameters."""
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}
    return [leaf for leaf in jax.tree.leaves(state) if leaf.shape in shapes]


def has_state_of_parameters(method):
    params = jax.eval_shape(make_params)
    return bool(state_of_parameters(jax.eval_shape(method.make().init, params), params))


def make_step_of(method, gather=False):
    """A step of any method. `gather` for parameters that are sharded on an explicit mesh."""
    make, loss = (make_esam_step, sample_losses) if method.sample_losses else (make_step, loss_fn)
    if not gather:
        return make(method.make(), loss)
    return make(method.make(), lambda params, batch: loss(jax.sharding.reshard(params, P()), batch))


@functools.cache
def two_steps_on_one_device(name):
    method, params = METHODS[name], make_params()
    return train(make_step_of(method), params, method.make().init(params), make_batch(), steps=2)


@on_eight_devices
@every_mesh
@pytest.mark.parametrize("name", METHODS)
def test_state_and_updates_are_sharded_like_parameters(name, axis_type):
    method, mesh = METHODS[name], make_mesh(axis_type)
    with jax.set_mesh(mesh):
        params, batch = place((make_params(), make_batch()), mesh, P("data"))
        expected = {leaf.shape: sharding(leaf) for leaf in jax.tree.leaves(params)}
        state = method.make().init(params)
        for leaf in state_of_parameters(state, params):
            assert sharding(leaf) == expected[leaf.shape]
        step = make_step_of(method, gather=axis_type == AxisType.Explicit)
        params, state = train(step, params, state, batch, steps=2)
        for leaf in [*jax.tree.leaves(params), *state_of_parameters(state, params)]:
            assert sharding(leaf) == expected[leaf.shape]
    assert_close((params, state), two_steps_on_one_device(name))


@on_eight_devices
@pytest.mark.parametrize(
    ("dtype", "axis_type"),
    [(jnp.bfloat16, AxisType.Explicit), (jnp.float16, AxisType.Auto)],
    ids=["bfloat16, explicit", "float16, automatic"],
)
@pytest.mark.parametrize("name", METHODS)
def test_parameters_of_low_precision_keep_dtype_and_sharding(name, dtype, axis_type):
    method, mesh = METHODS[name], make_mesh(axis_type)
    tx, params, batch = method.make(), make_params(dtype), make_batch()

    @functools.partial(jax.jit, static_argnums=3)
    def update(params, state, batch, gather):
        def losses(params):
            whole = jax.sharding.reshard(params, P()) if gather else params
            return sample_losses(whole, batch).astype(jnp.float32)

        def value_fn(params):
            return losses(params).mean()

        argument = {"losses_fn": losses} if method.sample_losses else {"value_fn": value_fn}
        return tx.update(jax.grad(value_fn)(params), state, params, **argument)

    with jax.set_mesh(mesh):
        sharded, sharded_batch = place((params, batch), mesh, P("data"))
        state, gather = tx.init(sharded), axis_type == AxisType.Explicit
        updates, new_state = update(sharded, state, sharded_batch, gather)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
        shardings = {leaf.shape: sharding(leaf)[1] for leaf in jax.tree.leaves(sharded)}
        for leaf in [*jax.tree.leaves(updates), *state_of_parameters(new_state, params)]:
            # On automatic axes the compiler chooses, unless the step has out_shardings.
            assert not gather or sharding(leaf)[1] == shardings[leaf.shape]
    if method.probes and dtype == jnp.bfloat16:
        return  # the losses of a search are mostly rounding there, and with them alpha
    expected = update(params, tx.init(params), batch, False)
    # Gradients are sums over the batch in another order, and rounded.
    rounding = 4 * float(jnp.finfo(dtype).eps)
    for a, b in zip(*map(jax.tree.leaves, ((updates, new_state), expected)), strict=True):
        a, b = np.float32(a), np.float32(b)
        np.testing.assert_allclose(a, b, rtol=rounding, atol=rounding * np.max(np.abs(b)))


@on_eight_devices
@pytest.mark.parametrize("name", [n for n in METHODS if has_state_of_parameters(METHODS[n])])
def test_state_may_be_sharded_where_parameters_are_not(name):
    """As in ZeRO-1, which shards the state of the optimizer alone."""
    method, mesh = METHODS[name], make_mesh()
    params, batch = place(make_params(), mesh, P()), place(make_batch(), mesh, P("data"))
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}

    def spec(leaf):
        return P("data") if getattr(leaf, "shape", None) in shapes else P()

    state = jax.tree.map(lambda leaf: place(leaf, mesh, spec(leaf)), method.make().init(params))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
    step = jax.jit(make_step_of(method), out_shardings=shardings)
    for _ in range(2):
        params, state = step(params, state, batch)
    assert state_of_parameters(state, params)
    assert_close((params, state), two_steps_on_one_device(name))


def collectives(step, tx, spec):
    """The number of collectives of each kind in a compiled step."""
    mesh = make_mesh()
    params, batch = place(make_params(), mesh, spec), place(make_batch(), mesh, P("data"))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, params), None
    lowered = jax.jit(step, out_shardings=shardings).lower(params, tx.init(params), batch)
    return count_collectives(lowered.compile())


@on_eight_devices
@pytest.mark.parametrize("spec", [P(), P("data")], ids=["replicated", "sharded"])
def test_sam_has_the_collectives_of_sam_by_hand(spec):
    optimizer = optax.sgd(0.1, momentum=0.9)

    def by_hand(params, state, batch):
        grads = jax.grad(loss_fn)(params, batch)
        scale = 0.3 / optax.tree.norm(grads)
        there = jax.tree.map(lambda param, grad: param + scale * grad, params, grads)
        updates, state = optimizer.update(jax.grad(loss_fn)(there, batch), state, params)
        return optax.apply_updates(params, updates), state

    expected = collectives(by_hand, optimizer, spec)
    sam, xsam = (
        optax.chain(method, optimizer) for method in (xsam_jax.sam(0.3), xsam_jax.xsam(0.3, 0.6))
    )
    assert expected["all-reduce"] >= 2
    assert collectives(make_step(sam), sam, spec) == expected
    # The probe adds the mean of a loss, and of sharded parameters the scalars of its geometry.
    more = collectives(make_step(xsam), xsam, spec) - expected
    leaves = len(make_params())
    sharded = {"all-gather": leaves, "all-reduce": 4}
    assert more == ({"all-reduce": 1} if spec == P() else sharded)


@on_eight_devices
@every_mesh
def test_hessian_vector_products_are_sharded_like_parameters(axis_type):
    mesh, batch = make_mesh(axis_type), make_batch()
    whole_batch_loss = gathered_loss_fn if axis_type == AxisType.Explicit else loss_fn
    with jax.set_mesh(mesh):
        params = place(make_params(), mesh, P("data"))
        objective = Objective(lambda p: whole_batch_loss(p, batch), params, None)
        product = objective.hessian_vector_product(params)
        expected = jax.tree.map(sharding, params)
        assert jax.tree.map(sharding, product) == expected
