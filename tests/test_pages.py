"""The code in the Markdown pages runs, and does what the text around it says."""

import collections
import contextlib
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
from methods import METHODS, NAMES, ONE_GRADIENT

import xsam_jax
from xsam_jax import _tree as tree
from xsam_jax import gating, sam, xsam
from xsam_jax.analysis import plots
from xsam_jax.ascent import normalize, scale_by_radius

ROOT = pathlib.Path(__file__).parent.parent
RECIPES, METHODS_PAGE, ANALYSIS = (
    ROOT / "docs" / name for name in ("recipes.md", "methods.md", "analysis.md")
)
MARKDOWN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PLOTS = [
    name
    for name, value in vars(plots).items()
    if inspect.isfunction(value) and value.__module__ == plots.__name__ and name[0] != "_"
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(##|###) (.*)$", re.MULTILINE)


# --------------------------------------------------------------------------------------------------
# The pages


@functools.cache
def blocks(page, side="+"):
    """Returns {heading: code} of a page with its line numbers. Of a diff, returns one side."""
    text = page.read_text(encoding="utf-8")
    found = collections.defaultdict(str)
    for match in FENCE.finditer(text):
        if match[1] not in ("python", "diff"):
            continue
        headings = HEADING.findall(text[: match.start()])
        lines = match[2].splitlines()
        if match[1] == "diff":
            # A line of the other side becomes blank, so that the numbering stays.
            lines = [line[1:] if line[:1] in ("", " ", side) else "" for line in lines]
        heading = headings[-1][1] if headings else ""
        padding = text[: match.start(2)].count("\n") - found[heading].count("\n")
        found[heading] += "\n" * padding + "\n".join(lines) + "\n"
    return dict(found)


def headings(page):
    """Returns the listed headings of a page: those of the third level, or of the second."""
    found = HEADING.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    deepest = max(level for level, _ in found)
    return [heading for level, heading in found if level == deepest]


def anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]


CODE = blocks(RECIPES)
PAGES = {heading: page for page in (RECIPES, METHODS_PAGE) for heading in blocks(page)}
TESTED = set()


@functools.cache
def compiled(page, code):
    return compile(code, str(page), "exec")


def execute(page, code, module):
    exec(compiled(page, code), module.__dict__)


@functools.cache
def setup():
    module = types.ModuleType("setup")
    execute(RECIPES, CODE["Setup"], module)
    return module


def run(heading, replace=None, side="+", **names):
    """Runs Setup and a recipe, and returns all names.

    Args:
      heading: the heading of the recipe.
      replace: passages of the code to replace, {old: new}.
      side: the side of a diff to run.
      **names: names to define between Setup and the recipe.
    """
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
    """Marks a test of a recipe, which takes the recipe's names as `ns`, or its heading.

    One worker runs all tests of a recipe, so its code runs once.
    """
    TESTED.add(heading)

    def mark(test):
        test = pytest.mark.xdist_group(anchor(heading))(test)
        return pytest.mark.parametrize("heading", [heading])(test)

    return mark


unchanged = functools.cache(run)


@pytest.fixture
def ns(heading):
    return unchanged(heading)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_recipe_is_tested():
    assert set(headings(RECIPES)) == set(CODE) - {"Setup"}
    assert set(PAGES) - {"Setup"} == TESTED


@pytest.mark.parametrize("page", [RECIPES, METHODS_PAGE], ids=lambda page: page.name)
def test_table_of_contents_lists_all_headings_in_order(page):
    contents = page.read_text(encoding="utf-8").split("\n## ")[0].split("\n* ", 1)[1]
    listed = re.findall(r"\[([^]]+)\]\(#([\w-]+)\)", contents)
    assert listed == [(heading, anchor(heading)) for heading in headings(page)]


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.name)
def test_links_lead_to_existing_files_and_headings(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for name, target in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        if name.startswith("https://"):
            continue
        file = page.parent / name if name else page
        assert file.exists(), name
        assert not target or target in anchors(file), f"{name}#{target}"


EXPERIMENTS = ROOT / "examples" / "experiments"
WITH_COMMANDS = [
    *MARKDOWN,
    *(EXPERIMENTS / f"{n}.md" for n in ("RESULTS", "RESULTS_TRANSFORMERS", "LOG")),
]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_name_existing_modules_and_scripts(page):
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"python -m ((?:examples|benchmarks)[.\w]*)", text):
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for script in re.findall(r"\w+\.sh\b", text):
        assert list(ROOT.glob(f"examples/**/{script}")), script


def test_analysis_page_runs_from_top_to_bottom():
    module = types.ModuleType("page")
    for code in blocks(ANALYSIS).values():
        execute(ANALYSIS, code, module)
    assert module.ratio >= 1
    assert module.density.shape == module.grid.shape
    assert module.worst > 0
    assert module.surface.shape == (11, 11)
    # The Hessian of a layer is a block of the whole Hessian.
    assert module.layer_eigenvalues[0] <= module.eigenvalues[0] * (1 + 1e-3)
    text = ANALYSIS.read_text(encoding="utf-8")
    assert all(f"`{name}(" in text for name in module.analysis.__all__ if name[0].islower())
    assert all(f"`{name}`" in text or f"plots.{name}(" in text for name in PLOTS)
    module.plt.close("all")


def test_readme_blocks_run_in_order_and_train():
    module = types.ModuleType("readme")
    # The names that the training loop of a reader defines.
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
# References


# In NumPy, since each operation of JAX on each new shape compiles a program.


def norm(tree):
    return np.sqrt(vdot(tree, tree))


def vdot(tree, other):
    pairs = zip(*map(jax.tree.leaves, jax.device_get((tree, other))), strict=True)
    return sum(np.vdot(a, b) for a, b in pairs)


def scale(factor, tree):
    return jax.tree.map(lambda leaf: np.asarray(factor * leaf, leaf.dtype), jax.device_get(tree))


def add_scale(tree, factor, other):
    return optax.tree.add(jax.device_get(tree), scale(factor, other))


def add(tree, other):
    return add_scale(tree, 1.0, other)


def sub(tree, other):
    return add_scale(tree, -1.0, other)


def along(direction, rho):
    """The perturbation of length rho, norm taken over the whole tree."""
    return scale(rho / norm(direction), direction)


@functools.cache
def step_of(tx):
    """The train step of Setup with a transform, compiled once for all tests."""
    return setup().make_train_step(tx)


XSAM = optax.chain(xsam(rho=0.1, rho_max=0.2), optax.sgd(0.1))


def gradient_of(params, batch, loss_fn=None):
    return jax.device_get(_gradient(loss_fn or setup().loss_fn, params, batch))


def sam_gradient(params, batch, rho, loss_fn=None):
    return jax.device_get(_sam_gradient(loss_fn or setup().loss_fn, params, batch, rho))


@functools.cache
def jitted(function):
    return jax.jit(function)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(loss_fn, params, batch):
    return jax.grad(loss_fn)(params, batch)


@functools.partial(jax.jit, static_argnums=0)
def _sam_gradient(loss_fn, params, batch, rho):
    gradient = jax.grad(loss_fn)(params, batch)
    perturbation = optax.tree.scale(rho / optax.tree.norm(gradient), gradient)
    return jax.grad(loss_fn)(optax.tree.add(params, perturbation), batch)


def gradient_taken(before, after, learning_rate=0.1):
    """The gradient of a step of plain gradient descent."""
    return scale(1 / np.float64(learning_rate), sub(before, after))


def assert_close(actual, expected, rtol=1e-4):
    """Equal up to float32, in the norm of the whole tree."""
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    difference = norm(sub(actual, expected))
    assert difference <= rtol * norm(expected)


def differ(tree, other):
    return [
        bool(np.any(a != b))
        for a, b in zip(*map(jax.tree.leaves, jax.device_get((tree, other))), strict=True)
    ]


