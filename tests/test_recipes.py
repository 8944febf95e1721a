"""The recipes in docs/recipes.md: every block runs, and does what the text around it says."""

import collections
import functools
import pathlib
import re
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training import train_state

from xsam_jax import sam, xsam
from xsam_jax.ascent import normalize

ROOT = pathlib.Path(__file__).parent.parent
FENCE = re.compile(r"^```(python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path, side="+"):
    """Returns {heading: code} for a Markdown file, each on its line of the file; diffs by side."""
    text = path.read_text(encoding="utf-8")
    found = collections.defaultdict(str)
    for match in FENCE.finditer(text):
        headings = re.findall(r"^## (.*)$", text[: match.start()], re.MULTILINE)
        lines = match[2].splitlines()
        if match[1] == "diff":
            # A line of the other side becomes blank, so that the numbering stays.
            lines = [line[1:] if line[:1] in ("", " ", side) else "" for line in lines]
        heading = headings[-1] if headings else ""
        padding = text[: match.start(2)].count("\n") - found[heading].count("\n")
        found[heading] += "\n" * padding + "\n".join(lines) + "\n"
    return dict(found)


def execute(path, code, module):
    exec(compile(code, str(path), "exec"), module.__dict__)


RECIPES = ROOT / "docs" / "recipes.md"
CODE = blocks(RECIPES)
TESTED = set()


@functools.cache
def setup():
    module = types.ModuleType("setup")
    execute(RECIPES, CODE["Setup"], module)
    return module


def run(heading, replace=None, side="+", **names):
    """Runs Setup and a recipe, with passages exchanged and names given; returns all names."""
    code = blocks(RECIPES, side)[heading]
    for old, new in (replace or {}).items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    module = types.ModuleType("recipe")
    execute(RECIPES, CODE["Setup"], module)
    vars(module).update(names, initial=module.params)
    execute(RECIPES, code, module)
    return module


def recipe(heading):
    """Hands the recipe's names to a test as `ns`, or, to one that runs it, its heading."""
    TESTED.add(heading)
    return pytest.mark.parametrize("heading", [heading])


unchanged = functools.cache(run)


@pytest.fixture
def ns(heading):
    return unchanged(heading)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
    # Nearly all of the time goes into compiling programs that run for milliseconds.
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_recipe_is_tested():
    headings = re.findall(r"^## (.*)$", RECIPES.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(headings) == set(CODE)
    assert set(headings) - {"Setup"} == TESTED


def test_the_blocks_of_the_readme_run_in_order_and_train():
    module = types.ModuleType("readme")
    # What the loop of a reader has already.
    for name in ("jax", "jnp", "optax", "params", "batch", "loss_fn"):
        setattr(module, name, getattr(setup(), name))
    for block in blocks(ROOT / "README.md").values():
        execute(ROOT / "README.md", block, module)

    params, opt_state, losses = module.params, module.opt_state, []
    for _ in range(5):
        params, opt_state, loss = module.train_step(params, opt_state, module.batch)
        losses.append(loss)
    assert losses == sorted(losses, reverse=True)


# --------------------------------------------------------------------------------------------------
# What the recipes are compared with


def along(direction, rho):
    """The perturbation of length rho, norm taken over the whole tree."""
    return optax.tree.scale(rho / optax.tree.norm(direction), direction)


def gradient_of(params, batch, loss_fn=None):
    return _gradient(loss_fn or setup().loss_fn, params, batch)


def sam_gradient(params, batch, rho, loss_fn=None):
    return _sam_gradient(loss_fn or setup().loss_fn, params, batch, rho)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(loss_fn, params, batch):
    return jax.grad(loss_fn)(params, batch)


@functools.partial(jax.jit, static_argnums=0)
def _sam_gradient(loss_fn, params, batch, rho):
    perturbation = along(jax.grad(loss_fn)(params, batch), rho)
    return jax.grad(loss_fn)(optax.tree.add(params, perturbation), batch)


def gradient_taken(before, after, learning_rate=0.1):
    """The gradient that plain gradient descent made its step with."""
    return optax.tree.scale(1 / learning_rate, optax.tree.sub(before, after))


def assert_close(actual, expected, rtol=1e-4):
    """Equal up to float32, in the norm of the whole tree."""
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    difference = optax.tree.norm(optax.tree.sub(actual, expected))
    assert difference <= rtol * optax.tree.norm(expected)


def differ(tree, other):
    return [
        bool(jnp.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (tree, other)), strict=True)
    ]


class Recorder:
    """Keeps what compiled programs hand it, pass by pass, and counts equal values."""

    def __init__(self):
        self._values = []

    def __call__(self, tree):
        jax.debug.callback(lambda tree: self._values.append(jax.device_get(tree)), tree)

    def counts(self):
        jax.effects_barrier()
        values, self._values = self._values, []
        leaves = [b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(v)) for v in values]
        return sorted(collections.Counter(leaves).values())


