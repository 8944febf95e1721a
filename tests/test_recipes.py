"""The blocks of docs/recipes.md and docs/methods.md run, and do what the text around them says."""

import collections
import functools
import inspect
import pathlib
import re
import types

import chex
import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training import train_state
from methods import METHODS, NAMES

import xsam_jax
from xsam_jax import _tree as tree
from xsam_jax import gating, sam, xsam
from xsam_jax.analysis import plots
from xsam_jax.ascent import normalize, scale_by_radius

ROOT = pathlib.Path(__file__).parent.parent
PLOTS = [
    name
    for name, value in vars(plots).items()
    if inspect.isfunction(value) and value.__module__ == plots.__name__ and name[0] != "_"
]
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


def test_the_page_on_analysis_runs_from_top_to_bottom():
    page = ROOT / "docs" / "analysis.md"
    module = types.ModuleType("page")
    for code in blocks(page).values():
        execute(page, code, module)
    assert module.ratio >= 1
    assert module.density.shape == module.grid.shape
    assert module.worst > 0
    assert module.surface.shape == (11, 11)
    assert module.layer_eigenvalues[0] <= module.eigenvalues[0] * (1 + 1e-3)  # a block of it
    text = page.read_text()
    assert all(f"`{name}(" in text for name in module.analysis.__all__ if name[0].islower())
    assert all(f"`{name}`" in text or f"plots.{name}(" in text for name in PLOTS)
    module.plt.close("all")


RECIPES, METHODS_PAGE = ROOT / "docs" / "recipes.md", ROOT / "docs" / "methods.md"
CODE = blocks(RECIPES)
PAGES = {heading: page for page in (RECIPES, METHODS_PAGE) for heading in blocks(page)}
TESTED = set()


@functools.cache
def setup():
    module = types.ModuleType("setup")
    execute(RECIPES, CODE["Setup"], module)
    return module


def run(heading, replace=None, side="+", **names):
    """Runs Setup and a recipe, with passages exchanged and names given; returns all names."""
    page = PAGES[heading]
    code = blocks(page, side)[heading]
    for old, new in (replace or {}).items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    module = types.ModuleType("recipe")
    execute(RECIPES, CODE["Setup"], module)
    vars(module).update(names, initial=module.params)
    execute(page, code, module)
    return module


def recipe(heading):
    """Hands the recipe's names to a test as `ns`, or, to one that runs it, its heading."""
    TESTED.add(heading)
    return pytest.mark.parametrize("heading", [heading])


unchanged = functools.cache(run)