class Recorder:
    """Keeps the values that compiled programs pass to it, and counts equal ones."""

    def __init__(self):
        self._values = []

    def __call__(self, tree):
        jax.debug.callback(lambda tree: self._values.append(jax.device_get(tree)), tree)

    def counts(self):
        jax.effects_barrier()
        values, self._values = self._values, []
        leaves = [b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(v)) for v in values]
        return sorted(collections.Counter(leaves).values())

    def count_calls(self, function):
        """Returns the function, recording each of its calls."""
        return lambda *args: (self(0), function(*args))[1]

    @contextlib.contextmanager
    def dropout_masks(self, owner, name):
        """Records the masks of a dropout function or method, the input being its last argument."""
        dropout = getattr(owner, name)

        def recorded(*args, **kwargs):
            mask = dropout(*args[:-1], jnp.ones_like(args[-1]), **kwargs)
            self(mask)
            return mask * args[-1]

        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(owner, name, recorded)
            yield


DROPOUT = {
    "Flax NNX": (nnx.Dropout, "__call__"),
    "Haiku": (hk, "dropout"),
    "Equinox": (eqx.nn.Dropout, "__call__"),
}


@functools.cache
def run_with_masks(heading, replace=()):
    """Runs a recipe, and returns its names, the recorder of dropout masks, and their counts."""
    recorder = Recorder()
    with recorder.dropout_masks(*DROPOUT[heading]):
        ns = run(heading, dict(replace))
    return ns, recorder, recorder.counts()


# --------------------------------------------------------------------------------------------------
# The recipes


@recipe("Existing training loop")
def test_three_lines_turn_sgd_into_xsam_without_repeated_passes(heading):
    passes = Recorder()
    before = run(heading, side="-")
    after = run(heading, loss_fn=passes.count_calls(setup().loss_fn))
    section = RECIPES.read_text(encoding="utf-8").split(f"### {heading}\n")[1].split("\n##")[0]
    assert sum(line.startswith("+") for line in section.splitlines()) == 3

    plain = gradient_of(before.initial, before.batch)
    assert_close(gradient_taken(before.initial, before.params), plain)
    np.testing.assert_allclose(after.loss, before.loss, rtol=1e-6)
    taken = gradient_taken(after.initial, after.params)
    length = norm(sam_gradient(after.initial, after.batch, 0.1))
    np.testing.assert_allclose(norm(taken), length, rtol=1e-4)
    assert norm(sub(taken, plain)) > 0.01 * length

    # One clean pass, one at the end of the ascent, and the 21 of the probe.
    assert passes.counts() == [23]
    after.train_step(after.params, after.opt_state, after.batch)
    assert passes.counts() == [2]


@recipe("Levanter, MaxText and Kauldron")
def test_obj_fn_makes_the_step_that_value_fn_makes(heading):
    ns = run(heading)
    same = run(heading, replace={"obj_fn=obj_fn, loss=loss": "value_fn=obj_fn"})
    chex.assert_trees_all_equal(ns.params, same.params)
    plain = optax.adamw(1e-3)
    without, _ = step_of(plain)(ns.initial, jax.jit(plain.init)(ns.initial), ns.batch)
    assert norm(sub(ns.params, without)) > 0.01 * norm(sub(ns.initial, without))


@recipe("Flax NNX")
@pytest.mark.parametrize("masks", ["same", "fresh"])
def test_nnx_statistics_advance_once_with_same_or_fresh_masks(heading, masks):
    first = "    value_fn = make_value_fn(model_loss, model, batch)\n"
    second = "    loss, grads = nnx.value_and_grad(model_loss)(model, batch)\n"
    swapped = ((first + second, second + first),)
    ns, recorder, counts = run_with_masks(heading, swapped if masks == "fresh" else ())
    assert counts == ([23] if masks == "same" else [1, 22])

    expected = nnx_statistics_of_one_pass()
    assert_close(nnx.as_pure(nnx.state(ns.model, nnx.BatchStat)), expected)

    ns.train_step(ns.model, ns.optimizer, ns.batch)
    assert recorder.counts() == ([2] if masks == "same" else [1, 1])


@recipe("Flax NNX in tree mode")
def test_nnx_tree_mode_makes_the_step_of_graph_mode(heading):
    ns = run(heading)
    graph = {", graph=False": "", "graph=False": ""}
    code = CODE[heading]
    for old, new in graph.items():
        code = code.replace(old, new)
    other = types.ModuleType("graph")
    execute(RECIPES, CODE["Setup"], other)
    exec(code, vars(other))
    for part in (nnx.Param, nnx.BatchStat):
        states = (nnx.as_pure(nnx.state(m.model, part)) for m in (ns, other))
        assert_close(*states, rtol=1e-6)
    start = nnx.as_pure(nnx.state(ns.Model(nnx.Rngs(0)), nnx.BatchStat))
    assert all(differ(start, nnx.as_pure(nnx.state(ns.model, nnx.BatchStat))))


@recipe("Flax NNX with sharded optimizer state")
def test_nnx_state_has_the_sharding_of_the_metadata(heading, ns):
    """Runs on one device. Eight are in test_devices.py."""
    spec = jax.sharding.PartitionSpec
    state = nnx.as_pure(nnx.state(ns.optimizer.opt_state))
    kernels = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (8, 16)]
    assert len(kernels) == 3  # the average, and two of Adam
    assert {leaf.sharding.spec for leaf in kernels} == {spec("data", None)}
    assert {leaf.sharding.num_devices for leaf in kernels} == {jax.device_count()}
    with_state = run(
        "Flax NNX with sharded optimizer state", {'optimizer_sharding=("data", None)': ""}
    )
    params = (nnx.as_pure(nnx.state(m.model, nnx.Param)) for m in (ns, with_state))
    assert_close(*map(jax.device_get, params), rtol=1e-5)


@functools.cache
def nnx_statistics_of_one_pass():
    ns, _, _ = run_with_masks("Flax NNX")
    clean = ns.Model(nnx.Rngs(0))
    nnx.jit(lambda model, x: model(x))(clean, ns.x)
    return nnx.as_pure(nnx.state(clean, nnx.BatchStat))


@recipe("Flax linen")
@pytest.mark.parametrize("masks", ["same", "fresh"])
def test_linen_statistics_advance_once_with_same_or_fresh_masks(heading, masks):
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


@recipe("Flax linen")
def test_flax_train_state_does_not_pass_value_fn_to_the_optimizer(heading):
    base = train_state.TrainState
    with pytest.raises(ValueError, match="value_fn is missing"):
        run(heading, {"class State(TrainState)": "class State(base)"}, base=base)


@recipe("Equinox")
def test_equinox_state_advances_once_and_all_passes_share_a_mask(heading):
    ns, _, counts = run_with_masks(heading)
    assert counts == [2] * 32  # a mask for each of the 32 samples, in two passes

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
def test_equinox_step_has_the_gradient_of_sam(heading):
    ns, _, _ = run_with_masks(heading)
    model, state = eqx.nn.make_with_state(ns.Model)(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, batch):
        model = eqx.combine(params, static)
        return equinox_loss(model, state, batch, jax.random.key(1))[0]

    expected = sam_gradient(params, ns.batch, 0.05, loss_fn)
    updated = eqx.filter(ns.model, eqx.is_inexact_array)
    assert_close(gradient_taken(params, updated), expected, rtol=1e-3)


@recipe("Equinox with frozen parts")
def test_equinox_frozen_parts_are_neither_perturbed_nor_changed(ns):
    start = eqx.nn.MLP(8, 3, 16, 2, key=jax.random.key(0))
    chex.assert_trees_all_equal(ns.model.layers[0], start.layers[0])
    params, static = eqx.partition(start, ns.is_trained)
    x, y = ns.batch

    def loss(params, batch=None):
        return ns.cross_entropy(jax.vmap(eqx.combine(params, static))(x), y)

    after, _ = eqx.partition(ns.model, ns.is_trained)
    # The length of the perturbation is over the trained parameters alone.
    assert_close(gradient_taken(params, after), sam_gradient(params, None, 0.05, loss))


@recipe("Equinox")
def test_equinox_integer_arrays_are_not_parameters(heading):
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
def test_equinox_activation_functions_are_not_parameters(heading):
    ns, _, _ = run_with_masks(heading)
    mlp = eqx.nn.MLP(8, 3, 16, 1, key=jax.random.key(0))
    assert jax.nn.relu in jax.tree.leaves(mlp)

    def loss_fn(model):
        return setup().cross_entropy(jax.vmap(model)(ns.x), ns.y)

    gradient = eqx.filter_jit(eqx.filter_grad(loss_fn))(mlp)
    for tx in (ns.tx, sam(rho=0.05)):
        with pytest.raises(TypeError):
            tx.update(gradient, tx.init(mlp), mlp, value_fn=loss_fn)