# --------------------------------------------------------------------------------------------------
# The recipes


@recipe("Three lines in an existing loop")
def test_three_lines_turn_sgd_into_xsam_and_compute_nothing_twice(heading):
    passes, loss_fn = Recorder(), setup().loss_fn
    before = run(heading, side="-")
    after = run(heading, loss_fn=lambda *args: (passes(0), loss_fn(*args))[1])
    lines = RECIPES.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("+") for line in lines) == 3

    plain = gradient_of(before.initial, before.batch)
    assert_close(gradient_taken(before.initial, before.params), plain)
    np.testing.assert_allclose(after.loss, before.loss, rtol=1e-6)
    taken = gradient_taken(after.initial, after.params)
    length = optax.tree.norm(sam_gradient(after.initial, after.batch, 0.1))
    np.testing.assert_allclose(optax.tree.norm(taken), length, rtol=1e-4)
    assert optax.tree.norm(optax.tree.sub(taken, plain)) > 0.01 * length

    # One clean pass, one at the end of the ascent, and the 21 of the probe.
    assert passes.counts() == [23]
    after.train_step(after.params, after.opt_state, after.batch)
    assert passes.counts() == [2]


@recipe("BatchNorm and Dropout in Flax NNX")
@pytest.mark.parametrize("masks", ["same", "fresh"])
def test_nnx_statistics_advance_once_and_masks_are_as_chosen(heading, masks):
    recorder = Recorder()

    class RecordedDropout(nnx.Dropout):
        def __call__(self, inputs):
            mask = super().__call__(jnp.ones_like(inputs))
            recorder(mask)
            return mask * inputs

    first = "    value_fn = make_value_fn(model_loss, model, batch)\n"
    second = "    loss, grads = nnx.value_and_grad(model_loss)(model, batch)\n"
    swapped = {first + second: second + first} if masks == "fresh" else {}
    replace = {"nnx.Dropout": "RecordedDropout"} | swapped
    ns = run(heading, replace, RecordedDropout=RecordedDropout)
    assert recorder.counts() == ([23] if masks == "same" else [1, 22])

    clean = ns.Model(nnx.Rngs(0))
    clean(ns.x)
    expected = nnx.as_pure(nnx.state(clean, nnx.BatchStat))
    assert_close(nnx.as_pure(nnx.state(ns.model, nnx.BatchStat)), expected)

    recorder.counts()
    ns.train_step(ns.model, ns.optimizer, ns.batch)
    assert recorder.counts() == ([2] if masks == "same" else [1, 1])


@recipe("BatchNorm and Dropout in Flax linen")
@pytest.mark.parametrize("masks", ["same", "fresh"])
def test_linen_statistics_advance_once_and_masks_are_as_chosen(heading, masks):
    recorder = Recorder()

    def record_masks(call, args, kwargs, context):
        if not isinstance(context.module, linen.Dropout) or context.module.deterministic:
            return call(*args, **kwargs)
        mask = call(jnp.ones_like(args[0]))
        recorder(mask)
        return mask * args[0]

    other_key = {"model_loss(p, key)": "model_loss(p, jax.random.fold_in(key, 1))"}
    with linen.intercept_methods(record_masks):
        ns = run(heading, other_key if masks == "fresh" else {})
    assert recorder.counts() == ([2] if masks == "same" else [1, 1])

    _, clean = ns.Model().apply(
        ns.variables,
        ns.x,
        train=True,
        rngs={"dropout": jax.random.key(2)},
        mutable=["batch_stats"],
    )
    assert_close(ns.state.batch_stats, clean["batch_stats"])
    assert all(differ(ns.state.params, ns.variables["params"]))