@pytest.fixture
def ns(heading):
    return unchanged(heading)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def headings(page):
    return re.findall(r"^## (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_recipe_is_tested():
    assert set(headings(RECIPES)) == set(CODE)
    assert set(PAGES) - {"Setup"} == TESTED


@pytest.mark.parametrize("page", [RECIPES, METHODS_PAGE], ids=lambda page: page.name)
def test_the_contents_are_in_order_and_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    contents = re.findall(r"^\* \[(.*)\]\(#(.*)\)$", text, re.MULTILINE)
    listed = [heading for heading in headings(page) if heading != "Setup"]
    assert contents == [(heading, anchor(heading)) for heading in listed]
    for name, target in re.findall(r"\]\(([\w.]*)#([\w-]+)\)", text):
        assert target in map(anchor, headings(page.parent / name if name else page)), target


def test_the_blocks_of_the_readme_run_in_order_and_train():
    module = types.ModuleType("readme")
    # What the loop of a reader has already.
    for name in ("jax", "jnp", "optax", "params", "batch", "loss_fn"):
        setattr(module, name, getattr(setup(), name))
    for block in blocks(ROOT / "README.md").values():
        execute(ROOT / "README.md", block, module)

    assert module.eigenvalues.shape == (5,)
    assert module.error > 0
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
    section = RECIPES.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    assert sum(line.startswith("+") for line in section.splitlines()) == 3

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


@recipe("Equinox")
def test_equinox_state_advances_once_and_all_passes_share_a_mask(heading):
    recorder = Recorder()

    class RecordedDropout(eqx.nn.Dropout):
        def __call__(self, x, *, key):
            mask = super().__call__(jnp.ones_like(x), key=key)
            recorder(mask)
            return mask * x

    replace = {"self.dropout = eqx.nn.Dropout": "self.dropout = RecordedDropout"}
    ns = run(heading, replace, RecordedDropout=RecordedDropout)
    assert recorder.counts() == [2] * 32  # a mask for each of the 32 samples, in two passes

    model, state = eqx.nn.make_with_state(ns.Model)(jax.random.key(0))
    _, clean = equinox_loss(model, state, ns.batch, jax.random.key(2))
    assert_close(jax.tree.leaves(ns.state), jax.tree.leaves(clean))
    assert ns.state.get(model.norm.batch_counter) == 1


@eqx.filter_jit
def equinox_loss(model, state, batch, key):
    forward = jax.vmap(model, in_axes=(0, None, 0), out_axes=(0, None), axis_name="batch")
    logits, state = forward(batch[0], state, jax.random.split(key, 32))
    return setup().cross_entropy(logits, batch[1]), state


@recipe("Equinox")
def test_equinox_step_has_the_gradient_of_sam(ns):
    model, state = eqx.nn.make_with_state(ns.Model)(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, batch):
        model = eqx.combine(params, static)
        return equinox_loss(model, state, batch, jax.random.key(1))[0]

    expected = sam_gradient(params, ns.batch, 0.05, loss_fn)
    updated = eqx.filter(ns.model, eqx.is_inexact_array)
    assert_close(gradient_taken(params, updated), expected, rtol=1e-3)


@recipe("Equinox")
def test_equinox_integer_arrays_are_no_parameters(heading):
    replace = {
        "    output: eqx.nn.Linear\n": "    output: eqx.nn.Linear\n    order: jax.Array\n",
        "        self.dropout =": "        self.order = jnp.arange(8)\n        self.dropout =",
        "self.hidden(x)": "self.hidden(x[self.order])",
    }
    ns = run(heading, replace)
    np.testing.assert_array_equal(ns.model.order, jnp.arange(8))
    for call in ("eqx.filter(model, ", "eqx.partition(model, "):
        too_many = {f"{call}eqx.is_inexact_array)": f"{call}eqx.is_array)"}
        with pytest.raises(TypeError):
            run(heading, replace | too_many)
    with pytest.raises(TypeError, match=r"params has a leaf without gradient, int32\[8\]"):
        sam(rho=0.05).init(eqx.filter(ns.model, eqx.is_array))


@recipe("Equinox")
def test_equinox_activation_functions_are_no_parameters(ns):
    mlp = eqx.nn.MLP(8, 3, 16, 1, key=jax.random.key(0))
    assert jax.nn.relu in jax.tree.leaves(mlp)

    def loss_fn(model):
        return setup().cross_entropy(jax.vmap(model)(ns.x), ns.y)

    gradient = eqx.filter_grad(loss_fn)(mlp)
    for tx in (ns.tx, sam(rho=0.05)):
        with pytest.raises(TypeError):
            tx.update(gradient, tx.init(mlp), mlp, value_fn=loss_fn)


@recipe("Haiku with state")
@pytest.mark.parametrize("masks", ["same", "fresh"])
def test_haiku_state_advances_once_and_masks_are_as_chosen(heading, masks):
    recorder = Recorder()

    def recorded_dropout(key, rate, x):
        mask = hk.dropout(key, rate, jnp.ones_like(x))
        recorder(mask)
        return mask * x

    key = "jax.random.fold_in(key, 1)" if masks == "fresh" else "key"
    replace = {
        "hk.dropout": "recorded_dropout",
        "model_loss(p, state, key, batch)": f"model_loss(p, state, {key}, batch)",
    }
    ns = run(heading, replace, recorded_dropout=recorded_dropout)
    # One of `init`, and those of the two passes.
    assert recorder.counts() == ([1, 2] if masks == "same" else [1, 1, 1])

    params, state = ns.model.init(jax.random.key(0), ns.x, train=True)
    _, clean = ns.model_loss(params, state, jax.random.key(2), ns.batch)
    assert_close(ns.state, clean)
    assert ns.state["batch_norm/~/mean_ema"]["counter"] == 1


@recipe("Haiku with state")
def test_haiku_step_has_the_gradient_of_sam(ns):
    params, state = ns.model.init(jax.random.key(0), ns.x, train=True)

    def loss_fn(params, batch):
        return ns.model_loss(params, state, jax.random.key(1), batch)[0]

    expected = sam_gradient(params, ns.batch, 0.05, loss_fn)
    assert_close(gradient_taken(params, ns.params), expected, rtol=1e-3)


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


SUBSET = "Perturbing a subset: SSAM and SAM-ON"


@recipe(SUBSET)
def test_the_place_of_the_mask_says_over_what_the_norm_is(ns):
    gradient = gradient_of(ns.initial, ns.batch)
    zero = optax.tree.zeros_like(gradient)

    on, _ = ns.sam_on.update(gradient, ns.sam_on.init(ns.initial), ns.initial)
    assert_close(on, zero | {"norm": along(gradient["norm"], 0.5)})
    end = optax.tree.add(ns.initial, on)
    assert_close(gradient_taken(ns.initial, ns.params), gradient_of(end, ns.batch))

    sparse, _ = ns.ssam.update(gradient, ns.ssam.init(ns.initial), ns.initial)
    assert_close(sparse, zero | {"norm": along(gradient, 0.5)["norm"]})
    # The whole radius, and its share of it.
    np.testing.assert_allclose(optax.tree.norm(on), 0.5, rtol=1e-5)
    share = optax.tree.norm(gradient["norm"]) / optax.tree.norm(gradient)
    np.testing.assert_allclose(optax.tree.norm(sparse), 0.5 * share, rtol=1e-5)
    assert share < 0.5

    direction = optax.chain(ns.drop_others, normalize())
    tx = optax.chain(xsam(0.5, 1.0, direction=direction), optax.sgd(0.1))
    jax.eval_shape(ns.make_train_step(tx), ns.initial, tx.init(ns.initial), ns.batch)


@recipe(SUBSET)
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


def magnitude_scaled(gradient, params, rho, eta, biases=()):
    """ASAM's perturbation in NumPy, with T = 1 on `biases`."""
    t = {name: 1.0 if name in biases else np.abs(p) + eta for name, p in params.items()}
    norm = np.sqrt(sum(np.sum((t[name] * g) ** 2) for name, g in gradient.items()))
    return {name: rho * t[name] ** 2 * g / norm for name, g in gradient.items()}


@recipe("ASAM without biases")
def test_biases_are_moved_along_their_gradient(ns):
    start = ns.initial | {"bias": jnp.zeros(3)}
    gradient = gradient_of(start, ns.batch, ns.loss_fn)
    for eta, biases in ((0.01, {"bias"}), (0.01, ())):
        perturbation = magnitude_scaled(gradient, start, 0.5, eta, biases)
        end = gradient_of(optax.tree.add(start, perturbation), ns.batch, ns.loss_fn)
        if biases:
            assert_close(gradient_taken(start, ns.params), end)
            length = np.linalg.norm(perturbation["bias"])
        else:
            with pytest.raises(AssertionError):
                assert_close(gradient_taken(start, ns.params), end)
            assert np.linalg.norm(perturbation["bias"]) < 1e-3 * length


@recipe("ASAM without biases")
def test_the_mask_knows_the_biases_of_flax(ns):
    model = nnx.as_pure(nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param))
    variables = linen.Dense(2).init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    for params in (model, variables):
        mask = ns.not_a_bias(params)
        assert not mask["bias"]
        assert mask["kernel"]


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