@recipe("Haiku")
@pytest.mark.parametrize("masks", ["same", "fresh"])
def test_haiku_state_advances_once_with_same_or_fresh_masks(heading, masks):
    old = "model_loss(p, state, key, batch)"
    other_key = ((old, old.replace("key", "jax.random.fold_in(key, 1)")),)
    ns, _, counts = run_with_masks(heading, other_key if masks == "fresh" else ())
    # One of `init`, and those of the two passes.
    assert counts == ([1, 2] if masks == "same" else [1, 1, 1])

    _, clean = jitted(ns.model_loss)(*haiku_start(), jax.random.key(2), ns.batch)
    assert_close(ns.state, clean)
    assert ns.state["batch_norm/~/mean_ema"]["counter"] == 1


@functools.cache
def haiku_start():
    ns, _, _ = run_with_masks("Haiku")
    return ns.init(jax.random.key(0), ns.x, train=True)


@recipe("Haiku")
def test_haiku_step_has_the_gradient_of_sam(heading):
    ns, _, _ = run_with_masks(heading)
    params, state = haiku_start()

    def loss_fn(params, batch):
        return ns.model_loss(params, state, jax.random.key(1), batch)[0]

    expected = sam_gradient(params, ns.batch, 0.05, loss_fn)
    assert_close(gradient_taken(params, ns.params), expected, rtol=1e-3)


@recipe("Gradient clipping")
def test_the_sharpness_aware_gradient_is_clipped(ns):
    gradient = sam_gradient(ns.initial, ns.batch, 0.05)
    assert norm(gradient) > 0.2
    assert_close(gradient_taken(ns.initial, ns.params), along(gradient, 0.1))

    before = optax.chain(optax.clip_by_global_norm(0.1), sam(rho=0.05), optax.sgd(0.1))
    params, _ = step_of(before)(ns.initial, before.init(ns.initial), ns.batch)
    assert_close(gradient_taken(ns.initial, params), gradient)


@recipe("bfloat16")
def test_bfloat16_computes_well_and_stores_perturbations_badly(ns):
    jaxpr = str(jax.make_jaxpr(ns.loss_fn)(ns.initial, ns.batch))
    assert re.search(r"bf16\[32,3\] = dot_general", jaxpr)
    chex.assert_trees_all_equal_dtypes(ns.params, ns.initial)
    expected = sam_gradient(ns.initial, ns.batch, 0.05)
    # Eight bits are 0.4 % per operation.
    assert_close(sam_gradient(ns.initial, ns.batch, 0.05, ns.loss_fn), expected, rtol=0.05)

    flat, _ = jax.flatten_util.ravel_pytree(ns.initial)
    # The size of an entry if a million of them share the radius.
    perturbation = jax.random.normal(jax.random.key(0), flat.shape) * 0.05 / 1e3
    assert jnp.mean(flat + perturbation == flat) < 0.01
    params = flat.astype(jnp.bfloat16)
    assert jnp.mean(params + perturbation.astype(jnp.bfloat16) == params) > 0.8


@recipe("Parameters in bfloat16")
def test_the_perturbation_of_bfloat16_parameters_survives_in_float32(ns):
    chex.assert_trees_all_equal_dtypes(ns.new_params, ns.low_precision)
    start = ns.low_precision
    exact = optax.tree.cast(start, jnp.float32)
    plain = gradient_of(exact, ns.batch)
    rho = 1e-4  # entries of 1e-5, far below the spacing of bfloat16 numbers

    def change(method):
        """By how much the ascent changes the gradient."""
        grads = optax.tree.cast(gradient_of(start, ns.batch, ns.loss_fn), jnp.float32)
        value_fn = functools.partial(ns.loss_fn, batch=ns.batch)
        update = jax.jit(functools.partial(method.update, value_fn=value_fn))
        return sub(update(grads, method.init(start), start)[0], plain)

    expected = sub(sam_gradient(exact, ns.batch, rho), plain)
    assert_close(change(xsam_jax.in_float32(sam(rho))), expected, rtol=0.05)
    assert norm(sub(change(sam(rho)), expected)) > 0.5 * norm(expected)


@recipe("Loss scaling for float16")
def test_loss_scale_does_not_change_the_step_and_overflow_is_skipped(ns):
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
    length = norm(sam_gradient(ns.initial, ns.batch, 0.1))
    # Eleven bits are 0.05 % per operation.
    np.testing.assert_allclose(norm(gradient_taken(ns.initial, params)), length, 1e-2)

    params, after, shrunk = ns.train_step(ns.params, ns.opt_state, jnp.float32(2.0**40), ns.batch)
    chex.assert_trees_all_equal(params, ns.params)
    trace = optax.tree.get(ns.opt_state, "trace")
    chex.assert_trees_all_equal(optax.tree.get(after, "trace"), trace)
    assert shrunk == 2.0**39


@recipe("One perturbation per batch")
def test_accumulation_inside_value_fn_equals_the_step_of_the_full_batch(ns):
    expected, opt_state = step_of(XSAM)(ns.initial, XSAM.init(ns.initial), ns.batch)
    assert_close(gradient_taken(ns.initial, ns.params), gradient_taken(ns.initial, expected))
    assert optax.tree.get(ns.opt_state, "alpha") == optax.tree.get(opt_state, "alpha")


def micro_batches(ns):
    x, y = np.asarray(ns.x), np.asarray(ns.y)
    return [(x[i : i + 8], y[i : i + 8]) for i in range(0, 32, 8)]


def mean(trees):
    return jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *trees)


@recipe("One perturbation per micro-batch")
def test_multi_steps_in_the_chain_averages_sharpness_aware_gradients(ns):
    batches = micro_batches(ns)
    gradients = [sam_gradient(ns.initial, batch, 0.05) for batch in batches]
    assert_close(gradient_taken(ns.initial, ns.params), mean(gradients))
    params, _ = ns.train_step(ns.initial, ns.tx.init(ns.initial), batches[0])
    chex.assert_trees_all_equal(params, ns.initial)


@recipe("One perturbation per micro-batch")
def test_multi_steps_around_the_chain_uses_only_the_last_micro_batch(ns, monkeypatch):
    passes = Recorder()
    monkeypatch.setattr(ns, "loss_fn", passes.count_calls(ns.loss_fn))
    around = optax.MultiSteps(optax.chain(sam(rho=0.05), optax.sgd(0.1)), every_k_schedule=4)
    step, params, state = ns.make_train_step(around), ns.initial, around.init(ns.initial)
    batches = micro_batches(ns)
    for batch in batches:
        params, state = step(params, state, batch)
        assert passes.counts() == [2]
    first = mean([gradient_of(ns.initial, batch) for batch in batches])
    end = add(ns.initial, along(first, 0.05))
    last = gradient_of(end, batches[-1])
    assert_close(gradient_taken(ns.initial, params), last)


@recipe("Skipping NaN")
def test_apply_if_finite_after_the_method_skips_nan_of_any_pass(ns, monkeypatch):
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
    assert jnp.isnan(norm(lost))


@recipe("Frozen parameters")
def test_frozen_parameters_are_never_updated(ns):
    hidden = ns.initial["hidden"]
    start = {name: ns.initial[name] for name in ("norm", "output")}
    alone = sam_gradient(start, ns.batch, 0.05, lambda p, batch: ns.loss_fn(ns.frozen | p, batch))
    assert_close(gradient_taken(start, ns.trained), alone)

    with_hidden = sam_gradient(ns.initial, ns.batch, 0.05)
    chex.assert_trees_all_equal(ns.params["hidden"], hidden)
    chex.assert_trees_all_equal(ns.frozen["hidden"], hidden)
    updated = {name: ns.params[name] for name in start}
    assert_close(gradient_taken(start, updated), {name: with_hidden[name] for name in start})
    # The two differ by more than the tolerances above.
    apart = norm(sub(alone, {name: with_hidden[name] for name in start}))
    assert apart > 1e-2 * norm(alone)