@recipe("BatchNorm and Dropout in Flax linen")
def test_the_train_state_of_flax_keeps_the_loss_from_the_optimizer(heading):
    base = train_state.TrainState
    with pytest.raises(ValueError, match="value_fn is missing"):
        run(heading, {"class State(TrainState)": "class State(base)"}, base=base)


@recipe("Gradient clipping")
def test_the_sharpness_aware_gradient_is_clipped(ns):
    gradient = sam_gradient(ns.initial, ns.batch, 0.05)
    assert optax.tree.norm(gradient) > 0.2
    assert_close(gradient_taken(ns.initial, ns.params), along(gradient, 0.1))

    before = optax.chain(optax.clip_by_global_norm(0.1), sam(rho=0.05), optax.sgd(0.1))
    params, _ = ns.make_train_step(before)(ns.initial, before.init(ns.initial), ns.batch)
    assert_close(gradient_taken(ns.initial, params), gradient)


@recipe("Computing in bfloat16")
def test_bfloat16_is_for_computing_and_not_for_parameters(ns):
    jaxpr = str(jax.make_jaxpr(ns.loss_fn)(ns.initial, ns.batch))
    assert re.search(r"bf16\[32,3\] = dot_general", jaxpr)
    chex.assert_trees_all_equal_dtypes(ns.params, ns.initial)
    expected = sam_gradient(ns.initial, ns.batch, 0.05)
    # Eight bits are 0.4 % per operation.
    assert_close(sam_gradient(ns.initial, ns.batch, 0.05, ns.loss_fn), expected, rtol=0.05)

    flat, _ = jax.flatten_util.ravel_pytree(ns.initial)
    # What falls to an entry where a million of them share the radius.
    perturbation = jax.random.normal(jax.random.key(0), flat.shape) * 0.05 / 1e3
    assert jnp.mean(flat + perturbation == flat) < 0.01
    params = flat.astype(jnp.bfloat16)
    assert jnp.mean(params + perturbation.astype(jnp.bfloat16) == params) > 0.8


@recipe("Loss scaling for float16")
def test_a_loss_scale_changes_nothing_and_overflow_is_skipped(ns):
    state = ns.make_tx(1.0).init(ns.initial)
    results = {}
    for scale in (2.0**8, 2.0**15):
        params, after, grown = ns.train_step(ns.initial, state, jnp.float32(scale), ns.batch)
        results[scale] = params, optax.tree.get(after, "alpha")
        assert grown > scale
    (params, alpha), (other, other_alpha) = results.values()
    assert alpha == other_alpha
    assert alpha != 1
    assert_close(gradient_taken(ns.initial, params), gradient_taken(ns.initial, other), rtol=1e-2)
    length = optax.tree.norm(sam_gradient(ns.initial, ns.batch, 0.1))
    # Eleven bits are 0.05 % per operation.
    np.testing.assert_allclose(optax.tree.norm(gradient_taken(ns.initial, params)), length, 1e-2)

    params, after, shrunk = ns.train_step(ns.params, ns.opt_state, jnp.float32(2.0**40), ns.batch)
    chex.assert_trees_all_equal(params, ns.params)
    trace = optax.tree.get(ns.opt_state, "trace")
    chex.assert_trees_all_equal(optax.tree.get(after, "trace"), trace)
    assert shrunk == 2.0**39


@recipe("Gradient accumulation, one perturbation for all micro-batches")
def test_accumulation_inside_the_functions_is_the_step_of_the_full_batch(ns):
    step = ns.make_train_step(ns.tx)
    expected, opt_state = step(ns.initial, ns.tx.init(ns.initial), ns.batch)
    assert_close(gradient_taken(ns.initial, ns.params), gradient_taken(ns.initial, expected))
    assert optax.tree.get(ns.opt_state, "alpha") == optax.tree.get(opt_state, "alpha")


def micro_batches(ns):
    return [(ns.x[i : i + 8], ns.y[i : i + 8]) for i in range(0, 32, 8)]


def mean(trees):
    return optax.tree.scale(1 / len(trees), jax.tree.map(lambda *leaves: sum(leaves), *trees))


@recipe("Gradient accumulation, one perturbation per micro-batch")
def test_multi_steps_in_the_chain_takes_the_mean_of_sharpness_aware_gradients(ns):
    gradients = [sam_gradient(ns.initial, batch, 0.05) for batch in micro_batches(ns)]
    assert_close(gradient_taken(ns.initial, ns.params), mean(gradients))
    params, _ = ns.train_step(ns.initial, ns.tx.init(ns.initial), micro_batches(ns)[0])
    chex.assert_trees_all_equal(params, ns.initial)