def at_count(count, state):
    return optax.tree.set(state, count=jnp.int32(count))


@recipe("GSAM's radius follows the learning rate")
def test_the_radius_is_highest_with_the_learning_rate_and_never_negative(ns):
    radii = np.array([ns.rho(count) for count in range(0, 1001, 10)])
    np.testing.assert_allclose(radii[[10, 100]], [0.2, 0.01], rtol=1e-5)
    assert radii.argmax() == 10
    # Unclamped it would be 0.01 - 0.19 / 9 where the learning rate is 0.
    assert radii[0] == 0 == radii.min()

    for count in (2, 100, 500):
        params, _ = ns.train_step(ns.initial, at_count(count, ns.opt_state), ns.batch)
        first = gradient_of(ns.initial, ns.batch)
        last = sam_gradient(ns.initial, ns.batch, ns.rho(count))
        orthogonal = optax.tree.add_scale(
            first, -optax.tree.vdot(first, last) / optax.tree.vdot(last, last), last
        )
        expected = optax.tree.add_scale(last, -0.4, orthogonal) if count > 2 else first
        taken = gradient_taken(ns.initial, params, ns.learning_rate(count))
        assert_close(taken, expected, rtol=1e-3 if count > 2 else 1e-2)
        if count > 2:
            assert optax.tree.norm(orthogonal) > 0.01 * optax.tree.norm(last)


SOME_STEPS = "Sharpness-aware in some steps only"


@recipe(SOME_STEPS)
def test_a_step_behind_a_shut_gate_is_that_of_the_optimizer(ns):
    assert optax.tree.get(ns.opt_state, "sharp_steps") == 2
    state = ns.tx.init(ns.initial)
    sharp, plain = sam_gradient(ns.initial, ns.batch, 0.05), gradient_of(ns.initial, ns.batch)
    for count, expected in ((0, sharp), (1, plain), (4, plain), (5, sharp)):
        params, _ = ns.train_step(ns.initial, at_count(count, state), ns.batch)
        assert_close(gradient_taken(ns.initial, params), expected)
    assert optax.tree.norm(optax.tree.sub(sharp, plain)) > 1e-3


def open_steps(ns, tx, counts):
    """For each count whether a step of `tx` takes further gradients."""
    tx = optax.chain(tx, optax.sgd(0.1))
    step, start = ns.make_train_step(tx), tx.init(ns.initial)
    opened = []
    for count in counts:
        _, state = step(ns.initial, at_count(count, start), ns.batch)
        opened.append(int(optax.tree.get(state, "sharp_steps")))
    return opened


@recipe(SOME_STEPS)
def test_the_gates_open_when_they_say(ns):
    assert open_steps(ns, ns.late, (0, 7_999, 8_000, 9_000)) == [0, 0, 1, 1]
    assert open_steps(ns, gating.gated(sam(0.05), lambda count: count < 100), (99, 100)) == [1, 0]
    drawn = gating.bernoulli(0.5, jax.random.key(0))
    counts = range(1, 9)
    assert open_steps(ns, ns.at_random, counts) == [int(drawn(count)) for count in counts]

    # The same gradient twice is neither above nor below its mean; a longer one is above.
    tx, value_fn = ns.adaptive, lambda params: ns.loss_fn(params, ns.batch)
    gradient = gradient_of(ns.initial, ns.batch)
    step = jax.jit(lambda g, state: tx.update(g, state, ns.initial, value_fn=value_fn)[1])
    start = step(gradient, tx.init(ns.initial))
    for factor, further in ((0.5, 0), (2.0, 1)):
        state = step(optax.tree.scale(factor, gradient), start)
        assert state.sharp_steps - start.sharp_steps == further


