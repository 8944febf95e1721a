"""Installs a wheel in a new environment with jax and optax alone, and runs the README's code.

python tests/try_wheel.py dist/xsam_jax-0.1.0-py3-none-any.whl
"""

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
SETUP = """
import jax
import jax.numpy as jnp
import optax

params = {"w": jnp.ones((3, 2))}
batch = jnp.arange(6.0).reshape(2, 3) / 6
loss_fn = lambda params, batch: jnp.mean((batch @ params["w"] - 1.0) ** 2)
"""
STEPS = """
losses = []
for _ in range(5):
    params, opt_state, loss = train_step(params, opt_state, batch)
    losses.append(float(loss))
assert losses[-1] < losses[0], losses
assert not any(name in sys.modules for name in ("flax", "matplotlib")), "imported too much"
print("the README's step trains:", losses[0], "to", losses[-1])
"""


def readme_code() -> str:
    """Returns the right side of the README's first diff."""
    diff = re.search(r"```diff\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert diff is not None
    return "\n".join(line[1:] for line in diff[1].splitlines() if not line.startswith("-"))


def main(wheel: Path) -> None:
    """Installs the wheel, and runs the code outside of the clone."""
    print(f"{wheel.name}: {wheel.stat().st_size / 1024:.0f} KiB")
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, wheel.resolve()], check=True)
        code = f"import sys\n{SETUP}\n{readme_code()}\n{STEPS}"
        subprocess.run([python, "-c", code], cwd=folder, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