@recipe("Gradient accumulation, one perturbation per micro-batch")
def test_multi_steps_around_the_chain_pays_always_and_uses_the_last_micro_batch(ns, monkeypatch):
    passes, loss_fn = Recorder(), ns.loss_fn
    monkeypatch.setattr(ns, "loss_fn", lambda *args: (passes(0), loss_fn(*args))[1])
    around = optax.MultiSteps(optax.chain(sam(rho=0.05), optax.sgd(0.1)), every_k_schedule=4)
    step, params, state = ns.make_train_step(around), ns.initial, around.init(ns.initial)
    for batch in micro_batches(ns):
        params, state = step(params, state, batch)
        assert passes.counts() == [2]
    monkeypatch.undo()
    first = mean([gradient_of(ns.initial, batch) for batch in micro_batches(ns)])
    end = optax.tree.add(ns.initial, along(first, 0.05))
    last = gradient_of(end, micro_batches(ns)[-1])
    assert_close(gradient_taken(ns.initial, params), last)


@recipe("Skipping NaN")
def test_nan_of_any_pass_is_skipped_after_the_transform_and_not_around_it(ns, monkeypatch):
    chex.assert_trees_all_equal(ns.params, ns.initial)
    assert optax.tree.get(ns.opt_state, "total_notfinite") == 1
    chex.assert_tree_all_finite(ns.opt_state)

    loss_fn = ns.loss_fn

    def nan_elsewhere(params, batch):
        here = jnp.all(params["norm"] == ns.initial["norm"])
        return loss_fn(params, batch) * jnp.where(here, 1.0, jnp.nan)

    monkeypatch.setattr(ns, "loss_fn", nan_elsewhere)
    around = optax.apply_if_finite(
        optax.chain(sam(rho=0.05), optax.sgd(0.1)), max_consecutive_errors=5
    )
    skipped, _ = ns.make_train_step(ns.tx)(ns.initial, ns.tx.init(ns.initial), ns.batch)
    chex.assert_trees_all_equal(skipped, ns.initial)
    lost, _ = ns.make_train_step(around)(ns.initial, around.init(ns.initial), ns.batch)
    assert jnp.isnan(optax.tree.norm(lost))


@recipe("Frozen parameters")
def test_frozen_parameters_are_perturbed_or_not_but_never_updated(ns):
    hidden = ns.initial["hidden"]
    start = {name: ns.initial[name] for name in ("norm", "output")}
    alone = sam_gradient(start, ns.batch, 0.05, lambda p, batch: ns.loss_fn(ns.frozen | p, batch))
    assert_close(gradient_taken(start, ns.trained), alone)

    with_hidden = sam_gradient(ns.initial, ns.batch, 0.05)
    chex.assert_trees_all_equal(ns.params["hidden"], hidden)
    chex.assert_trees_all_equal(ns.frozen["hidden"], hidden)
    updated = {name: ns.params[name] for name in start}
    assert_close(gradient_taken(start, updated), {name: with_hidden[name] for name in start})
    # The two agree to about the radius, so the comparisons above tell them apart.
    apart = optax.tree.norm(optax.tree.sub(alone, {name: with_hidden[name] for name in start}))
    assert apart > 1e-2 * optax.tree.norm(alone)


@recipe("Frozen parameters")
def test_a_transform_inside_a_partition_says_where_it_belongs(ns):
    inside = optax.partition({"frozen": optax.set_to_zero(), "trained": sam(0.05)}, ns.labels)
    with pytest.raises(ValueError, match=r"optax.chain\(xsam\(...\), optax.partition\(...\)\)"):
        inside.init(ns.initial)


@recipe("LoRA in Flax NNX")
def test_all_of_a_step_stays_among_the_adapters(heading):
    kernels, adapters = Recorder(), Recorder()

    def record(model):
        layer = model.layers[2]
        kernels((model.layers[0].kernel[...], layer.kernel[...]))
        adapters((layer.lora.lora_a[...], layer.lora.lora_b[...]))

    ns = run(heading, {"    return cross": "    record(model)\n    return cross"}, record=record)
    passes = kernels.counts()
    assert len(passes) == 1
    # The clean pass, the end of the ascent, and at least the two ends of the probe are apart.
    assert len(adapters.counts()) >= 2

    def parameters():
        return dict(nnx.to_flat_state(nnx.as_pure(nnx.state(ns.model, nnx.Param))))

    before = parameters()
    for _ in range(3):
        ns.train_step(ns.model, ns.optimizer, ns.batch)
    moved = {path[-1] for path, value in parameters().items() if jnp.any(value != before[path])}
    assert moved == {"lora_a", "lora_b"}