@recipe(SOME_STEPS)
def test_what_is_inside_counts_open_steps_unless_injected(ns):
    def six_steps(tx):
        tx = optax.chain(tx, optax.sgd(0.1))
        step, state, params = ns.make_train_step(tx), tx.init(ns.initial), ns.initial
        for _ in range(6):
            before, (params, state) = params, step(params, state, ns.batch)
        return before, gradient_taken(before, params), state[0]

    every_fifth = gating.every(5)
    for tx, radius in ((ns.scheduled, 0.01), (gating.gated(sam(ns.rho), every_fifth), 0.002)):
        before, taken, _ = six_steps(tx)
        assert_close(taken, sam_gradient(before, ns.batch, radius), rtol=1e-4)
        with pytest.raises(AssertionError):
            assert_close(taken, sam_gradient(before, ns.batch, radius + 0.002), rtol=1e-4)

    for method in (xsam(rho=0.1, rho_max=0.2), xsam_jax.vasso(rho=0.1, theta=0.4)):
        _, _, state = six_steps(gating.gated(method, every_fifth))
        assert state.count == 6
        assert optax.tree.get(state.inner, "count") == 2


@recipe("Deciding on the host")
@pytest.mark.parametrize("method", ["gated", "look_sam"])
def test_the_host_decides_as_the_program_does(heading, ns, method):
    if method == "look_sam":
        replace = {"gated(sam(rho=0.05), gate)": "look_sam(rho=0.05, alpha=0.7, every=5)"}
        ns = run(heading, replace, look_sam=xsam_jax.look_sam)
    assert ns.train_step._cache_size() == 2
    params, opt_state = ns.initial, ns.tx.init(ns.initial)
    for _ in range(10):
        params, opt_state = ns.train_step(params, opt_state, ns.batch)
    chex.assert_trees_all_close((params, opt_state), (ns.params, ns.opt_state), rtol=1e-5)
    assert optax.tree.get(opt_state, "sharp_steps") == 2
    assert opt_state[0].count == 10

    for sharp, conditionals in ((True, 0), (False, 0), (None, 1)):
        program = jax.make_jaxpr(functools.partial(ns.train_step, sharp=sharp))
        assert str(program(params, opt_state, ns.batch)).count(" cond[") == conditionals
    plain, _ = ns.train_step(ns.initial, opt_state, ns.batch, sharp=False)
    if method == "gated":
        assert_close(gradient_taken(ns.initial, plain), gradient_of(ns.initial, ns.batch))


@recipe("Deciding on the host")
def test_under_vmap_a_batched_counter_turns_the_conditional_into_a_select(ns):
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), ns.initial)
    opt_state = jax.vmap(ns.tx.init)(params)
    step = jax.vmap(ns.train_step, in_axes=(0, 0, None))
    program = str(jax.make_jaxpr(step)(params, opt_state, ns.batch))
    assert " cond[" not in program
    assert "select_n" in program


@jax.jit
def _losses(batch, points):
    points = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    return jax.vmap(setup().loss_fn, in_axes=(0, None))(points, batch)


def probed_alpha(params, batch, displacement, gradient, rho_max):
    """XSAM's alpha and angle in NumPy, over 21 alphas up to 2."""
    v_0, v_1 = (jax.flatten_util.ravel_pytree(v)[0] for v in (displacement, gradient))
    start, unravel = jax.flatten_util.ravel_pytree(params)
    v_0, v_1 = np.float64(v_0), np.float64(v_1)
    v_0, v_1 = v_0 / np.linalg.norm(v_0), v_1 / np.linalg.norm(v_1)
    psi = np.arccos(v_0 @ v_1)
    alphas = np.linspace(0, 2, 21)
    weights = np.sin((1 - alphas) * psi), np.sin(alphas * psi)
    directions = (np.outer(weights[0], v_0) + np.outer(weights[1], v_1)) / np.sin(psi)
    losses = _losses(batch, [unravel(start + rho_max * v) for v in np.float32(directions)])
    best = np.argmax(losses)
    return alphas[best], psi, unravel(directions[best] * optax.tree.norm(gradient))


@recipe("XSAM on another ascent")
def test_xsam_looks_between_the_perturbation_of_asam_and_the_gradient_there(ns):
    displacement = magnitude_scaled(
        gradient_of(ns.initial, ns.batch), ns.initial, rho=1.0, eta=0.01
    )
    gradient = gradient_of(optax.tree.add(ns.initial, displacement), ns.batch)
    alpha, psi, expected = probed_alpha(ns.initial, ns.batch, displacement, gradient, 0.2)
    np.testing.assert_allclose(optax.tree.get(ns.opt_state, "alpha"), alpha, rtol=1e-6)
    np.testing.assert_allclose(optax.tree.get(ns.opt_state, "psi"), psi, rtol=1e-3)
    as_in_sam = along(gradient_of(ns.initial, ns.batch), optax.tree.norm(displacement))
    assert optax.tree.norm(optax.tree.sub(displacement, as_in_sam)) > 0.1
    assert_close(gradient_taken(ns.initial, ns.params), expected, rtol=1e-3)