@recipe("Frozen parameters")
def test_method_inside_a_partition_raises(ns):
    inside = optax.partition({"frozen": optax.set_to_zero(), "trained": sam(0.05)}, ns.labels)
    with pytest.raises(ValueError, match=r"optax.chain\(xsam\(...\), optax.partition\(...\)\)"):
        inside.init(ns.initial)


@recipe("LoRA")
def test_lora_step_changes_adapters_only(heading):
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


SUBSET = "Perturbing a subset (SSAM, SAM-ON)"


@recipe(SUBSET)
def test_norm_is_over_the_subset_if_the_mask_comes_first(ns):
    gradient = gradient_of(ns.initial, ns.batch)
    zero = scale(0.0, gradient)

    on, _ = jax.jit(ns.sam_on.update)(gradient, ns.sam_on.init(ns.initial), ns.initial)
    assert_close(on, zero | {"norm": along(gradient["norm"], 0.5)})
    end = add(ns.initial, on)
    assert_close(gradient_taken(ns.initial, ns.params), gradient_of(end, ns.batch))

    sparse, _ = jax.jit(ns.ssam.update)(gradient, ns.ssam.init(ns.initial), ns.initial)
    assert_close(sparse, zero | {"norm": along(gradient, 0.5)["norm"]})
    # The whole radius, and its share of it.
    np.testing.assert_allclose(norm(on), 0.5, rtol=1e-5)
    share = norm(gradient["norm"]) / norm(gradient)
    np.testing.assert_allclose(norm(sparse), 0.5 * share, rtol=1e-5)
    assert share < 0.5

    direction = optax.chain(ns.drop_others, normalize())
    tx = optax.chain(xsam(0.5, 1.0, direction=direction), optax.sgd(0.1))
    jax.eval_shape(ns.make_train_step(tx), ns.initial, tx.init(ns.initial), ns.batch)


@recipe(SUBSET)
def test_masks_of_entries_work_and_masked_normalize_keeps_raw_gradients(ns):
    gradient = gradient_of(ns.initial, ns.batch)
    masks = jax.tree.map(lambda g: g > 0, gradient)
    drop = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, masks))
    sparse = optax.chain(normalize(), ns.scale_by_radius(0.5), drop)
    perturbation, _ = jax.jit(sparse.update)(gradient, sparse.init(ns.initial), ns.initial)
    expected = jax.tree.map(lambda p: np.maximum(p, 0.0), along(gradient, 0.5))
    assert_close(perturbation, expected)

    mistake = optax.masked(normalize(), jax.tree.map(lambda drop: not drop, ns.not_norm))
    raw, _ = jax.jit(mistake.update)(gradient, mistake.init(ns.initial), ns.initial)
    chex.assert_trees_all_equal(raw["hidden"], gradient["hidden"])


def magnitude_scaled(gradient, params, rho, eta, biases=()):
    """ASAM's perturbation in NumPy, with T = 1 on `biases`."""
    t = {name: 1.0 if name in biases else np.abs(p) + eta for name, p in params.items()}
    norm = np.sqrt(sum(np.sum((t[name] * g) ** 2) for name, g in gradient.items()))
    return {name: rho * t[name] ** 2 * g / norm for name, g in gradient.items()}


@recipe("ASAM without biases")
def test_masked_biases_are_perturbed_along_their_gradient(ns):
    start = ns.initial | {"bias": jnp.zeros(3)}
    gradient = gradient_of(start, ns.batch, ns.loss_fn)
    for eta, biases in ((0.01, {"bias"}), (0.01, ())):
        perturbation = magnitude_scaled(gradient, start, 0.5, eta, biases)
        end = gradient_of(add(start, perturbation), ns.batch, ns.loss_fn)
        if biases:
            assert_close(gradient_taken(start, ns.params), end)
            length = np.linalg.norm(perturbation["bias"])
        else:
            with pytest.raises(AssertionError):
                assert_close(gradient_taken(start, ns.params), end)
            assert np.linalg.norm(perturbation["bias"]) < 1e-3 * length


@recipe("ASAM without biases")
def test_mask_finds_the_biases_of_flax(ns):
    model = nnx.as_pure(nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param))
    variables = linen.Dense(2).init(jax.random.key(0), jnp.ones((1, 3)))["params"]
    for params in (model, variables):
        mask = ns.not_a_bias(params)
        assert not mask["bias"]
        assert mask["kernel"]


@recipe("Weight decay in the ascent")
def test_weight_decay_in_the_ascent_changes_the_perturbation(ns):
    params = ns.initial
    regularized = add_scale(gradient_of(params, ns.batch), 1e-2, params)
    end = add(params, along(regularized, 0.05))
    expected = add_scale(gradient_of(end, ns.batch), 1e-2, params)
    assert_close(gradient_taken(params, ns.params), expected, rtol=1e-5)
    default = add_scale(sam_gradient(params, ns.batch, 0.05), 1e-2, params)
    with pytest.raises(AssertionError):
        assert_close(default, expected, rtol=1e-5)


@recipe("Schedule and warm-up of rho")
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


@recipe("Schedule and warm-up of rho")
def test_inject_hyperparams_needs_static_args(ns):
    inject = optax.inject_hyperparams(xsam, ("steps", "num_alphas", "probe_batch_size"))
    tx = inject(rho=0.1, rho_max=0.2)
    jax.eval_shape(ns.make_train_step(tx), ns.initial, tx.init(ns.initial), ns.batch)
    with pytest.raises(TypeError, match="static_args"):
        optax.inject_hyperparams(xsam)(rho=0.1, rho_max=0.2).init(ns.initial)


def at_count(count, state):
    return optax.tree.set(state, count=jnp.int32(count))


@recipe("Radius coupled to the learning rate (GSAM)")
def test_radius_follows_the_learning_rate_and_is_never_negative(ns):
    radii = np.asarray(jax.jit(jax.vmap(ns.rho))(np.arange(0, 1001, 10)))
    np.testing.assert_allclose(radii[[10, 100]], [0.2, 0.01], rtol=1e-5)
    assert radii.argmax() == 10
    # Unclamped it would be 0.01 - 0.19 / 9 where the learning rate is 0.
    assert radii[0] == 0 == radii.min()

    for count in (2, 100, 500):
        params, _ = ns.train_step(ns.initial, at_count(count, ns.opt_state), ns.batch)
        first = gradient_of(ns.initial, ns.batch)
        last = sam_gradient(ns.initial, ns.batch, ns.rho(count))
        orthogonal = add_scale(first, -vdot(first, last) / vdot(last, last), last)
        expected = add_scale(last, -0.4, orthogonal) if count > 2 else first
        taken = gradient_taken(ns.initial, params, ns.learning_rate(count))
        assert_close(taken, expected, rtol=1e-3 if count > 2 else 1e-2)
        if count > 2:
            assert norm(orthogonal) > 0.01 * norm(last)


SOME_STEPS = "SAM in some steps"


@recipe(SOME_STEPS)
def test_skipped_step_is_that_of_the_optimizer(ns):
    assert optax.tree.get(ns.opt_state, "sharp_steps") == 2
    state = ns.tx.init(ns.initial)
    sharp, plain = sam_gradient(ns.initial, ns.batch, 0.05), gradient_of(ns.initial, ns.batch)
    for count, expected in ((0, sharp), (1, plain), (4, plain), (5, sharp)):
        params, _ = ns.train_step(ns.initial, at_count(count, state), ns.batch)
        assert_close(gradient_taken(ns.initial, params), expected)
    assert norm(sub(sharp, plain)) > 1e-3


@recipe(SOME_STEPS)
def test_two_gates_keep_the_sharpness_of_sam_in_every_step(ns):
    def first_step(tx):
        step, state = update(tx, ns.initial)
        return step(ns.batch, state)[0]

    plain, sharp = gradient_of(ns.initial, ns.batch), sam_gradient(ns.initial, ns.batch, 0.05)
    assert_close(first_step(ns.larger_radius), sam_gradient(ns.initial, ns.batch, 0.25))
    weighted = add_scale(plain, 5.0, sub(sharp, plain))
    assert_close(first_step(ns.larger_weight), weighted, rtol=1e-3)


BOWL = jnp.array([1.0, -0.5, 0.25])


def bowl(params, batch=None):
    return jnp.sum(jnp.array([0.5, 1.0, 3.0]) * params**2)


