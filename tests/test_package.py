"""The shape of the package: what imports what, and that all that is public is explained."""

import ast
import doctest
import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

import xsam_jax
from xsam_jax import analysis

PACKAGE = pathlib.Path(xsam_jax.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)

# The imports that each room may make.
ARROWS = {
    "_tree": set(),
    "_devices": set(),
    "_schedules": set(),
    "_checks": set(),
    "_losses": {"_checks", "_devices", "_tree"},
    "core": {"_checks", "_losses", "_tree"},
    "ascent": {"_checks", "_schedules", "_tree", "ascent"},
    "descent": {"_checks", "_devices", "_losses", "_schedules", "_tree", "core", "descent"},
    "gating": {"_checks", "_devices", "_tree", "gating"},
    "methods": {
        *("_checks", "_devices", "_losses", "_schedules", "_tree"),
        *("core", "ascent", "descent", "gating", "methods"),
    },
    "flax_nnx": {"_losses"},
    "flax_linen": set(),
    "analysis": {"_checks", "_tree", "core", "ascent", "analysis"},
}

# Further packages that a room may import beside JAX and Optax. JAX needs SciPy.
FURTHER = {
    "flax_nnx": {"flax"},
    "flax_linen": {"flax"},
    "analysis": {"scipy"},
    "analysis/plots": {"matplotlib"},
    "analysis/style": {"matplotlib"},
    "analysis/surfaces": {"matplotlib", "adjustText"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "xsam_jax":
            yield from (f"xsam_jax.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_arrows_point_one_way():
    for path in PACKAGE.rglob("*.py"):
        room = room_of(path)
        if room == "__init__":
            continue
        used = {name.split(".")[1] for name in imports(path) if name.startswith("xsam_jax.")}
        assert used <= ARROWS[room], f"{path.name} imports {used - ARROWS[room]}"


def test_the_library_needs_jax_and_optax_alone():
    allowed = set(sys.stdlib_module_names) | {"jax", "optax", "numpy", "xsam_jax"}
    for path in PACKAGE.rglob("*.py"):
        own = "/".join(path.relative_to(PACKAGE).with_suffix("").parts)
        extra = FURTHER.get(own, FURTHER.get(room_of(path), set()))
        used = {name.split(".")[0] for name in imports(path)}
        assert used <= allowed | extra, f"{path.name} imports {used - allowed - extra}"


def test_what_is_optional_is_imported_on_demand():
    code = """
import sys, xsam_jax
assert not {"flax", "xsam_jax.analysis", "matplotlib"} & set(sys.modules)
import xsam_jax.analysis
assert not {"flax", "matplotlib"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def public_names():
    for name in MODULES:
        if any(part.startswith("_") for part in name.split(".")):
            continue
        module = importlib.import_module(name)
        yield name, module
        for attribute, value in vars(module).items():
            if getattr(value, "__module__", None) == name and not attribute.startswith("_"):
                yield f"{name}.{attribute}", value


PUBLIC = dict(public_names())


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_is_documented(name):
    assert inspect.getdoc(PUBLIC[name])


def is_called(name, value):
    """What a user calls; checks are called by the library, and types have nothing to run."""
    module, _, last = name.rpartition(".")
    if module.startswith("xsam_jax.analysis") and not module.endswith(".plots"):
        return last in analysis.__all__ and inspect.isfunction(value)
    return inspect.isfunction(value)


CALLED = [name for name, value in PUBLIC.items() if is_called(name, value)]


@pytest.mark.parametrize("name", CALLED)
def test_what_is_called_has_an_example_that_runs(name):
    """Running them is the doctest collection's part."""
    examples = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name)[0].examples
    assert examples, "no example"
    assert "Example:" in inspect.getdoc(PUBLIC[name])


@pytest.mark.parametrize("name", [n for n in CALLED if "search" not in n])
def test_every_argument_is_explained(name):
    text = inspect.getdoc(PUBLIC[name])
    for argument in inspect.signature(PUBLIC[name]).parameters:
        assert f"{argument}: " in text, f"{argument} is not in the docstring"


def test_what_is_exported_exists():
    assert all(hasattr(xsam_jax, name) for name in xsam_jax.__all__)
    assert {n for n in xsam_jax.methods.__all__ if n.islower()} <= set(xsam_jax.__all__)


def test_the_readme_names_the_version_of_the_changelog():
    changelog = (PACKAGE.parent / "CHANGELOG.md").read_text()
    assert f"## {xsam_jax.__version__}" in changelog