PARTS = "Which part of the gradient matters (F-SAM's ablations)"


@recipe(PARTS)
def test_the_ablations_climb_along_what_they_say(ns):
    params = ns.initial
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def gradient(batch):
        return np.float64(jax.flatten_util.ravel_pytree(gradient_of(params, batch))[0])

    other = (ns.x[16:], ns.y[16:])
    mine, full = gradient(ns.half), gradient(ns.batch)
    common = (mine @ full) / (full @ full) * full
    climbs = {"SAM-full": common, "SAM-noise": mine - common, "SAM-db": gradient(other)}
    ends = []
    for name, climb in climbs.items():
        others = other if name == "SAM-db" else ns.batch
        after, _ = ns.train_step(params, ns.opt_state, ns.half, others, name=name)
        end = unravel(jnp.float32(flat + 0.05 * climb / np.linalg.norm(climb)))
        expected = gradient_of(end, ns.half)
        assert_close(gradient_taken(params, after), expected)
        ends.append(expected)
    ends.append(sam_gradient(params, ns.half, 0.05))
    for i, end in enumerate(ends):
        assert all(optax.tree.norm(optax.tree.sub(end, e)) > 1e-3 for e in ends[:i])


@recipe("ESAM needs the losses of samples")
def test_the_samples_that_suffer_most_descend(heading):
    all_parameters = {"beta=0.6": "beta=1.0"}
    ns = run(heading, all_parameters)

    def losses(params):
        logits = ns.apply(params, ns.x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, ns.y)

    end = optax.tree.add(ns.initial, along(gradient_of(ns.initial, ns.batch), 0.05))
    rise = np.asarray(losses(end) - losses(ns.initial))
    chosen = rise > np.sort(rise)[-16]
    assert chosen.sum() == 15
    expected = gradient_of(end, (ns.x[chosen], ns.y[chosen]))
    assert_close(gradient_taken(ns.initial, ns.params), expected)


@recipe("ESAM needs the losses of samples")
@pytest.mark.parametrize("given", [True, False])
def test_losses_save_a_forward_pass_and_value_fn_does_not_do(heading, given):
    passes = Recorder()
    apply = setup().apply
    replace = {"losses_fn=losses_fn, losses=losses": "losses_fn=losses_fn"}
    replace |= {"apply(params, x)": "counted(params, x)"}
    if given:
        replace.pop("losses_fn=losses_fn, losses=losses")
    run(heading, replace, counted=lambda *args: (passes(0), apply(*args))[1])
    assert passes.counts() == [2 if given else 3]

    if given:
        with pytest.raises(ValueError, match="losses_fn is missing"):
            run(heading, {"losses_fn=losses_fn, losses": "value_fn=losses_fn, losses"})


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


LOGGING = "Logging what the ascent saw"


@recipe(LOGGING)
def test_the_log_has_every_step(ns):
    assert {value.shape for value in ns.log.values()} == {(4,)}
    # The last step, from where the first three end.
    start = ns.initial, ns.tx.init(ns.initial)
    (params, _), _ = ns.train(*start, jax.tree.map(lambda array: array[:3], ns.batches))
    batch = micro_batches(ns)[3]
    first, last = gradient_of(params, batch), sam_gradient(params, batch, 0.1)
    end = optax.tree.add(params, along(first, 0.1))
    cosine = optax.tree.vdot(first, last) / optax.tree.norm(first) / optax.tree.norm(last)
    expected = {
        "perturbation_norm": 0.1,
        "first_gradient_norm": optax.tree.norm(first),
        "last_gradient_norm": optax.tree.norm(last),
        "gradient_cosine": cosine,
        "loss_rise": ns.loss_fn(end, batch) - ns.loss_fn(params, batch),
        "turned": np.cos(1.5 * np.arccos(cosine)),
    }
    assert ns.log.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(ns.log[name][3], value, rtol=1e-3, err_msg=name)


@recipe(LOGGING)
def test_without_the_value_there_is_no_rise_and_the_gradient_passes_unchanged(heading, ns):
    unknown = run(heading, {"value=value, ": ""})
    assert np.isnan(unknown.log["loss_rise"]).all()
    replace = {
        "match_norm(unit=True), measure": "match_norm(unit=True)",
        "log = {": "log = {} and {",
    }
    without = run(heading, replace)
    chex.assert_trees_all_equal(without.params, ns.params)


@recipe(LOGGING)
@pytest.mark.skipif(not hasattr(optax, "monitor"), reason="optax.monitor came with 0.2.7")
def test_the_monitor_of_optax_breaks_a_scan(heading):
    monitor = 'optax.monitor({"turned": optax.tree.norm})'
    replace = {'record({**DIAGNOSTICS, "turned": turned})': monitor, "(*DIAGNOSTICS, ": "("}
    replace['"turned")}'] = '"turned",)}'
    with pytest.raises(TypeError, match="scan body function carry input and carry output"):
        run(heading, replace)


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