def bowl_step(tx):
    """Returns the compiled update of a transform on the bowl."""

    @jax.jit
    def step(params, state, scale=1.0):
        grads = scale * jax.grad(bowl)(params)
        return tx.update(grads, state, params, value_fn=bowl)

    return step


def sharp_steps(tx, counts):
    """Returns for each count whether a step of `tx` is sharpness-aware."""
    step, start = bowl_step(tx), tx.init(BOWL)
    return [int(step(BOWL, at_count(count, start))[1].sharp_steps) for count in counts]


@recipe(SOME_STEPS)
def test_gates_select_their_steps(ns):
    assert sharp_steps(ns.late, (0, 7_999, 8_000, 9_000)) == [0, 0, 1, 1]
    assert sharp_steps(gating.gated(sam(0.05), lambda count: count < 100), (99, 100)) == [1, 0]
    gate = gating.bernoulli(0.5, jax.random.key(0))
    counts = range(1, 9)
    assert sharp_steps(ns.at_random, counts) == [int(gate(count)) for count in counts]

    # The same gradient twice is neither above nor below its mean, and a longer one is above.
    step = bowl_step(ns.adaptive)
    _, start = step(BOWL, ns.adaptive.init(BOWL))
    for scale, further in ((0.5, 0), (2.0, 1)):
        _, state = step(BOWL, start, scale)
        assert state.sharp_steps - start.sharp_steps == further


@recipe(SOME_STEPS)
def test_counters_inside_count_sharpness_aware_steps_unless_injected(ns):
    def six_steps(tx):
        step, state, params = bowl_step(tx), tx.init(BOWL), BOWL
        for _ in range(6):
            before = params
            taken, state = step(params, state)
            params = params - 0.1 * taken
        return before, taken, state

    every_fifth = gating.every(5)
    for tx, radius in ((ns.scheduled, 0.01), (gating.gated(sam(ns.rho), every_fifth), 0.002)):
        before, taken, _ = six_steps(tx)
        assert_close(taken, sam_gradient(before, None, radius, bowl), rtol=1e-4)
        with pytest.raises(AssertionError):
            assert_close(taken, sam_gradient(before, None, radius + 0.002, bowl), rtol=1e-4)

    for method in (xsam(rho=0.1, rho_max=0.2), xsam_jax.vasso(rho=0.1, theta=0.4)):
        _, _, state = six_steps(gating.gated(method, every_fifth))
        assert state.count == 6
        assert optax.tree.get(state.inner, "count") == 2


@recipe("Gate evaluated on the host")
@pytest.mark.parametrize("method", ["gated", "look_sam"])
def test_gate_on_the_host_equals_the_gate_in_the_program(heading, ns, method):
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


@recipe("Gate evaluated on the host")
def test_vmap_over_the_counter_makes_a_select_of_the_conditional(ns):
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
    return alphas[best], psi, unravel(directions[best] * norm(gradient))


@recipe("XSAM with the ascent of ASAM")
def test_xsam_searches_between_the_ascent_of_asam_and_the_last_gradient(ns):
    displacement = magnitude_scaled(
        gradient_of(ns.initial, ns.batch), ns.initial, rho=1.0, eta=0.01
    )
    gradient = gradient_of(add(ns.initial, displacement), ns.batch)
    alpha, psi, expected = probed_alpha(ns.initial, ns.batch, displacement, gradient, 0.2)
    np.testing.assert_allclose(optax.tree.get(ns.opt_state, "alpha"), alpha, rtol=1e-6)
    np.testing.assert_allclose(optax.tree.get(ns.opt_state, "psi"), psi, rtol=1e-3)
    as_in_sam = along(gradient_of(ns.initial, ns.batch), norm(displacement))
    assert norm(sub(displacement, as_in_sam)) > 0.1
    assert_close(gradient_taken(ns.initial, ns.params), expected, rtol=1e-3)


ABLATIONS = "Ascent along part of the gradient (F-SAM ablations)"


@recipe(ABLATIONS)
def test_ablations_ascend_along_their_part_of_the_gradient(ns):
    params = ns.initial
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def gradient(batch):
        return np.float64(jax.flatten_util.ravel_pytree(gradient_of(params, batch))[0])

    other = (ns.x[16:], ns.y[16:])
    mine, full = gradient(ns.half), gradient(ns.batch)
    common = (mine @ full) / (full @ full) * full
    directions = {"SAM-full": common, "SAM-noise": mine - common, "SAM-db": gradient(other)}
    ends = []
    for name, direction in directions.items():
        others = other if name == "SAM-db" else ns.batch
        after, _ = ns.train_step(params, ns.opt_state, ns.half, others, name=name)
        end = unravel(jnp.float32(flat + 0.05 * direction / np.linalg.norm(direction)))
        expected = gradient_of(end, ns.half)
        assert_close(gradient_taken(params, after), expected)
        ends.append(expected)
    ends.append(sam_gradient(params, ns.half, 0.05))
    for i, end in enumerate(ends):
        assert all(norm(sub(end, e)) > 1e-3 for e in ends[:i])


ESAM = "ESAM with per-sample losses"


@recipe(ESAM)
def test_esam_descends_on_the_samples_whose_loss_rises_most(heading):
    passes = Recorder()
    # Perturb all parameters, and do not pass the losses.
    replace = {"beta=0.6": "beta=1.0", "losses_fn=losses_fn, losses=losses": "losses_fn=losses_fn"}
    ns = run(heading, replace, apply=passes.count_calls(setup().apply))
    assert passes.counts() == [3]

    @jax.jit
    def losses(params):
        logits = setup().apply(params, ns.x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, ns.y)

    end = add(ns.initial, along(gradient_of(ns.initial, ns.batch), 0.05))
    rise = np.asarray(losses(end)) - np.asarray(losses(ns.initial))
    chosen = rise > np.sort(rise)[-16]
    assert chosen.sum() == 15
    expected = gradient_of(end, (np.asarray(ns.x)[chosen], np.asarray(ns.y)[chosen]))
    assert_close(gradient_taken(ns.initial, ns.params), expected)


@recipe(ESAM)
def test_esam_with_losses_saves_a_forward_pass(heading):
    passes = Recorder()
    run(heading, apply=passes.count_calls(setup().apply))
    assert passes.counts() == [2]


@recipe(ESAM)
def test_esam_with_value_fn_raises(heading):
    with pytest.raises(ValueError, match="losses_fn is missing"):
        run(heading, {"losses_fn=losses_fn, losses": "value_fn=losses_fn, losses"})


@recipe("Reading alpha")
def test_alpha_is_read_as_a_number(ns):
    assert ns.alpha in np.linspace(0, 2, 21, dtype=np.float32)
    assert ns.alpha != 1
    first = gradient_of(ns.initial, ns.batch)
    last = sam_gradient(ns.initial, ns.batch, 0.1)
    cosine = vdot(first, last) / (norm(first) * norm(last))
    np.testing.assert_allclose(ns.psi, np.arccos(cosine), rtol=1e-2)

    assert isinstance(ns.model_alpha, jax.Array)
    assert ns.model_alpha == optax.tree.get(ns.optimizer.opt_state, "alpha")[...]
    assert ns.model_alpha == optax.tree.get(nnx.as_pure(ns.optimizer.opt_state), "alpha")


LOGGING = "Logging the ascent"


@recipe(LOGGING)
def test_the_log_has_every_step(ns):
    assert {value.shape for value in ns.log.values()} == {(4,)}
    # The last step starts at the end of the first three.
    params, opt_state = ns.initial, ns.tx.init(ns.initial)
    *others, batch = micro_batches(ns)
    for other in others:
        params, opt_state = step_of(ns.tx)(params, opt_state, other)
    first, last = gradient_of(params, batch), sam_gradient(params, batch, 0.1)
    end, loss_fn = add(params, along(first, 0.1)), jitted(setup().loss_fn)
    cosine = vdot(first, last) / norm(first) / norm(last)
    expected = {
        "perturbation_norm": 0.1,
        "first_gradient_norm": norm(first),
        "last_gradient_norm": norm(last),
        "gradient_cosine": cosine,
        "loss_rise": loss_fn(end, batch) - loss_fn(params, batch),
        "update_cosine": np.cos(1.5 * np.arccos(cosine)),
    }
    assert ns.log.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(ns.log[name][3], value, rtol=1e-3, err_msg=name)


