"""The cost of a step: FLOPs and memory of the compiled program, gradients counted at run time."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from methods import METHODS

import xsam_jax
from benchmarks import models, steps
from xsam_jax import _tree as tree
from xsam_jax.ascent import normalize, scale_by_radius
from xsam_jax.descent import match_norm, slerp, slerp_to_maximum
from xsam_jax.gating import after, every, gated

NETWORKS = {
    # Activations need far more memory than parameters, as in training.
    "resnet": (models.ResNet((16, 32, 64), blocks=1), models.random_batch(125, side=32)),
    "vit": (models.ViT(128, blocks=2, heads=4, patch=4), models.random_batch(64, side=32)),
    "mlp": (models.MLP((512, 512, 512)), models.random_batch(125, side=32)),
}


@functools.cache
def problem(name):
    """A problem at parameters of zero. A compilation reads only their types."""
    network, batch = NETWORKS[name]
    problems = []

    def init(batch):
        problems.append(models.classification(name, network, batch))
        return problems[0].params

    types = jax.eval_shape(init, batch)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), types)
    return dataclasses.replace(problems[0], params=params, batch=batch)


@functools.cache
def compiled(name, step_name):
    competitors = {
        **steps.competitors(problem(name).loss_fn),
        "sam, three steps": steps.ours(problem(name).loss_fn, xsam_jax.sam(0.05, steps=3)),
        "momentum_sam": steps.looking_ahead(
            problem(name).loss_fn, xsam_jax.momentum_sam(steps.BASE, 0.5)
        ),
    }
    competitor = competitors[step_name]
    p = problem(name)
    # The base optimizer's state of the plain step serves for a gradient alone.
    state = jax.eval_shape(competitor.init, p.params)
    return jax.jit(competitor.step).lower(p.params, state, p.batch).compile()


def flops(name, step_name):
    return compiled(name, step_name).cost_analysis()["flops"]


def memory(name, step_name):
    return compiled(name, step_name).memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_momentum_sam_costs_what_the_base_optimizer_costs(name):
    assert 1.0 < flops(name, "momentum_sam") / flops(name, "gradient") <= 1.02
    assert memory(name, "momentum_sam") - memory(name, "gradient") <= 4 * 1.2 * optax.tree.size(
        problem(name).params
    )


@pytest.mark.parametrize(("step_name", "gradients"), [("slerp_sam", 2), ("sam, three steps", 4)])
def test_step_computes_little_beside_its_gradients(step_name, gradients):
    assert flops("resnet", step_name) <= 1.02 * gradients * flops("resnet", "gradient")
    assert flops("resnet", step_name) >= 0.98 * gradients * flops("resnet", "gradient")


@pytest.mark.parametrize(
    ("name", "step_name"),
    [
        ("resnet", "xsam, grid"),
        ("vit", "xsam, grid"),
        *(("mlp", step_name) for step_name in ("sam", "xsam, grid", "xsam, section")),
    ],
)
def test_step_needs_at_most_two_parameter_copies_more_than_sam_by_hand(name, step_name):
    copy = 4 * optax.tree.size(problem(name).params)
    extra = memory(name, step_name) - memory(name, "hand-written SAM")
    assert extra <= 2 * copy, f"{extra / copy:.2f} copies"


def compiled_update(tx, params, arguments):
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, **arguments))
    return update.lower(params, jax.eval_shape(tx.init, params), params).compile()


def tanh_losses(params):
    """The losses of 2000 samples, whose activations need far more memory than the parameters."""
    x = np.linspace(-1.0, 1.0, 16_000, dtype=np.float32).reshape(2000, 8)
    for _ in range(4):
        x = jnp.tanh(x @ params)
    return jnp.mean(x**2, axis=1)


def tanh_loss(params):
    return tanh_losses(params).mean()


START = 0.5 * np.eye(8, dtype=np.float32)


@functools.cache
def memory_of_gradient():
    program = jax.jit(jax.grad(tanh_loss)).lower(START).compile()
    return program.memory_analysis().temp_size_in_bytes


WITHOUT_PRODUCTS = {name: method for name, method in METHODS.items() if not method.products}


@pytest.mark.parametrize("method", WITHOUT_PRODUCTS.values(), ids=WITHOUT_PRODUCTS)
def test_no_method_holds_the_activations_of_two_gradients(method):
    losses = {"losses_fn": tanh_losses} if method.sample_losses else {"value_fn": tanh_loss}
    program = compiled_update(method.make(), START, losses)
    assert program.memory_analysis().temp_size_in_bytes < 1.5 * memory_of_gradient()


CURVATURES = np.geomspace(0.2, 5.0, 1000, dtype=np.float32)


def loss_fn(params):
    return jnp.sum(CURVATURES * params**2)


def descent_that_reads(*fields):
    def update(updates, state, params=None, *, path, **extra_args):
        for field in fields:
            updates = jax.tree.map(jnp.add, updates, getattr(path, field))
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def cost_of_descent(descent, steps):
    ascent = optax.chain(normalize(), scale_by_radius(0.1))
    tx = xsam_jax.sharpness_aware(ascent, descent, steps=steps)
    params = jnp.ones(1000)

    def step(params):
        grads = jax.grad(loss_fn)(params)
        return tx.update(grads, tx.init(params), params, value_fn=loss_fn)[0]

    program = jax.jit(step).lower(params).compile()
    return program.cost_analysis()["flops"], program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("steps_", [1, 3])
def test_unread_field_of_the_path_costs_nothing(steps_):
    """The loop by hand only keeps whether all was finite. Reading the sums costs FLOPs."""

    def by_hand(params):
        point, gradient, norms = params, jax.grad(loss_fn)(params), []
        for _ in range(steps_):
            norms.append(tree.norm(gradient))
            direction = tree.unit(gradient)
            point = optax.apply_updates(point, tree.scale(jnp.float32(0.1), direction))
            gradient = jax.grad(loss_fn)(point)
        return jnp.where(jnp.isfinite(sum(norms)), gradient, jnp.nan)

    program = jax.jit(by_hand).lower(jnp.ones(1000)).compile()
    expected = program.cost_analysis()["flops"], program.memory_analysis().temp_size_in_bytes
    unread = cost_of_descent(descent_that_reads(), steps_)
    assert unread[0] <= expected[0]
    assert unread[1] <= expected[1]
    read = cost_of_descent(descent_that_reads("displacement", "first_gradient"), steps_)
    assert read[0] > 1.02 * unread[0]


def counted(function):
    """The function, and the numbers of evaluations of it and its gradient at run time."""
    seen = {"forward": 0, "backward": 0}

    def see(which):
        seen[which] += 1

    @jax.custom_vjp
    def counting(params):
        jax.debug.callback(lambda: see("forward"))
        return function(params)

    def forward(params):
        jax.debug.callback(lambda: see("forward"))
        return function(params), params

    def backward(params, cotangent):
        jax.debug.callback(lambda: see("backward"))
        return jax.vjp(function, params)[1](cotangent)

    counting.defvjp(forward, backward)
    return counting, seen


def counts(tx, num_steps=4, arguments=None, **extra_args):
    """Gradients and forward passes that each training step evaluates, and the last state."""
    arguments = {"value_fn": loss_fn} if arguments is None else arguments
    ((name, function),) = arguments.items()
    function, seen = counted(function)
    params = jnp.asarray(np.linspace(-1, 1, 1000), jnp.float32)
    gradient = 2 * CURVATURES * np.asarray(params)
    state = tx.init(params)
    # The clean gradient is that of the caller, and not counted.
    update = jax.jit(lambda g, s: tx.update(g, s, params, **{name: function}, **extra_args))
    rows = []
    for step in range(num_steps):
        # Of alternating norm, for the gate that reads the norm.
        scale = np.float32(1.0 + 0.5 * (-1.0) ** step)
        _, state = update(scale * gradient, state)
        jax.effects_barrier()
        rows.append((seen["backward"], seen["forward"] - seen["backward"]))
        seen.update(forward=0, backward=0)
    return rows, state


def xsam(**kwargs):
    return xsam_jax.xsam(0.1, 0.2, probe_every=3, **kwargs)


@pytest.mark.parametrize("steps_", [1, 2])
def test_xsam_takes_k_gradients_and_probes_only_when_due(steps_):
    rows, _ = counts(xsam(steps=steps_))
    assert rows == [(steps_, 21), (steps_, 0), (steps_, 0), (steps_, 21)]


def test_section_search_takes_a_third_of_the_evaluations():
    assert counts(xsam(search="section"), 2)[0] == [(1, 7), (1, 0)]


def test_slope_takes_its_documented_forward_passes():
    """The loss at the start and at the probed maximum. That at the end of the ascent is free."""
    assert counts(xsam(scale="slope"), 2)[0][1] == (1, 1)
    assert counts(xsam(scale="slope_max"), 2)[0][1] == (1, 2)


def test_eigen_sam_takes_a_product_for_each_iteration_in_every_nth_step():
    """A product of the Hessian evaluates the gradient and its derivative."""
    rows, _ = counts(xsam_jax.eigen_sam(0.1, 0.2, every=3), 4)
    assert [row[0] for row in rows] == [1 + 5, 1, 1, 1 + 5]


@pytest.mark.parametrize("method", WITHOUT_PRODUCTS.values(), ids=WITHOUT_PRODUCTS)
def test_method_takes_its_documented_gradients(method):
    rows, state = counts(method.make(), 6, method.arguments(loss_fn))
    gradients = [row[0] for row in rows]
    sharp_steps = optax.tree.get(state, "sharp_steps")
    if sharp_steps is None:
        assert gradients == [method.gradients] * 6
    else:
        assert set(gradients) == {0, method.gradients}, "both kinds of steps"
        assert sharp_steps * method.gradients == sum(gradients)


def test_esam_with_known_losses_takes_one_forward_pass_less():
    arguments = {"losses_fn": lambda params: loss_fn(params) * jnp.array([0.5, 1.0, 1.5])}
    tx = xsam_jax.esam(0.1, 0.5, 0.7, jax.random.key(0))
    assert counts(tx, 1, arguments)[0] == [(1, 1)]
    assert counts(tx, 1, arguments, losses=jnp.zeros(3))[0] == [(1, 0)]


NESTED = {
    "two steps, every third": (gated(xsam_jax.sam(0.1, steps=2), every(3)), [2, 0, 0, 2, 0, 0]),
    "three further gradients": (
        gated(xsam_jax.gam(0.1, 0.1, 0.5, 0.5, 0.1), after(4)),
        [0, 0, 0, 0, 3, 3],
    ),
    "a gate in a gate": (
        gated(gated(xsam_jax.cr_sam(0.1), every(2)), after(3)),
        [0, 0, 0, 2, 0, 2],
    ),
    "LookSAM in a gate": (gated(xsam_jax.look_sam(0.1, 0.7, 2), after(1)), [0, 1, 0, 1, 0, 1]),
}


@pytest.mark.parametrize("name", NESTED)
def test_skipped_steps_take_no_further_gradients(name):
    tx, gradients = NESTED[name]
    rows, state = counts(tx, 6)
    assert [row[0] for row in rows] == gradients
    if name != "LookSAM in a gate":  # whose own steps are not all sharpness-aware
        further = max(gradients)
        inner = [state.inner.sharp_steps] if name == "a gate in a gate" else []
        assert (*inner, state.sharp_steps)[0] * further == sum(gradients)


@pytest.mark.parametrize("sharp", [False, True])
def test_decision_of_the_host_removes_the_conditional(sharp):
    for tx in (gated(xsam_jax.sam(0.1), every(2)), xsam_jax.look_sam(0.1, 0.7, 2)):
        rows, state = counts(tx, 3, sharp=sharp)
        assert [row[0] for row in rows] == [int(sharp)] * 3
        assert state.sharp_steps == 3 * sharp

        def step(params, state, tx=tx, **kwargs):
            return tx.update(params, state, params, value_fn=loss_fn, **kwargs)

        program = jax.jit(lambda p, s, step=step: step(p, s, sharp=sharp))
        params = jnp.ones(1000)
        assert "cond" not in str(jax.make_jaxpr(program)(params, tx.init(params)))
        assert "cond" in str(jax.make_jaxpr(step)(params, tx.init(params)))


@pytest.mark.parametrize("name", ["slerp_sam", "xsam"])
def test_length_of_a_slerped_direction_is_not_measured_again(name):
    ascent = optax.chain(normalize(), scale_by_radius(0.3))
    slerped = {"slerp_sam": slerp(1.5), "xsam": slerp_to_maximum(0.6, probe_every=2)}[name]
    measured = xsam_jax.sharpness_aware(ascent, optax.chain(slerped, match_norm()))
    flops, flops_of_measured = (
        compiled_update(tx, jnp.ones(1000), {"value_fn": jnp.sum}).cost_analysis()["flops"]
        for tx in (METHODS[name].make(), measured)
    )
    assert flops <= 0.9 * flops_of_measured


@pytest.mark.parametrize(
    ("size", "num_params", "on_cpu", "elsewhere"),
    [
        (None, 1000, 1, 3),
        (None, 60_000_000, 1, 1),
        (1, 1000, 1, 1),
        (7, 1000, 7, 7),
        ("all", 1000, 21, 21),
    ],
)
def test_default_chunk_of_the_probe_is_that_of_platform_and_model(
    size, num_params, on_cpu, elsewhere
):
    """Lowered for platforms that this machine need not have."""
    tx = xsam_jax.xsam(0.1, 0.2, probe_batch_size=size)

    def update(params, state):
        return tx.update(params, state, params, value_fn=lambda params: jnp.sum(params**2))

    params = jax.ShapeDtypeStruct((num_params,), jnp.float32)
    traced = jax.jit(update).trace(params, jax.eval_shape(tx.init, params))
    for platform, expected in {"cpu": on_cpu, "cuda": elsewhere, "tpu": elsewhere}.items():
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        chunks = map(int, re.findall(rf"tensor<(\d+)x{num_params}xf32>", text))
        assert max(chunks, default=1) == expected


@pytest.mark.parametrize(("name", "passes"), [("sam", 3), ("slerp_sam", 9), ("xsam", 12)])
def test_number_of_passes_over_the_parameters(name, passes):
    """With both gradients given. XLA counts both branches of each conditional.

    SAM reads its gradient twice and writes once. The others read both gradients for the angle, once
    more for a small angle, and for the direction, which they write. A probe reads and writes more.
    """
    params = {"a": jnp.ones(100_000), "b": jnp.ones(200_000)}
    method = METHODS[name]
    arguments = method.arguments(lambda params: jnp.sum(params["a"]) + jnp.sum(params["b"]))

    def update(grads, last, state):
        further = arguments | {"grad_fn": lambda point: last}
        return method.make().update(grads, state, params, **further)

    program = jax.jit(update).lower(params, params, method.make().init(params)).compile()
    copy = 4 * optax.tree.size(params)
    assert program.cost_analysis()["bytes accessed"] <= (passes + 0.1) * copy
    assert program.memory_analysis().temp_size_in_bytes <= 0.01 * copy


@functools.cache
def program_of_update(name, num_leaves):
    """The text of the compiled program of an update."""

    def value_fn(params):
        return sum(jnp.sum(leaf**2) for leaf in params)

    method, params = METHODS[name], [jnp.ones((2, 2))] * num_leaves
    return compiled_update(method.make(), params, method.arguments(value_fn)).as_text()


def instructions(name, num_leaves):
    return program_of_update(name, num_leaves).count(" = ")


@pytest.mark.parametrize("name", ["gsam", "xsam", "look_sam", "gam"])
def test_program_grows_linearly_with_the_number_of_leaves(name):
    assert instructions(name, 50) <= 2.1 * instructions(name, 25)


counts_of_xla = pytest.mark.skipif(
    not jax.__version__.startswith("0.10."), reason="the limits are counts of JAX 0.10"
)


@counts_of_xla
@pytest.mark.parametrize(("name", "limit"), [("slerp_sam", 4.3), ("xsam", 6.3)])
def test_weights_of_slerp_are_computed_once_for_all_leaves(name, limit):
    """With products in place of the last divisions there are 4.6 and 6.9 times sam's."""
    assert instructions(name, 50) <= limit * instructions("sam", 50)


@counts_of_xla
@pytest.mark.parametrize("name", ["gsam", "gam", "msam"])
def test_no_kernel_adds_up_two_sums_over_all_leaves(name):
    """One sum takes a parameter and an addition for each leaf."""
    computations = program_of_update(name, 50).split("\n\n")
    sizes = [c.count(" = ") for c in computations if c.startswith("%fused_computation")]
    assert 2 * 50 < max(sizes) < 3 * 50