@recipe("Several devices")
def test_several_devices_compute_the_step_of_one(ns, heading):
    """One device here; test_devices.py runs it with eight."""
    tx = optax.chain(xsam(rho=0.1, rho_max=0.2), optax.sgd(0.1))
    expected = ns.make_train_step(tx)(ns.initial, tx.init(ns.initial), ns.batch)
    for result in (ns.with_jit, ns.with_shard_map, ns.with_pmap, ns.with_explicit_mesh):
        for part, expected_part in zip(result, expected, strict=True):
            assert_close(jax.device_get(part), jax.device_get(expected_part))
    call = "step(params, opt_state, jax.tree.map(split, batch))"
    twice = run(heading, {call: f"step(*{call}, jax.tree.map(split, batch))"}).with_pmap
    expected = ns.make_train_step(tx)(*expected, ns.batch)
    assert_close(jax.device_get(twice[0]), jax.device_get(expected[0]))

    start = ns.tx.init(ns.initial)
    params, opt_state = ns.make_train_step(ns.tx)(ns.initial, start, ns.batch)
    assert_close(jax.device_get(ns.params), jax.device_get(params))
    averages = optax.tree.get(ns.opt_state, "average")
    one_device = optax.tree.get(opt_state, "average")
    assert_close(jax.device_get(averages), jax.device_get(one_device))
    for leaf, average in zip(*map(jax.tree.leaves, (ns.params, averages)), strict=True):
        assert leaf.sharding.is_equivalent_to(average.sharding, leaf.ndim)
        assert leaf.sharding.num_devices == jax.device_count()


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


CONTRIB = "Coming from optax.contrib.sam"


def trained(ns, tx=None, steps=30):
    """The parameters after that many steps, each on the next of four micro-batches."""
    train_step = ns.train_step if tx is None else ns.make_train_step(tx)
    params, opt_state = ns.initial, (tx or ns.tx).init(ns.initial)
    for i in range(steps):
        params, opt_state = train_step(params, opt_state, micro_batches(ns)[i % 4])
    return params


@recipe(CONTRIB)
@pytest.mark.parametrize("sync_period", [2, 3])
@pytest.mark.usefixtures("x64")
def test_thirty_steps_are_those_of_contrib_sam(heading, sync_period):
    ours = run(heading, {"steps=1": f"steps={sync_period - 1}"})
    theirs = run(heading, {"sync_period=2": f"sync_period={sync_period}"}, side="-")
    expected = trained(theirs)
    assert jax.tree.leaves(expected)[0].dtype == jnp.float64
    assert_close(trained(ours), expected, rtol=1e-8)


@recipe(CONTRIB)
def test_contrib_sam_leaves_parameters_perturbed_in_its_default_mode(heading, ns):
    theirs = run(heading, {"opaque_mode=True": "opaque_mode=False"}, side="-")
    perturbation = along(gradient_of(ns.initial, ns.batch), 0.1)
    assert_close(optax.tree.sub(theirs.params, ns.initial), perturbation)
    second, _ = theirs.train_step(theirs.params, theirs.opt_state, ns.batch)
    expected = sam_gradient(ns.initial, ns.batch, 0.1)
    for params in (second, ns.params):
        assert_close(gradient_taken(ns.initial, params, 0.01), expected, rtol=1e-3)


@recipe(CONTRIB)
def test_grad_fn_takes_the_parameters_alone(ns):
    gradient = gradient_of(ns.initial, ns.batch)
    update = functools.partial(ns.tx.update, gradient, ns.tx.init(ns.initial), ns.initial)
    with pytest.raises(TypeError, match="grad_fn is called with the parameters alone"):
        update(grad_fn=lambda p, i: gradient_of(p, ns.batch))
    updates, _ = update(grad_fn=lambda p: gradient_of(p, ns.batch))
    assert_close(optax.tree.scale(-100, updates), sam_gradient(ns.initial, ns.batch, 0.1))


@recipe(CONTRIB)
@pytest.mark.parametrize(
    ("sync_period", "reset_state", "steps"), [(2, False, 5), (2, True, 5), (3, False, 1)]
)
@pytest.mark.usefixtures("x64")
def test_the_state_of_an_adversary_advances_in_every_ascent_step(
    heading, sync_period, reset_state, steps
):
    replace = {
        "optax.sgd(0.1))\ntx": "optax.sgd(0.1, momentum=0.9))\ntx",
        "sync_period=2": f"sync_period={sync_period}, reset_state={reset_state}",
    }
    theirs = run(heading, replace, side="-")
    ascent = optax.chain(normalize(), optax.trace(0.9), scale_by_radius(0.1))
    ours = optax.chain(xsam_jax.sharpness_aware(ascent, steps=sync_period - 1), optax.sgd(0.01))
    result, expected = trained(theirs, ours, steps), trained(theirs, steps=steps)
    if sync_period == 2 and not reset_state:
        assert_close(result, expected, rtol=1e-8)
    else:
        with pytest.raises(AssertionError):
            assert_close(result, expected, rtol=1e-5)


