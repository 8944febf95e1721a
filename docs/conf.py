"""Configuration of the site. `make docs` builds it, without a network."""

import ast
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from PIL import Image
from sphinx.application import Sphinx

import xsam_jax

ROOT = Path(__file__).parents[1]
OWNER = "xsam-jax/xsam-jax"
REPOSITORY = f"https://github.com/{OWNER}"

project = "xsam-jax"
author = "the authors of xsam-jax"
copyright = "2026, the authors of xsam-jax"
version = release = xsam_jax.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
templates_path = ["_templates"]
exclude_patterns = ["_build"]
autosummary_generate = ["reference.rst"]
smartquotes = False
default_role = "py:obj"  # `sam` in a docstring is a link to the page of sam

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
autodoc_typehints = "none"  # the docstrings describe the arguments
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_use_rtype = False
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "xsam-jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False


def rewrite_links(text: str, folder: Path) -> str:
    """Makes links of the site from links between files, which are for a reader on GitHub.

    Args:
      text: Markdown.
      folder: The folder of the file.
    """

    def rewrite(match: re.Match[str]) -> str:
        name, _, anchor = match[2].partition("#")
        path = (folder / name).resolve()
        if not name or not path.is_relative_to(ROOT) or match[1].startswith("!"):
            return match[0]
        page = PAGES.get(path.relative_to(ROOT).as_posix(), path)
        if isinstance(page, Path) and page.parent == ROOT / "docs" and page.is_file():
            page = page.name
        if isinstance(page, str):
            return f"{match[1]}(/{page}{'#' * bool(anchor)}{anchor})"
        kind = "tree" if path.is_dir() else "blob"
        return f"{match[1]}({REPOSITORY}/{kind}/main/{path.relative_to(ROOT).as_posix()})"

    link = r"(!?\[(?:[^][]|\[[^]]*\])*\])\((?!https?:)([^) ]*)\)"
    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)  # code is odd
    # A line that begins with % would be a comment.
    parts[::2] = [re.sub(r"\n *% ", " % ", re.sub(link, rewrite, part)) for part in parts[::2]]
    return "".join(parts)


# Names of examples in the navigation, where the file's own says little.
TITLES = {
    "02_flax_nnx": "Flax NNX",
    "03_flax_linen": "Flax linen",
    "09_lora": "LoRA",
    "10_faithful": "How near to the maximum",
    "12_is_rho_right": "Is rho right?",
}
# Files outside of docs/ that a page of the site includes.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples": "gallery/index.md",
    "examples/experiments/RESULTS.md": "results.md",
    "examples/experiments/RESULTS_TRANSFORMERS.md": "results_transformers.md",
}


def rewrite_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Rewrites the links of a page of docs/."""
    path = Path(app.srcdir) / f"{name}.md"
    if path.exists():
        source[0] = rewrite_links(source[0], path.parent)


def rewrite_included(app: Sphinx, path: Path, parent: str, source: list[str]) -> None:
    """Rewrites the links of a file that a page includes."""
    source[0] = rewrite_links(source[0], (Path(app.srcdir) / path).resolve().parent)


def write_gallery(app: Sphinx) -> None:
    """Writes a page for each numbered example, and the page that lists them."""
    folder = Path(app.srcdir) / "gallery"
    cards, pages, thumbnails = [], [], folder / "thumbnails"
    for path in sorted((ROOT / "examples").glob("[0-9]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        title, command, *text = (ast.get_docstring(tree) or "").split("\n\n")
        title = " ".join(title.rstrip(".").split())
        output = (folder / f"{path.stem}.txt").read_text(encoding="utf-8")
        where, _, output = output.removeprefix("# ").partition("\n")
        picture = f"{path.stem}.png" if (folder / f"{path.stem}.png").exists() else None
        if picture:
            thumbnails.mkdir(exist_ok=True)
            with Image.open(folder / picture) as image:
                image.thumbnail((600, 600))
                image.save(thumbnails / picture)
        page = [
            f"# {title}",
            f"```\n{command.split('   (')[0].strip()}\n```",
            *text,
            *([f"![{title}]({picture})"] if picture else []),
            f"## Output\n\nOf {where}:\n\n```text\n{output}```",
            f"## Code\n\n```{{literalinclude}} ../../examples/{path.name}\n"
            f":lines: {tree.body[0].end_lineno + 2}-\n```",
        ]
        notebook = f"docs/notebooks/{path.stem}.ipynb"
        if (ROOT / notebook).exists():
            colab = f"https://colab.research.google.com/github/{OWNER}/blob/main/{notebook}"
            page.insert(1, f"[Open in Colab]({colab}) as a notebook.")
        (folder / f"{path.stem}.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
        shown = f":img-top: thumbnails/{picture}\n:img-alt: {title}\n" if picture else ""
        card = (
            f":::{{grid-item-card}} {title}\n:link: {path.stem}\n:link-type: doc\n{shown}\n"
            f"`{path.stem}`\n:::"
        )
        cards.append((picture is None, card))  # those with pictures first
        pages.append(
            f"{TITLES.get(path.stem, path.stem[3:].replace('_', ' ').capitalize())} <{path.stem}>"
        )
    listing = [
        "# Examples",
        "Each is one file, which you can run and change. Outputs are stored, with their machine.",
        "::::{grid} 1 2 2 2\n:gutter: 3",
        *(card for _, card in sorted(cards, key=lambda pair: pair[0])),
        "::::",
        "\n".join(["```{toctree}", ":hidden:", "", *pages, "```"]),
    ]
    (folder / "index.md").write_text("\n\n".join(listing) + "\n", encoding="utf-8")


def write_mathml(self: Any, node: nodes.Node) -> None:
    """Writes mathematics as MathML, which browsers render without a script."""
    if isinstance(node, nodes.math_block):
        for formula in re.split(r"\n\s*\n", node.astext().strip()):
            tree = latex2mathml.tex2mathml(formula, as_block=True)
            self.body.append(f'<div class="math-block">{tree}</div>')
    else:
        self.body.append(str(latex2mathml.tex2mathml(node.astext())))
    raise nodes.SkipNode


def name_levels(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.Node | None
) -> None:
    """Names the level of the headings of the navigation, which the theme leaves out."""
    navigation = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = navigation.replace(
        'role="heading"', 'role="heading" aria-level="2"'
    )


def setup(app: Sphinx) -> None:
    """Registers the functions above."""
    app.connect("builder-inited", write_gallery)
    app.connect("source-read", rewrite_page)
    app.connect("include-read", rewrite_included)
    app.connect("html-page-context", name_levels, priority=900)  # after the theme
    app.add_html_math_renderer("mathml", (write_mathml, None), (write_mathml, None))