@recipe("Perturbing a subset")
def test_the_place_of_the_mask_says_over_what_the_norm_is(ns):
    gradient = gradient_of(ns.initial, ns.batch)
    zero = optax.tree.zeros_like(gradient)

    on, _ = ns.sam_on.update(gradient, ns.sam_on.init(ns.initial), ns.initial)
    assert_close(on, zero | {"norm": along(gradient["norm"], 0.5)})
    end = optax.tree.add(ns.initial, on)
    assert_close(gradient_taken(ns.initial, ns.params), gradient_of(end, ns.batch))

    sparse, _ = ns.sparse_sam.update(gradient, ns.sparse_sam.init(ns.initial), ns.initial)
    assert_close(sparse, zero | {"norm": along(gradient, 0.5)["norm"]})
    assert optax.tree.norm(sparse) < 0.25

    tx = optax.chain(xsam(None, 1.0, ascent=ns.sam_on), optax.sgd(0.1))
    jax.eval_shape(ns.make_train_step(tx), ns.initial, tx.init(ns.initial), ns.batch)


@recipe("Perturbing a subset")
def test_masks_of_entries_and_the_mistake(ns):
    gradient = gradient_of(ns.initial, ns.batch)
    masks = jax.tree.map(lambda g: g > 0, gradient)
    drop = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, masks))
    sparse = optax.chain(normalize(), ns.scale_by_radius(0.5), drop)
    perturbation, _ = sparse.update(gradient, sparse.init(ns.initial), ns.initial)
    expected = jax.tree.map(lambda p: jnp.maximum(p, 0.0), along(gradient, 0.5))
    assert_close(perturbation, expected)

    mistake = optax.masked(normalize(), jax.tree.map(lambda drop: not drop, ns.not_norm))
    raw, _ = mistake.update(gradient, mistake.init(ns.initial), ns.initial)
    chex.assert_trees_all_equal(raw["hidden"], gradient["hidden"])


@recipe("Weight decay in the ascent")
def test_weight_decay_in_the_ascent_turns_the_perturbation(ns):
    params = ns.initial
    climbed = optax.tree.add_scale(gradient_of(params, ns.batch), 1e-2, params)
    end = optax.tree.add(params, along(climbed, 0.05))
    expected = optax.tree.add_scale(gradient_of(end, ns.batch), 1e-2, params)
    assert_close(gradient_taken(params, ns.params), expected, rtol=1e-5)
    default = optax.tree.add_scale(sam_gradient(params, ns.batch, 0.05), 1e-2, params)
    with pytest.raises(AssertionError):
        assert_close(default, expected, rtol=1e-5)


@recipe("Schedules and warm-up of rho")
def test_rho_follows_its_schedule_and_can_be_set_by_hand(ns):
    start = ns.warm_up.init(ns.initial)
    params, state = ns.warm_up_step(ns.initial, start, ns.batch)
    assert_close(gradient_taken(ns.initial, params), gradient_of(ns.initial, ns.batch))
    assert optax.tree.get(state, "alpha") == 1
    # No probe at this count, so alpha stays 1 and the step is that of SAM.
    half_way = optax.tree.set(start, count=jnp.int32(50))
    params, _ = ns.warm_up_step(ns.initial, half_way, ns.batch)
    assert_close(gradient_taken(ns.initial, params), sam_gradient(ns.initial, ns.batch, 0.05))

    assert ns.train_step._cache_size() == 1
    state = optax.tree.set(ns.opt_state, rho=jnp.float32(0.3), alpha=jnp.float32(1.0))
    params, _ = ns.train_step(ns.initial, state, ns.batch)
    assert_close(gradient_taken(ns.initial, params), sam_gradient(ns.initial, ns.batch, 0.3))
    assert ns.train_step._cache_size() == 1