@recipe(CONTRIB)
def test_an_ascent_with_the_sign_of_an_optimizer_lowers_the_loss(ns):
    loss = ns.loss_fn(ns.params, ns.batch)
    perturbation = along(gradient_of(ns.params, ns.batch), 0.1)
    for rise, sign in ((ns.uphill, 1), (ns.downhill, -1)):
        end = optax.tree.add_scale(ns.params, sign, perturbation)
        np.testing.assert_allclose(rise, ns.loss_fn(end, ns.batch) - loss, rtol=1e-3)
        assert sign * rise > 0.01


@recipe(CONTRIB)
def test_the_rise_of_the_loss_needs_the_value_and_no_grad_fn(heading):
    for given in ("", "value=value, grad_fn=lambda p: grads, "):
        ns = run(heading, {"value=value, ": given})
        assert np.isnan(ns.uphill)


# --------------------------------------------------------------------------------------------------
# The methods


def rows(first_column):
    """The rows of the table of methods.md that is so headed, as {name: {column: cell}}."""
    found, columns = {}, None
    for line in METHODS_PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells[:1] == [first_column]:
            columns = cells
        elif not cells:
            columns = None
        elif columns and set(cells[0]) != {"-"}:
            assert len(cells) == len(columns), line
            row = dict(zip(columns, cells, strict=True))
            found[re.match(r"`(\w+)", cells[0])[1]] = row
    return found


TABLE = rows("method")
ALIASES = [method for method in METHODS.values() if method.alias.__name__ in NAMES]
ALIAS_NAMES = [name for name, method in METHODS.items() if method.alias.__name__ in NAMES]


def test_the_table_has_every_method_and_every_gate():
    assert set(TABLE) == NAMES == {method.alias.__name__ for method in ALIASES}
    assert {getattr(gating, name) for name in rows("gate")} == {
        gating.every,
        gating.after,
        gating.bernoulli,
        gating.gradient_norm,
    }


def bowl(params):
    return jnp.sum(jnp.array([0.5, 1.0, 3.0]) * params**2)


@pytest.mark.parametrize("method", ALIASES, ids=ALIAS_NAMES)
def test_a_step_takes_the_gradients_that_the_table_says(method):
    taken = []

    @jax.custom_vjp
    def counted(params):
        return bowl(params)

    def backward(params, cotangent):
        taken.append(0)
        return jax.vjp(bowl, params)[1](cotangent)

    counted.defvjp(lambda params: (bowl(params), params), backward)
    stated = TABLE[method.alias.__name__]["gradients"]
    number = int(stated.split()[0].replace("k", str(method.statics.get("steps", 1))))
    tx, params = method.make(), jnp.array([1.0, -0.5, 0.25])
    # Not compiled, and decided outside, so that Python sees every gradient.
    sharps = [True, False] if "in every n-th step" in stated else [None]
    for sharp in sharps:
        extra = {} if sharp is None else {"sharp": sharp}
        arguments = method.arguments(counted) | extra
        tx.update(jax.grad(bowl)(params), tx.init(params), params, **arguments)
        assert len(taken) == (0 if sharp is False else number)
        taken.clear()


def update(tx, params):
    @jax.jit
    def step(batch, state):
        def value_fn(params):
            return setup().loss_fn(params, batch)

        return tx.update(jax.grad(value_fn)(params), state, params, value_fn=value_fn)

    return step, tx.init(params)


PARTS = rows("in parts")


@pytest.mark.parametrize("name", PARTS)
def test_a_method_is_made_of_the_parts_that_the_table_says(name):
    numbers = {"rho": 0.3, "rho_max": 0.5, "alpha": 0.4, "gamma": 0.6, "beta": 0.1, "eta": 0.1}
    numbers |= {"decay": 0.6, "sigma": 0.7, "theta": 0.4}
    numbers |= {"gradient_rho": 0.3, "beta_0": 0.5, "beta_1": 0.7}
    _, directions, descents = PARTS[name].values()

    def parts(cell, rooms):
        calls = re.findall(r"`(\w+\(.*?\))`", cell)
        return [eval(call, {**vars(rooms), **numbers}) for call in calls]

    climb = parts(directions, xsam_jax.ascent) or [normalize()]
    tx = xsam_jax.sharpness_aware(
        optax.chain(*climb, scale_by_radius(numbers["rho"])),
        optax.chain(*parts(descents, xsam_jax.descent) or [optax.identity()]),
        steps=2 if name in ("msam", "lsam") else 1,
    )
    alias = getattr(xsam_jax, name)
    known = numbers | {"steps": 2} if name in ("msam", "lsam") else numbers
    arguments = {k: known[k] for k in inspect.signature(alias).parameters if k in known}
    results = []
    for transform in (tx, alias(**arguments)):
        params = jnp.array([1.0, -0.5, 0.25])
        state = transform.init(params)
        for _ in range(2):
            update, state = transform.update(jax.grad(bowl)(params), state, params, value_fn=bowl)
            params = params - 0.1 * update
        results.append(params)
    np.testing.assert_allclose(*results, rtol=1e-6)


