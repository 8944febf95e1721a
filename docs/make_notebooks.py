"""Makes the notebooks of the site from numbered examples, and with --execute also runs them.

python docs/make_notebooks.py [--execute]
"""

import ast
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import v4

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
INSTALL = '%pip install -q "xsam-jax[examples] @ git+https://github.com/xsam-jax/xsam-jax"'
# Example, which names the notebook: title, call.
NOTEBOOKS = {
    "01_noisy_digits": ("XSAM in five minutes", "main(seeds=4, out=OUT)"),
    "08_flat_minima": ("How flat is your minimum?", "main(out=OUT)"),
}


def make(example: str, title: str, call: str) -> nbformat.NotebookNode:
    """Returns the notebook of an example: a cell for each definition, then its call."""
    source = (ROOT / "examples" / f"{example}.py").read_text(encoding="utf-8")
    source = source.replace("import tyro\n", "")  # of the command line
    lines, tree = source.splitlines(), ast.parse(source)
    first, *text = (ast.get_docstring(tree) or "").split("\n\n")
    text = [first, *text[1:]]  # without the command line
    cells = [v4.new_markdown_cell("\n\n".join([f"# {title}", *text]))]
    cells.append(v4.new_code_cell(INSTALL, metadata={"tags": ["skip-execution"]}))
    start, nodes = tree.body[0].end_lineno, tree.body[1:-1]
    for node, following in zip(nodes, [*nodes[1:], tree.body[-1]], strict=True):
        of_one_cell = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
        if isinstance(node, of_one_cell) and isinstance(following, of_one_cell):
            continue
        cells.append(v4.new_code_cell("\n".join(lines[start : node.end_lineno]).strip()))
        start = node.end_lineno
    show = (
        "from IPython.display import Image\n\nImage(next(str(path) for path in OUT.glob('*.png')))"
    )
    cells.append(v4.new_code_cell(f'OUT = Path("runs/{example}")\n{call}'))
    cells.append(v4.new_code_cell(show))
    for number, cell in enumerate(cells):
        cell["id"] = str(number)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def main(execute: bool) -> None:
    """Writes the notebooks."""
    for name, arguments in NOTEBOOKS.items():
        notebook = make(name, *arguments)
        FOLDER.mkdir(exist_ok=True)
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        if execute:
            folder = ROOT / "docs" / "_build"
            folder.mkdir(exist_ok=True)
            NotebookClient(
                notebook, timeout=600, resources={"metadata": {"path": folder}}
            ).execute()
            print(f"{name} runs")


if __name__ == "__main__":
    main("--execute" in sys.argv[1:])
