"""The recipes in docs/recipes.md: every block runs, and does what the text around it says."""

import collections
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

from xsam_jax import sam, sharpness_aware, xsam
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


def run(heading, replace=None, side="+"):
    """Runs Setup and a recipe, with one passage exchanged where asked; returns their names."""
    code = blocks(RECIPES, side)[heading]
    for old, new in (replace or {}).items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    module = types.ModuleType("recipe")
    execute(RECIPES, CODE["Setup"], module)
    module.initial = module.params
    execute(RECIPES, code, module)
    return module


def recipe(heading):
    """Hands the recipe's names to a test as `ns`, or, to one that runs it, its heading."""
    TESTED.add(heading)
    return pytest.mark.parametrize("heading", [heading])


@pytest.fixture
def ns(heading):
    return run(heading)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_recipe_is_tested():
    headings = re.findall(r"^## (.*)$", RECIPES.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(headings) == set(CODE)
    assert set(headings) - {"Setup"} == TESTED


def test_the_blocks_of_the_readme_run_in_order():
    code = blocks(ROOT / "README.md")
    module = types.ModuleType("readme")
    setup = types.ModuleType("setup")
    execute(RECIPES, CODE["Setup"], setup)
    # What a reader has already: parameters, a batch, and a loss.
    for name in ("params", "batch", "loss_fn"):
        setattr(module, name, getattr(setup, name))
    for block in code.values():
        execute(ROOT / "README.md", block, module)


# --------------------------------------------------------------------------------------------------
# What the recipes are compared with


def loss_at(ns, batch=None):
    return lambda params: ns.loss_fn(params, ns.batch if batch is None else batch)


def along(direction, rho):
    """The perturbation of length rho, norm taken over the whole tree."""
    return optax.tree.scale(rho / optax.tree.norm(direction), direction)


def sam_gradient(loss, params, rho):
    perturbation = along(jax.grad(loss)(params), rho)
    return jax.grad(loss)(optax.tree.add(params, perturbation))


def gradient_taken(before, after, learning_rate=0.1):
    """The gradient that plain gradient descent made its step with."""
    return optax.tree.scale(1 / learning_rate, optax.tree.sub(before, after))


def assert_close(actual, expected, rtol=1e-4):
    """Equal up to float32, in the norm of the whole tree."""
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    difference = optax.tree.norm(optax.tree.sub(actual, expected))
    assert difference <= rtol * optax.tree.norm(expected)


def differ(tree, other):
    return [bool(jnp.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (tree, other)), strict=True)]


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
    before, after = run(heading, side="-"), run(heading)
    lines = RECIPES.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("+") for line in lines) == 3

    gradient = jax.grad(loss_at(before))(before.initial)
    assert_close(gradient_taken(before.initial, before.params), gradient)
    assert before.loss == after.loss
    assert 0 < optax.tree.get(after.opt_state, "alpha") <= 2
    expected = optax.tree.norm(sam_gradient(loss_at(after), after.initial, 0.1))
    actual = optax.tree.norm(gradient_taken(after.initial, after.params))
    np.testing.assert_allclose(actual, expected, rtol=1e-4)

    passes, original = Recorder(), after.loss_fn

    def counted(params, batch):
        passes(0)
        return original(params, batch)

    after.loss_fn = counted
    step = after.train_step.__wrapped__
    jax.jit(lambda *args: step(*args))(after.params, after.opt_state, after.batch)
    assert passes.counts() == [2]


@recipe("BatchNorm and Dropout in Flax NNX")
@pytest.mark.parametrize("masks", ["same", "fresh"])
def test_nnx_statistics_advance_once_and_masks_are_as_chosen(heading, masks):
    first = "    value_fn = make_value_fn(model_loss, model, batch)\n"
    second = "    loss, grads = nnx.value_and_grad(model_loss)(model, batch)\n"
    swap = {first + second: second + first} if masks == "fresh" else {}
    recorder = Recorder()

    class RecordedDropout(nnx.Dropout):
        def __call__(self, inputs):
            mask = super().__call__(jnp.ones_like(inputs))
            recorder(mask)
            return mask * inputs

    ns = run(heading, {"nnx.Dropout(": "RecordedDropout(", "class Model": "MODEL"} | swap) if (
        False
    ) else None
