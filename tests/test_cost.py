"""What a step costs: FLOPs and memory of the compiled program, gradients counted at run time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import xsam_jax
from benchmarks import models, steps
from xsam_jax.ascent import normalize, scale_by_radius


@functools.cache
def problem(name):
    return models.build(name)


@functools.cache
def compiled(name, step_name):
    competitors = {
        **steps.competitors(problem(name).loss_fn),
        "sam, three steps": steps.ours(problem(name).loss_fn, xsam_jax.sam(0.05, steps=3)),
    }
    competitor = competitors[step_name]
    p = problem(name)
    # The base optimizer's state of the plain step serves for a gradient alone.
    return jax.jit(competitor.step).lower(p.params, competitor.init(p.params), p.batch).compile()


def flops(name, step_name):
    return compiled(name, step_name).cost_analysis()["flops"]


def memory(name, step_name):
    return compiled(name, step_name).memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("step_name", "gradients"), [("sam", 2), ("slerp_sam", 2), ("sam, three steps", 4)]
)
def test_a_step_computes_little_beside_its_gradients(step_name, gradients):
    assert flops("resnet", step_name) <= 1.02 * gradients * flops("resnet", "gradient")
    assert flops("resnet", step_name) >= 0.98 * gradients * flops("resnet", "gradient")


@pytest.mark.parametrize("name", ["resnet", "vit", "mlp"])
@pytest.mark.parametrize("step_name", ["sam", "xsam, grid", "xsam, section"])
def test_a_whole_step_needs_at_most_two_parameter_copies_more_than_sam_by_hand(name, step_name):
    copy = 4 * optax.tree.size(problem(name).params)
    extra = memory(name, step_name) - memory(name, "hand-written SAM")
    assert extra <= 2 * copy, f"{extra / copy:.2f} copies"


def loss_fn(params):
    return jnp.sum(jnp.geomspace(0.2, 5.0, 1000) * params**2)


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
def test_a_field_of_the_path_that_nobody_reads_costs_nothing(steps_):
    """The loop by hand keeps but whether all was finite; one that reads the sums pays for them."""

    def by_hand(params):
        point, gradient, norms = params, jax.grad(loss_fn)(params), []
        for _ in range(steps_):
            norms.append(xsam_jax.tree.norm(gradient))
            direction = xsam_jax.tree.unit(gradient)
            point = optax.apply_updates(point, xsam_jax.tree.scale(jnp.float32(0.1), direction))
            gradient = jax.grad(loss_fn)(point)
        return jnp.where(jnp.isfinite(sum(norms)), gradient, jnp.nan)

    program = jax.jit(by_hand).lower(jnp.ones(1000)).compile()
    expected = program.cost_analysis()["flops"], program.memory_analysis().temp_size_in_bytes
    unread = cost_of_descent(descent_that_reads(), steps_)
    assert unread[0] <= expected[0]
    assert unread[1] <= expected[1]
    read = cost_of_descent(descent_that_reads("displacement", "first_gradient"), steps_)
    assert read[0] > 1.02 * unread[0]


def counts(steps=1, probe_every=3, num_steps=4, **kwargs):
    """Gradients and forward passes that each training step evaluates, at run time."""
    seen = {"forward": 0, "backward": 0}

    def see(which):
        seen[which] += 1

    @jax.custom_vjp
    def counted(params):
        jax.debug.callback(lambda: see("forward"))
        return loss_fn(params)

    def forward(params):
        jax.debug.callback(lambda: see("forward"))
        return loss_fn(params), params

    def backward(params, cotangent):
        jax.debug.callback(lambda: see("backward"))
        return (cotangent * jax.grad(loss_fn)(params),)

    counted.defvjp(forward, backward)
    tx = xsam_jax.xsam(0.1, 0.2, steps=steps, probe_every=probe_every, **kwargs)
    params = jnp.asarray(np.linspace(-1, 1, 1000), jnp.float32)
    state = tx.init(params)
    # The clean gradient is the caller's, and not counted.
    update = jax.jit(lambda g, s: tx.update(g, s, params, value_fn=counted))
    rows = []
    for _ in range(num_steps):
        _, state = update(jax.grad(loss_fn)(params), state)
        jax.effects_barrier()
        rows.append((seen["backward"], seen["forward"] - seen["backward"]))
        seen.update(forward=0, backward=0)
    return rows


@pytest.mark.parametrize("steps_", [1, 2])
def test_xsam_takes_k_gradients_and_probes_only_when_due(steps_):
    assert counts(steps_) == [(steps_, 21), (steps_, 0), (steps_, 0), (steps_, 21)]


def test_the_section_search_takes_a_third_of_the_evaluations():
    assert counts(search="section", num_steps=2) == [(1, 7), (1, 0)]


def test_a_slope_takes_the_forward_passes_it_says():
    """The loss at the start, and at the probed maximum; that at the end of the ascent is free."""
    assert counts(scale="slope", num_steps=2)[1] == (1, 1)
    assert counts(scale="slope_max", num_steps=2)[1] == (1, 2)