@recipe(LOGGING)
def test_record_needs_the_value_for_loss_rise_and_keeps_the_gradient(ns):
    batch = micro_batches(ns)[0]
    params, state = step_of(ns.tx)(ns.initial, ns.tx.init(ns.initial), batch)
    assert np.isnan(optax.tree.get(state, "loss_rise"))
    assert np.isfinite(optax.tree.get(state, "update_cosine"))
    descent = optax.chain(ns.slerp(alpha=1.5), ns.match_norm(unit=True))
    plain = optax.chain(ns.sharpness_aware(ns.ascent, descent), optax.sgd(0.1))
    expected, _ = step_of(plain)(ns.initial, plain.init(ns.initial), batch)
    chex.assert_trees_all_equal(params, expected)


@recipe(LOGGING)
def test_optax_monitor_raises_in_a_scan(heading):
    monitor = 'optax.monitor({"update_cosine": optax.tree.norm})'
    recorded = 'record({**DIAGNOSTICS, "update_cosine": update_cosine})'
    replace = {recorded: monitor, "(*DIAGNOSTICS, ": "("}
    replace['"update_cosine")}'] = '"update_cosine",)}'
    with pytest.raises(TypeError, match="scan body function carry input and carry output"):
        run(heading, replace)


@recipe("Many seeds with vmap")
def test_seeds_train_as_if_alone_and_the_conditional_stays(ns):
    start = jax.vmap(ns.init_params)(ns.seeds)
    alphas = optax.tree.get(ns.opt_state, "alpha")
    assert alphas.shape == (4,)
    for i in (0, 3):
        one = jax.tree.map(lambda leaf: leaf[i], start)  # noqa: B023
        # The first step of momentum is that of plain gradient descent.
        params, opt_state = step_of(XSAM)(one, XSAM.init(one), ns.batch)
        assert_close(jax.tree.map(lambda leaf: leaf[i], ns.params), params)  # noqa: B023
        assert alphas[i] == optax.tree.get(opt_state, "alpha")

    batched = jax.vmap(ns.tx.init)(start)
    everywhere = jax.jit(jax.vmap(ns.make_train_step(ns.tx), in_axes=(0, 0, None)))
    for step, opt_state, conditionals in (
        (ns.train_step, ns.opt_state, 1),
        (everywhere, batched, 0),
    ):
        program = step.lower(start, opt_state, ns.batch).compile()
        assert program.as_text().count(" conditional(") == conditionals


@recipe("Several devices")
def test_several_devices_compute_the_step_of_one(ns, monkeypatch):
    """Runs on one device. Eight are in test_devices.py."""
    expected = step_of(XSAM)(ns.initial, XSAM.init(ns.initial), ns.batch)
    for result in (ns.with_jit, ns.with_shard_map, ns.with_pmap, ns.with_explicit_mesh):
        for part, expected_part in zip(result, expected, strict=True):
            assert_close(jax.device_get(part), jax.device_get(expected_part))
    monkeypatch.setattr(ns, "tx", XSAM)  # the page goes on with another method
    twice, _ = ns.step(*ns.with_pmap, jax.tree.map(ns.split, ns.batch))
    expected, _ = step_of(XSAM)(*expected, ns.batch)
    assert_close(jax.device_get(twice), jax.device_get(expected))


@recipe("Several devices")
def test_state_is_sharded_like_the_parameters(ns):
    start = ns.tx.init(ns.initial)
    params, opt_state = step_of(ns.tx)(ns.initial, start, ns.batch)
    assert_close(jax.device_get(ns.params), jax.device_get(params))
    averages = optax.tree.get(ns.opt_state, "average")
    one_device = optax.tree.get(opt_state, "average")
    assert_close(jax.device_get(averages), jax.device_get(one_device))
    for leaf, average in zip(*map(jax.tree.leaves, (ns.params, averages)), strict=True):
        assert leaf.sharding.is_equivalent_to(average.sharding, leaf.ndim)
        assert leaf.sharding.num_devices == jax.device_count()


@recipe("Two gradients at once (SAMPa)")
def test_sampa_on_two_halves_of_the_devices_is_sampa(ns):
    """Runs on one device. Eight are in test_devices.py, where each takes one gradient."""
    tx = xsam_jax.sampa(optax.sgd(0.1, momentum=0.9), 0.1, rho=0.05)
    params, opt_state = ns.initial, tx.init(ns.initial)

    @jax.jit
    def step(params, opt_state):
        value_fn = functools.partial(ns.loss_fn, batch=ns.batch)
        grads = jax.grad(value_fn)(xsam_jax.look_ahead(opt_state, params))
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(2):
        params, opt_state = step(params, opt_state)
    assert_close(jax.device_get(ns.params), jax.device_get(params), rtol=1e-5)
    program = ns.train_step.lower(ns.params, ns.opt_state, ns.halved_batch).compile().as_text()
    # Gradients of the hidden layer, which is 8 x 16, in one array on each device.
    gradients = 2 if jax.device_count() == 1 else 1
    assert f"f32[{gradients},8,16]" in program


@recipe("One perturbation per group (m-sharpness)")
def test_groups_have_the_mean_of_their_updates(ns):
    """Runs on one device, where jax.shard_map has one group. Eight are in test_devices.py."""

    @functools.cache
    def expected(groups):
        """The mean of the gradients of XSAM, by the loss of each group, at one alpha."""
        alpha = float(optax.tree.get(alphas[groups][1], "alpha"))
        step, state = update(xsam_jax.slerp_sam(0.1, alpha), ns.initial)
        parts = (np.split(np.asarray(leaf), groups) for leaf in ns.batch)
        return mean([step(part, state)[0] for part in zip(*parts, strict=True)])

    devices = jax.device_count()
    alphas = {4: ns.with_groups, devices: ns.on_devices}
    for result, groups in ((ns.with_groups, 4), (ns.in_a_loop, 4), (ns.on_devices, devices)):
        taken = gradient_taken(ns.initial, jax.device_get(result[0]))
        assert_close(taken, expected(groups), rtol=1e-3)
    assert all(differ(expected(4), sam_gradient(ns.initial, ns.batch, 0.1)))


@recipe("One perturbation per group (m-sharpness)")
def test_groups_of_an_nnx_model_average_its_running_statistics(ns):
    start = ns.Model(nnx.Rngs(0))
    statistics = nnx.as_pure(nnx.state(start, nnx.BatchStat))
    x, _ = ns.batch
    hidden = start.hidden(x).reshape(4, 8, 16)
    expected = {"mean": hidden.mean(axis=(0, 1)), "var": hidden.var(axis=1).mean(axis=0)}
    for name, values in expected.items():
        before = statistics["norm"][name]
        now = nnx.as_pure(nnx.state(ns.model, nnx.BatchStat))["norm"][name]
        np.testing.assert_allclose(now, 0.99 * before + 0.01 * values, rtol=1e-5, atol=1e-6)
    assert not np.allclose(ns.model.output.kernel[...], start.output.kernel[...])


@recipe("Optimizer state in host memory")
def test_state_stays_in_host_memory_and_steps_are_the_same(ns):
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(ns.opt_state)} == {"pinned_host"}
    params, opt_state = ns.step(ns.params, ns.opt_state, ns.batch)
    step, expected = step_of(ns.tx), (ns.initial, ns.tx.init(ns.initial))
    for _ in range(2):
        expected = step(*expected, ns.batch)
    assert_close(jax.device_get((params, opt_state)), jax.device_get(expected), rtol=1e-5)


@recipe("One gradient a step")
def test_one_gradient_a_step_has_a_momentum_and_clean_parameters(ns):
    """The first step has no momentum yet: it is that of SGD."""
    gradient = gradient_of(ns.initial, ns.batch)
    assert_close(ns.params, add_scale(ns.initial, -0.1, gradient), rtol=1e-5)
    ahead = sub(ns.look_ahead(ns.opt_state, ns.params), ns.params)
    assert_close(ahead, along(gradient, -0.5), rtol=1e-4)


