"""Runs the numbered examples, and keeps their output and pictures for the gallery of the site.

python docs/run_examples.py [NAME ...]        (from the root of a clone; all take ten minutes)
"""

import datetime
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
GALLERY = ROOT / "docs" / "gallery"


def processor() -> str:
    """Returns the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


def run(example: Path) -> None:
    """Runs an example, and keeps its output and its picture."""
    with tempfile.TemporaryDirectory() as folder:
        draws = "savefig" in example.read_text()
        options = ["--out", folder] if draws else []
        command = [sys.executable, "-m", f"examples.{example.stem}", *options]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        for picture in Path(folder).glob("*.png"):
            (GALLERY / f"{example.stem}.png").write_bytes(picture.read_bytes())
    version = importlib.metadata.version("jax")
    where = f"jax {version}, {os.cpu_count()} cores of {processor()}, {datetime.date.today()}"
    output = done.stdout.replace(folder, "runs")
    (GALLERY / f"{example.stem}.txt").write_text(f"# {where}\n{output}")


if __name__ == "__main__":
    for found in sorted((ROOT / "examples").glob("[0-9]*.py")):
        if found.stem in sys.argv[1:] or not sys.argv[1:]:
            print(found.stem, flush=True)
            run(found)
