"""The pages of the site: their code runs, and no public name and no page is missing."""

import importlib
import importlib.util
import re
import shutil
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CODE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
MODULES = [f"xsam_jax{name}" for name in ("", ".ascent", ".descent", ".gating", ".analysis")]


def blocks(name):
    return CODE.findall((DOCS / f"{name}.md").read_text(encoding="utf-8"))


def execute(code, module):
    exec(compile(code, "page", "exec"), module.__dict__)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("code", blocks("getting_started"), ids=["jax", "nnx", "linen", "equinox"])
def test_programs_of_getting_started_train(code, capsys):
    execute(code, types.ModuleType("page"))
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[0] > 1
    assert losses[1] < 0.2
    assert losses[2] < losses[1]


@pytest.mark.parametrize("page", ["faq", "adding_a_method", "choosing"])
def test_code_of_a_page_runs_after_the_setup_of_the_recipes(page):
    (setup,) = re.findall(
        r"^## Setup\n\n```python\n(.*?)^```",
        (DOCS / "recipes.md").read_text(),
        re.DOTALL | re.MULTILINE,
    )
    module = types.ModuleType("page")
    execute(setup, module)
    for code in blocks(page):
        execute(code, module)
        # Every transform of a page takes a step.
        if "tx = " in code and "groups" not in code:
            module.make_train_step(module.tx)(
                module.params, module.tx.init(module.params), module.batch
            )


def test_every_public_name_has_a_page():
    text = (DOCS / "reference.rst").read_text(encoding="utf-8")
    listed, module = set(), ""
    for line in text.splitlines():
        if found := re.fullmatch(r"\.\. currentmodule:: (\S+)", line):
            module = found[1]
        elif found := re.fullmatch(r"   ([\w.]+)|\.\. py:data:: (\w+)", line):
            listed.add(f"{module}.{found[1] or found[2]}")
    public = set()
    for name in (*MODULES, "xsam_jax.methods", "xsam_jax.analysis.plots"):
        for attribute in importlib.import_module(name).__all__:
            value = getattr(importlib.import_module(name), attribute)
            if not isinstance(value, types.ModuleType):
                public.add(f"{name}.{attribute}")
    # A name of the package is listed once, there.
    package = importlib.import_module("xsam_jax").__all__
    once = {n for n in public if n.count(".") == 1 or n.rpartition(".")[2] not in package}
    assert once <= listed
    assert all(resolves(name) for name in listed)


def resolves(name):
    module, _, attribute = name.rpartition(".")
    return hasattr(importlib.import_module(module), attribute)


def test_every_page_is_in_the_navigation():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    trees = re.findall(r"```\{toctree\}.*?```", index, re.DOTALL)
    listed = re.findall(r"^[\w/]+$", "\n".join(trees), re.MULTILINE)
    pages = {path.stem for path in DOCS.glob("*.md")} | {"reference", "gallery/index"}
    assert set(listed) == pages - {"index"}


def test_every_example_has_a_stored_output_that_says_where_it_was_made():
    for path in (ROOT / "examples").glob("[0-9]*.py"):
        stored = DOCS / "gallery" / f"{path.stem}.txt"
        first, *output = stored.read_text(encoding="utf-8").splitlines()
        assert re.fullmatch(r"# jax [\d.]+, \d+ cores of .+, 20\d\d-\d\d-\d\d", first)
        assert output
        assert stored.with_suffix(".png").exists() == ("savefig" in path.read_text())


def load(name):
    pytest.importorskip("sphinx", reason="the site needs the extra docs")
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_notebooks_are_those_of_the_examples():
    made = load("make_notebooks")
    assert {path.stem for path in (DOCS / "notebooks").iterdir()} == set(made.NOTEBOOKS)
    for name, arguments in made.NOTEBOOKS.items():
        path = DOCS / "notebooks" / f"{name}.ipynb"
        assert path.read_text() == made.nbformat.writes(made.make(name, *arguments)) + "\n"


def test_each_example_has_a_page_and_a_card(tmp_path):
    conf = load("conf")
    shutil.copytree(DOCS / "gallery", tmp_path / "gallery", ignore=shutil.ignore_patterns("*.md"))
    conf.write_gallery(types.SimpleNamespace(srcdir=tmp_path))
    index = (tmp_path / "gallery" / "index.md").read_text(encoding="utf-8")
    for path in (ROOT / "examples").glob("[0-9]*.py"):
        assert f":link: {path.stem}\n" in index
        page = (tmp_path / "gallery" / f"{path.stem}.md").read_text(encoding="utf-8")
        assert f"python -m examples.{path.stem}\n```" in page
        assert ("Open in Colab" in page) == (path.stem in load("make_notebooks").NOTEBOOKS)
        with_picture = (DOCS / "gallery" / f"{path.stem}.png").exists()
        assert (f"({path.stem}.png)" in page) == with_picture


def test_links_between_files_become_links_of_the_site():
    conf = load("conf")

    def rewritten(link, folder=DOCS):
        return conf.rewrite_links(f"[x]({link})", folder)[4:-1]

    assert rewritten("recipes.md#setup") == "/recipes.md#setup"
    assert rewritten("../CONTRIBUTING.md#style") == "/contributing.md#style"
    assert rewritten("docs/methods.md", ROOT) == "/methods.md"
    assert rewritten("examples", ROOT) == "/gallery/index.md"
    experiments = ROOT / "examples" / "experiments"
    assert rewritten("../../docs/benchmarks.md", experiments) == "/benchmarks.md"
    assert rewritten("LOG.md", experiments).endswith("/blob/main/examples/experiments/LOG.md")
    assert rewritten("runs", experiments).endswith("/tree/main/examples/experiments/runs")
    assert rewritten("#here") == "#here"
    code = "```python\nPARTS[name](jax.grad(f))\n```"
    assert conf.rewrite_links(code, DOCS) == code
    assert conf.rewrite_links("4. With 40\n   % wrong labels", DOCS) == "4. With 40 % wrong labels"
    assert rewritten("https://arxiv.org/abs/2010.01412") == "https://arxiv.org/abs/2010.01412"