@recipe("One gradient in Flax")
def test_look_ahead_in_flax_takes_the_step_of_momentum_sam(ns):
    """Both against the steps with NumPy's own momentum, and the model holds clean parameters."""

    def heavy_ball(params, loss_fn):
        momentum, grad_fn = scale(0.0, params), jax.jit(jax.grad(loss_fn))
        for step in range(3):
            point = add_scale(params, -1, along(momentum, 0.5)) if step else params
            momentum = add(scale(0.9, momentum), grad_fn(point))
            params = add_scale(params, -0.1, momentum)
        return params

    expected = heavy_ball(ns.params, lambda params: ns.loss_fn(params, ns.batch))
    assert_close(ns.state.params, expected, rtol=1e-4)

    graphdef, *variables = nnx.split(ns.Network(nnx.Rngs(0)), nnx.Param, ...)
    start, rest = map(nnx.as_pure, variables)

    def model_loss(params):
        return ns.model_loss(nnx.merge(graphdef, params, rest), ns.batch)

    expected = heavy_ball(start, model_loss)
    assert_close(nnx.as_pure(nnx.state(ns.model, nnx.Param)), expected, rtol=1e-4)
    assert np.any(ns.model.norm.mean[...] != 0)  # statistics of the pass advance


@recipe("Line searches and L-BFGS")
def test_line_search_has_the_sharpness_aware_direction_and_lowers_the_loss(ns):
    step = sub(ns.initial, ns.params)
    gradient = sam_gradient(ns.initial, ns.batch, 0.05)
    # The first step of L-BFGS has no memory yet: it goes along the gradient.
    assert_close(along(step, 1.0), along(gradient, 1.0), rtol=1e-3)
    loss_fn = jitted(setup().loss_fn)
    losses = [loss_fn(ns.initial, ns.batch)]
    params, opt_state = ns.params, ns.opt_state
    for _ in range(5):
        losses.append(loss_fn(params, ns.batch))
        params, opt_state = ns.train_step(params, opt_state, ns.batch)
    assert losses == sorted(losses, reverse=True)

    def update(params):
        loss, gradient = jnp.float32(0.0), params
        return ns.tx.update(
            gradient,
            ns.tx.init(params),
            params,
            value_fn=lambda params: ns.loss_fn(params, ns.batch),
            grad_fn=lambda params: params,
            value=loss,
            grad=gradient,
        )

    with pytest.raises(TypeError, match=r"Unexpected keyword arguments.*grad_fn"):
        jax.eval_shape(update, ns.initial)


@recipe("Saving and resuming")
def test_resumed_run_is_equal_bit_for_bit(ns):
    params, opt_state = ns.initial, ns.tx.init(ns.initial)
    for _ in range(3):
        params, opt_state = ns.train_step(params, opt_state, ns.batch)
    assert optax.tree.get(opt_state, "alpha") != 1
    # On the host, so that the restored arrays do not need another program.
    resumed, expected = jax.device_get((ns.params, ns.opt_state)), (params, opt_state)
    forgotten = jax.device_get((ns.params, ns.tx.init(ns.params)))
    # Beyond the next probe, which is at step 4.
    for _ in range(3):
        resumed = ns.train_step(*resumed, ns.batch)
        expected = ns.train_step(*expected, ns.batch)
        forgotten = ns.train_step(*forgotten, ns.batch)
    chex.assert_trees_all_equal(resumed, expected)
    assert all(differ(forgotten[0], expected[0]))


CONTRIB = "Coming from optax.contrib.sam"


def trained(ns, tx=None, steps=8):
    """Returns the parameters after some steps on four batches in turn."""
    train_step = ns.train_step if tx is None else ns.make_train_step(tx)
    params, opt_state = ns.initial, (tx or ns.tx).init(ns.initial)
    # All have the shape of the whole batch, for which the recipe's step is compiled already.
    batches = [(np.roll(np.asarray(ns.x), i, axis=1), ns.y) for i in range(4)]
    for i in range(steps):
        params, opt_state = train_step(params, opt_state, batches[i % 4])
    return params


@recipe(CONTRIB)
@pytest.mark.parametrize("sync_period", [2, 3])
@pytest.mark.usefixtures("x64")
def test_steps_are_those_of_contrib_sam(heading, sync_period):
    ours = run(heading, {"steps=1": f"steps={sync_period - 1}"})
    theirs = run(heading, {"sync_period=2": f"sync_period={sync_period}"}, side="-")
    expected = trained(theirs)
    assert jax.tree.leaves(expected)[0].dtype == jnp.float64
    assert_close(trained(ours), expected, rtol=1e-8)
    # The batches differ, and the steps do not end where they start.
    assert norm(sub(expected, ours.initial)) > 0.01


@recipe(CONTRIB)
def test_contrib_sam_perturbs_parameters_between_calls_in_its_default_mode(heading, ns):
    theirs = run(heading, {"opaque_mode=True": "opaque_mode=False"}, side="-")
    perturbation = along(gradient_of(ns.initial, ns.batch), 0.1)
    assert_close(sub(theirs.params, ns.initial), perturbation)
    second, _ = theirs.train_step(theirs.params, theirs.opt_state, ns.batch)
    expected = sam_gradient(ns.initial, ns.batch, 0.1)
    for params in (second, ns.params):
        assert_close(gradient_taken(ns.initial, params, 0.01), expected, rtol=1e-3)


@recipe(CONTRIB)
def test_grad_fn_takes_only_the_parameters(ns):
    gradient = gradient_of(ns.initial, ns.batch)
    update = functools.partial(ns.tx.update, gradient, ns.tx.init(ns.initial), ns.initial)
    with pytest.raises(TypeError, match="grad_fn is called with the parameters alone"):
        update(grad_fn=lambda p, i: gradient_of(p, ns.batch))
    updates, _ = update(grad_fn=lambda p: gradient_of(p, ns.batch))
    assert_close(scale(-100, updates), sam_gradient(ns.initial, ns.batch, 0.1))