@recipe("Schedules and warm-up of rho")
def test_what_inject_hyperparams_must_be_told(ns):
    tell = optax.inject_hyperparams(xsam, ("steps", "num_alphas", "probe_batch_size"))
    tx = tell(rho=0.1, rho_max=0.2)
    jax.eval_shape(ns.make_train_step(tx), ns.initial, tx.init(ns.initial), ns.batch)
    with pytest.raises(TypeError, match="static_args"):
        optax.inject_hyperparams(xsam)(rho=0.1, rho_max=0.2).init(ns.initial)


@recipe("Reading alpha while training")
def test_alpha_is_read_as_a_number(ns):
    assert ns.alpha in np.linspace(0, 2, 21, dtype=np.float32)
    assert ns.alpha != 1
    climb = gradient_of(ns.initial, ns.batch)
    end = sam_gradient(ns.initial, ns.batch, 0.1)
    cosine = optax.tree.vdot(climb, end) / (optax.tree.norm(climb) * optax.tree.norm(end))
    np.testing.assert_allclose(ns.psi, np.arccos(cosine), rtol=1e-2)

    assert isinstance(ns.model_alpha, jax.Array)
    assert ns.model_alpha == optax.tree.get(ns.optimizer.opt_state, "alpha")[...]
    assert ns.model_alpha == optax.tree.get(nnx.as_pure(ns.optimizer.opt_state), "alpha")


@recipe("Many seeds at once")
def test_seeds_train_as_if_alone_and_the_conditional_stays(ns):
    start = jax.vmap(ns.init_params)(ns.seeds)
    step = ns.make_train_step(ns.tx)
    alphas = optax.tree.get(ns.opt_state, "alpha")
    assert alphas.shape == (4,)
    for i in (0, 3):
        one = jax.tree.map(lambda leaf: leaf[i], start)  # noqa: B023
        params, opt_state = step(one, ns.tx.init(one), ns.batch)
        assert_close(jax.tree.map(lambda leaf: leaf[i], ns.params), params)  # noqa: B023
        assert alphas[i] == optax.tree.get(opt_state, "alpha")

    batched = jax.vmap(ns.tx.init)(start)
    everywhere = jax.vmap(step, in_axes=(0, 0, None))
    unbatched = jax.make_jaxpr(ns.train_step)(start, ns.opt_state, ns.batch)
    assert str(unbatched).count(" cond[") == 1
    assert str(jax.make_jaxpr(everywhere)(start, batched, ns.batch)).count(" cond[") == 0


@recipe("Line searches and L-BFGS")
def test_the_direction_is_sharpness_aware_and_the_length_searched(ns, heading):
    step = optax.tree.sub(ns.initial, ns.params)
    gradient = sam_gradient(ns.initial, ns.batch, 0.05)
    # The first step of L-BFGS has no memory yet: it goes along the gradient.
    assert_close(along(step, 1.0), along(gradient, 1.0), rtol=1e-3)
    loss_fn = jax.jit(ns.loss_fn)
    losses = [loss_fn(ns.initial, ns.batch)]
    params, opt_state = ns.params, ns.opt_state
    for _ in range(5):
        losses.append(loss_fn(params, ns.batch))
        params, opt_state = ns.train_step(params, opt_state, ns.batch)
    assert losses == sorted(losses, reverse=True)

    with pytest.raises(TypeError, match=r"Unexpected keyword arguments.*grad_fn"):
        run(
            heading,
            {"value_fn=value_fn, value": "value_fn=value_fn, grad_fn=jax.grad(value_fn), value"},
        )


@recipe("Checkpoint and resume")
def test_a_resumed_run_is_equal_bit_for_bit(ns):
    params, opt_state = ns.initial, ns.tx.init(ns.initial)
    for _ in range(3):
        params, opt_state = ns.train_step(params, opt_state, ns.batch)
    assert optax.tree.get(opt_state, "alpha") != 1
    resumed, expected = (ns.params, ns.opt_state), (params, opt_state)
    forgotten = (ns.params, ns.tx.init(ns.params))
    # Beyond the next probe, which is at step 4.
    for _ in range(3):
        resumed = ns.train_step(*resumed, ns.batch)
        expected = ns.train_step(*expected, ns.batch)
        forgotten = ns.train_step(*forgotten, ns.batch)
    chex.assert_trees_all_equal(resumed, expected)
    assert all(differ(forgotten[0], expected[0]))