def test_the_parts_of_every_method_are_told():
    assert set(PARTS) == NAMES - {"sam", "look_sam", "esam", "decoupled_wsam"}


@recipe("Any ascent with any descent")
def test_any_ascent_goes_with_any_descent(ns):
    params, other = ns.initial, (ns.x, jnp.roll(ns.y, 1))
    old, new = gradient_of(params, other), gradient_of(params, ns.batch)
    averages = {
        "xsam_on_asam": magnitude_scaled(new, params, rho=1.0, eta=0.01),
        # The average of gradients is 0.09 old + 0.1 new after the second step.
        "xsam_on_friendly_sam": along(tree.combine(0.9, new, -0.09, old), 0.1),
        "xsam_on_vasso": along(tree.combine(0.6, old, 0.4, new), 0.1),
    }
    alphas = []
    for name, displacement in averages.items():
        step, state = update(getattr(ns, name), params)
        _, state = step(other, state)
        # Probe again, though it is the second step.
        descent = optax.tree.set(state.descent, count=jnp.int32(0))
        result, state = step(ns.batch, state._replace(descent=descent))
        gradient = gradient_of(optax.tree.add(params, displacement), ns.batch)
        alpha, psi, expected = probed_alpha(params, ns.batch, displacement, gradient, 0.2)
        alphas.append(alpha)
        np.testing.assert_allclose(optax.tree.get(state, "psi"), psi, rtol=1e-3)
        np.testing.assert_allclose(optax.tree.get(state, "alpha"), alpha, rtol=1e-6)
        assert_close(result, expected, rtol=1e-3)
    assert len(set(alphas)) > 1

    magnitudes = np.abs(jax.flatten_util.ravel_pytree(params)[0]) + 0.01
    length = optax.tree.norm(averages["xsam_on_asam"])
    assert magnitudes.min() < length < magnitudes.max()

    point = params
    for _ in range(3):
        point = optax.tree.add(point, along(gradient_of(point, ns.batch), 0.05))
    last = gradient_of(point, ns.batch)
    parallel = optax.tree.scale(optax.tree.vdot(new, last) / optax.tree.vdot(last, last), last)
    expected = optax.tree.add_scale(last, -0.4, optax.tree.sub(new, parallel))
    step, state = update(ns.gsam_of_three_steps, params)
    assert_close(step(ns.batch, state)[0], expected)


@recipe('Which of the three "adaptive" formulas')
def test_the_three_adaptive_formulas(ns):
    params = ns.initial | {"norm": ns.initial["norm"].at[0].set(0.0)}
    gradient = gradient_of(ns.initial, ns.batch)
    half = {name: np.abs(params[name]) * g for name, g in gradient.items()}
    expected = {
        "official": magnitude_scaled(gradient, params, 1.0, 0.01, biases={"norm"}),
        "port": magnitude_scaled(gradient, params, 1.0, 0.0),
        "half": along(half, 1.0),
    }
    for name, direction in expected.items():
        tx = getattr(ns, name)
        assert_close(tx.update(gradient, tx.init(params), params)[0], direction)
    assert expected["port"]["norm"][0] == 0 != expected["official"]["norm"][0]
    assert_close(optax.tree.norm(expected["half"]), jnp.float32(1.0))


@recipe("When: gates")
def test_the_gate_of_methods_is_open_in_the_first_step(ns):
    length = optax.tree.norm(sam_gradient(ns.initial, ns.batch, 0.1))
    taken = gradient_taken(ns.initial, ns.params)
    np.testing.assert_allclose(optax.tree.norm(taken), length, rtol=1e-4)
    second, _ = ns.train_step(ns.params, ns.opt_state, ns.batch)
    assert_close(gradient_taken(ns.params, second), gradient_of(ns.params, ns.batch))


@pytest.mark.parametrize("name", TABLE)
def test_the_rest_of_a_row_is_true(name):
    alias, row = getattr(xsam_jax, name), TABLE[name]
    documented = re.findall(r"https://arxiv.org/abs/[\d.]+", inspect.getdoc(alias))
    assert re.findall(r"\((https:.*?)\)", row["reference"]) == documented

    convention = inspect.signature(alias).parameters.get("convention")
    quoted = re.search('"(paper|official)"', row["convention"])
    assert bool(quoted) == bool(convention)
    if convention:
        assert row["convention"].startswith(convention.default)
        assert quoted[1] != convention.default

    names = {**vars(xsam_jax), "optax": optax, "key": jax.random.key(0)}
    tx = eval(re.match("`(.*?)`", row["for instance"])[1], names)
    params = {"weight": jnp.ones((3, 7)), "bias": jnp.ones(7)}
    size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(tx.init(params)))
    copies_and_scalars = {
        "none": (0, 0),
        "that of the optimizer": (0, 0),  # which is plain gradient descent here
        "count": (0, 1),
        "3 scalars": (0, 3),
        "1 copy, count": (1, 1),
        "1 copy, 2 counts": (1, 2),
    }
    assert copies_and_scalars[row["state"]] == divmod(size, 28)