@recipe(CONTRIB)
@pytest.mark.parametrize(
    ("sync_period", "reset_state", "steps"), [(2, False, 5), (2, True, 5), (3, False, 1)]
)
@pytest.mark.usefixtures("x64")
def test_state_of_an_adversary_advances_in_every_ascent_step(
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


OWN_ASCENT = "Ascents written for optax.contrib.sam"


@recipe(OWN_ASCENT)
def test_ascent_with_the_sign_of_an_optimizer_lowers_the_loss(ns):
    loss_fn = jitted(setup().loss_fn)
    perturbation = along(gradient_of(ns.params, ns.batch), 0.1)
    for rise, sign in ((ns.uphill, 1), (ns.downhill, -1)):
        end = add_scale(ns.params, sign, perturbation)
        expected = loss_fn(end, ns.batch) - loss_fn(ns.params, ns.batch)
        np.testing.assert_allclose(rise, expected, rtol=1e-3)
        assert sign * rise > 0.01


@recipe(OWN_ASCENT)
@pytest.mark.parametrize("given", ["", "value=value, grad_fn=lambda p: grads, "])
def test_loss_rise_needs_the_value_and_no_grad_fn(heading, given):
    assert np.isnan(run(heading, {"value=value, ": given}).uphill)


# --------------------------------------------------------------------------------------------------
# The methods


def rows(first_column):
    """Returns {name: {column: cell}} of the tables of methods.md with this first column."""
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
            found.setdefault(re.match(r"`(\w+)", cells[0])[1], {}).update(row)
    return found


TABLE = rows("method")
ALL = METHODS | ONE_GRADIENT
ALIASES = [method for method in ALL.values() if method.alias.__name__ in NAMES]
ALIAS_NAMES = [name for name, method in ALL.items() if method.alias.__name__ in NAMES]


def test_tables_have_every_method_and_every_gate():
    assert set(TABLE) == NAMES == {method.alias.__name__ for method in ALIASES}
    assert {getattr(gating, name) for name in rows("gate")} == {
        gating.every,
        gating.after,
        gating.bernoulli,
        gating.gradient_norm,
    }


@pytest.mark.parametrize("method", ALIASES, ids=ALIAS_NAMES)
def test_number_of_gradients_is_that_of_the_table(method):
    taken = []

    @jax.custom_vjp
    def counted(params):
        return bowl(params)

    def backward(params, cotangent):
        taken.append(0)
        return jax.vjp(bowl, params)[1](cotangent)

    counted.defvjp(lambda params: (bowl(params), params), backward)
    stated = TABLE[method.alias.__name__]["gradients"]
    number = int(stated.split()[0].replace("k", str(method.statics.get("steps", 1))).strip(","))
    tx, params = method.make(), jnp.array([1.0, -0.5, 0.25])
    # Traced with a Python bool, so that Python sees every gradient, and no branch beside.
    sharps = [True, False] if "1 in every n-th step" in stated else [None]
    for sharp in sharps:
        extra = {} if sharp is None else {"sharp": sharp}
        arguments = method.arguments(counted) | extra
        update = functools.partial(tx.update, **arguments)
        jax.eval_shape(update, params, tx.init(params), params)
        # Traced once, the loop over the products of the Hessian takes one more.
        assert len(taken) == (0 if sharp is False else number + method.products)
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
def test_method_equals_its_parts_in_the_table(name):
    numbers = {"rho": 0.3, "rho_max": 0.5, "alpha": 0.4, "gamma": 0.6, "beta": 0.1, "eta": 0.1}
    numbers |= {"decay": 0.6, "sigma": 0.7, "theta": 0.4}
    numbers |= {"gradient_rho": 0.3, "beta_0": 0.5, "beta_1": 0.7}
    _, directions, descents = PARTS[name].values()

    def parts(cell, rooms):
        calls = re.findall(r"`(\w+\(.*?\))`", cell)
        return [eval(call, {**vars(rooms), **numbers}) for call in calls]

    ascent = parts(directions, xsam_jax.ascent) or [normalize()]
    tx = xsam_jax.sharpness_aware(
        optax.chain(*ascent, scale_by_radius(numbers["rho"])),
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


def test_table_of_parts_has_every_method_with_two_slots():
    optimizers = {"decoupled_wsam", "lookbehind", "momentum_sam", "async_sam", "sampa"}
    assert set(PARTS) == NAMES - {"sam", "look_sam", "esam", "eigen_sam"} - optimizers


@recipe("Published compositions")
def test_published_compositions_are_their_formulas(ns):
    params, loss_fn = ns.initial, jitted(setup().loss_fn)
    first = gradient_of(params, ns.batch)
    after = sam_gradient(params, ns.batch, 0.05)

    def result(tx):
        step, state = update(tx, params)
        return step(ns.batch, state)[0]

    assert_close(result(ns.stable_sam), along(after, norm(first)), rtol=1e-4)
    unnormalized = gradient_of(add_scale(params, 0.05, first), ns.batch)
    assert_close(result(ns.usam), unnormalized, rtol=1e-4)
    end = add(params, along(first, 0.05))
    rise = loss_fn(end, ns.batch) - 0.05 * vdot(after, along(first, 1.0))
    size = min(1.0, rise / norm(after) ** 2)
    assert_close(result(ns.sam_sps), jax.tree.map(lambda g: -size * g, after), rtol=1e-3)
    # In its first step RMSProp divides by the size of each entry.
    signs = jax.tree.map(np.sign, first)
    expected = gradient_of(add_scale(params, 1, along(signs, 0.05)), ns.batch)
    assert_close(result(ns.functional_sam), expected, rtol=1e-3)


@recipe("Published compositions")
def test_random_perturbations_are_of_length_rho_and_new_in_each_step(ns):
    params, gradient = ns.initial, gradient_of(ns.initial, ns.batch)
    tx, found = ns.random_perturbation, []
    state, step = tx.init(params), jax.jit(tx.update)
    for _ in range(2):
        _, state = step(gradient, state, params)
        point = xsam_jax.look_ahead(state, params)
        found.append(add_scale(point, -1.0, params))
    np.testing.assert_allclose([norm(e) for e in found], 0.05, rtol=1e-3)
    u, v, g = (along(tree, 1.0) for tree in (*found, gradient))
    assert max(abs(optax.tree.vdot(*pair)) for pair in ((u, v), (u, g), (v, g))) < 0.3


@recipe("Functional SAM")
def test_functional_sam_trains(ns):
    """The formula is tested in test_methods.py."""
    before, after = (jitted(setup().loss_fn)(p, ns.batch) for p in (ns.initial, ns.params))
    assert after < before


@recipe("Ascent from random parameters (R-SAM)")
def test_the_ascent_of_rsam_is_along_the_gradient_at_random_parameters(ns):
    noise = optax.tree.random_like(jax.random.key(0), ns.initial, jax.random.normal)
    nearby = gradient_of(add_scale(ns.initial, 0.01, noise), ns.batch)
    expected = gradient_of(add_scale(ns.initial, 1, along(nearby, 0.05)), ns.batch)
    assert_close(ns.params, add_scale(ns.initial, -0.1, expected), rtol=1e-5)


@recipe("Combine an ascent with a descent")
def test_ascents_and_descents_combine(ns):
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
        gradient = gradient_of(add(params, displacement), ns.batch)
        alpha, psi, expected = probed_alpha(params, ns.batch, displacement, gradient, 0.2)
        alphas.append(alpha)
        np.testing.assert_allclose(optax.tree.get(state, "psi"), psi, rtol=1e-3)
        np.testing.assert_allclose(optax.tree.get(state, "alpha"), alpha, rtol=1e-6)
        assert_close(result, expected, rtol=1e-3)
    assert len(set(alphas)) > 1

    magnitudes = np.abs(jax.flatten_util.ravel_pytree(params)[0]) + 0.01
    length = norm(averages["xsam_on_asam"])
    assert magnitudes.min() < length < magnitudes.max()

    point = params
    for _ in range(3):
        point = add(point, along(gradient_of(point, ns.batch), 0.05))
    last = gradient_of(point, ns.batch)
    parallel = scale(vdot(new, last) / vdot(last, last), last)
    expected = add_scale(last, -0.4, sub(new, parallel))
    step, state = update(ns.gsam_of_three_steps, params)
    assert_close(step(ns.batch, state)[0], expected)


@recipe("Three formulas of adaptive SAM")
def test_three_adaptive_formulas(ns):
    params = ns.initial | {"norm": ns.initial["norm"].at[0].set(0.0)}
    gradient = gradient_of(ns.initial, ns.batch)
    scaled = {name: np.abs(params[name]) * g for name, g in gradient.items()}
    expected = {
        "official": magnitude_scaled(gradient, params, 1.0, 0.01, biases={"norm"}),
        "port": magnitude_scaled(gradient, params, 1.0, 0.0),
        "linear": along(scaled, 1.0),
    }
    for name, direction in expected.items():
        tx = getattr(ns, name)
        assert_close(tx.update(gradient, tx.init(params), params)[0], direction)
    assert expected["port"]["norm"][0] == 0 != expected["official"]["norm"][0]
    assert_close(norm(expected["linear"]), jnp.float32(1.0))


@recipe("Gates")
def test_gate_of_the_methods_page_selects_the_first_step(ns):
    length = norm(sam_gradient(ns.initial, ns.batch, 0.1))
    taken = gradient_taken(ns.initial, ns.params)
    np.testing.assert_allclose(norm(taken), length, rtol=1e-4)
    second, _ = ns.train_step(ns.params, ns.opt_state, ns.batch)
    assert_close(gradient_taken(ns.params, second), gradient_of(ns.params, ns.batch))


@pytest.mark.parametrize("name", TABLE)
def test_example_state_and_convention_of_a_row_are_true(name):
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
    tx = eval(re.match("`(.*?)`", row["example and usual values"])[1], names)
    params = {"weight": jnp.ones((3, 7)), "bias": jnp.ones(7)}
    size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(tx.init(params)))
    copies_and_scalars = {
        "none": (0, 0),
        "that of the optimizer": (0, 0),  # which is plain gradient descent here
        "count": (0, 1),
        "3 scalars": (0, 3),
        "that of the optimizer, 2 scalars": (1, 2),  # a momentum here
        "1 copy, that of the optimizer": (1, 0),
        "1 copy, a scalar, that of the optimizer": (1, 1),
        "1 copy, count": (1, 1),
        "1 copy, 2 counts": (1, 2),
    }
    assert copies_and_scalars[row["state"]] == divmod(size, 28)
