"""The structure of the package: imports, documentation of public names, and lengths of files."""

import ast
import doctest
import importlib
import inspect
import pathlib
import subprocess
import sys
import tomllib

import xsam_jax
from xsam_jax import analysis

PACKAGE = pathlib.Path(xsam_jax.__file__).parent
WORKFLOW = PACKAGE.parent / ".github" / "workflows" / "ci.yml"
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
    "_value_fn": {"_checks", "_devices", "_tree"},
    "core": {"_checks", "_value_fn", "_tree"},
    "ascent": {"_checks", "_devices", "_schedules", "_tree", "ascent"},
    "descent": {"_checks", "_devices", "_value_fn", "_schedules", "_tree", "core", "descent"},
    "gating": {"_checks", "_devices", "_tree", "gating"},
    "groups": {"_checks", "_devices", "_value_fn", "_tree", "groups"},
    "methods": {
        *("_checks", "_devices", "_value_fn", "_schedules", "_tree"),
        *("core", "_look_ahead", "ascent", "descent", "gating", "methods"),
    },
    "in_float32": {"_checks", "_tree"},
    "_look_ahead": {"_checks", "_schedules", "_tree"},
    "flax_nnx": {"_value_fn"},
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
    "analysis/surface_plots": {"matplotlib", "adjustText"},
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


def test_imports_between_rooms_follow_the_arrows():
    for path in PACKAGE.rglob("*.py"):
        room = room_of(path)
        if room == "__init__":
            continue
        used = {name.split(".")[1] for name in imports(path) if name.startswith("xsam_jax.")}
        assert used <= ARROWS[room], f"{path.name} imports {used - ARROWS[room]}"


def test_imports_between_programs_follow_the_arrows():
    """The trainer does not know the tools that read its runs, and nothing knows the benchmarks."""
    examples = PACKAGE.parent / "examples"
    allowed = {
        examples / "training": {"examples.training"},
        examples / "image_classification": {"examples.image_classification", "examples.training"},
        examples / "translation": {"examples.translation", "examples.training"},
        examples / "experiments": {
            *("examples.experiments", "examples.training"),
            *("examples.image_classification", "examples.translation"),
        },
        examples.parent / "benchmarks": {"benchmarks", "examples"},
    }
    for folder, rooms in allowed.items():
        for path in folder.rglob("*.py"):
            used = {name for name in imports(path) if name.startswith(("examples", "benchmarks"))}
            strange = {name for name in used if not name.startswith(tuple(rooms))}
            assert not strange, f"{path.name} imports {strange}"


def test_library_imports_only_jax_and_optax():
    allowed = set(sys.stdlib_module_names) | {"jax", "optax", "numpy", "xsam_jax"}
    for path in PACKAGE.rglob("*.py"):
        own = "/".join(path.relative_to(PACKAGE).with_suffix("").parts)
        extra = FURTHER.get(own, FURTHER.get(room_of(path), set()))
        used = {name.split(".")[0] for name in imports(path)}
        assert used <= allowed | extra, f"{path.name} imports {used - allowed - extra}"


def test_optional_packages_are_imported_on_demand():
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


def names_without(documented, names):
    """The names for which `documented(name, value, docstring)` does not hold, one a line."""
    values = ((name, PUBLIC[name]) for name in names)
    return "\n".join(
        name for name, value in values if not documented(name, value, inspect.getdoc(value) or "")
    )


def test_every_public_name_has_a_docstring():
    missing = names_without(lambda name, value, docstring: docstring, PUBLIC)
    assert not missing, f"public names without a docstring:\n{missing}"


def is_called(name, value):
    """Whether users call it. Checks are called by the library, and types have nothing to run."""
    module, _, last = name.rpartition(".")
    if module.startswith("xsam_jax.analysis") and not module.endswith(".plots"):
        return last in analysis.__all__ and inspect.isfunction(value)
    return inspect.isfunction(value)


CALLED = [name for name, value in PUBLIC.items() if is_called(name, value)]


def test_every_function_has_an_example():
    """The doctests run the examples."""

    def has_example(name, value, docstring):
        tests = doctest.DocTestFinder(recurse=False).find(value, name)
        return tests and tests[0].examples and "Example:" in docstring

    assert len(CALLED) > 50
    missing = names_without(has_example, CALLED)
    assert not missing, f"functions without a doctest under 'Example:':\n{missing}"


def test_every_argument_is_documented():
    missing = [
        f"{name}: {argument}"
        for name in CALLED
        for argument in inspect.signature(PUBLIC[name]).parameters
        if f"{argument}: " not in inspect.getdoc(PUBLIC[name])
    ]
    assert not missing, "arguments that their docstring does not name:\n" + "\n".join(missing)


def test_exported_names_exist():
    assert all(hasattr(xsam_jax, name) for name in xsam_jax.__all__)
    assert {n for n in xsam_jax.methods.__all__ if n.islower()} <= set(xsam_jax.__all__)


def test_changelog_has_the_version():
    changelog = (PACKAGE.parent / "CHANGELOG.md").read_text()
    assert f"## {xsam_jax.__version__}" in changelog


def test_ci_tests_the_oldest_versions_that_are_allowed():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["examples"]
    minimums = dict(name.split(">=") for name in needed if ">=" in name)
    lines = (PACKAGE.parent / ".github" / "oldest.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    assert pinned.keys() == minimums.keys() | {"jaxlib"}
    for name, version in minimums.items():
        assert (pinned[name] + ".").startswith(version + "."), name
    assert pinned["jaxlib"] == pinned["jax"]
    python = project["requires-python"].removeprefix(">=")
    assert f'python: "{python}", constraint' in WORKFLOW.read_text()


MAX_LINES_OF_FILE = 350
MAX_LINES_OF_FUNCTION = 70  # of code, without the docstring, comments and blank lines


def lines_of_code(function, source):
    """The number of lines of a function that are neither docstring nor comment nor blank."""
    lines = set(range(function.lineno, function.end_lineno + 1))
    if ast.get_docstring(function) is not None:
        lines -= set(range(function.body[0].lineno, function.body[0].end_lineno + 1))
    texts = (source[line - 1].strip() for line in lines)
    return sum(bool(text) and not text.startswith("#") for text in texts)


def test_files_and_functions_are_short():
    too_long = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name, text = path.relative_to(PACKAGE).as_posix(), path.read_text()
        source = text.splitlines()
        if len(source) > MAX_LINES_OF_FILE:
            too_long.append(f"{name}: {len(source)} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = lines_of_code(node, source)
                if lines > MAX_LINES_OF_FUNCTION:
                    too_long.append(f"{name}: {node.name} has {lines} lines of code")
    assert not too_long, "\n".join(too_long)
