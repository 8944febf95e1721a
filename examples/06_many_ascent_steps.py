"""Why more ascent steps may make SAM worse, and not XSAM (figure 10b of the XSAM paper).

    python -m examples.06_many_ascent_steps        (or: make many-steps)

The loss is a ridge that bends. After k ascent steps, SAM applies the last gradient g_k at
the start. Its angle to the direction of the highest loss at distance rho_max is 4 degrees for k = 1
and 44 for k = 4. XSAM probes between the ascent and g_k and finds the same highest loss for all k.
Takes five seconds and draws the surface and the rises.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib import pyplot as plt

from xsam_jax import analysis, sam
from xsam_jax.analysis import plots

RHO, RHO_MAX, STEPS = 0.3, 0.8, (1, 2, 3, 4)
START = jnp.array([1.0, 0.0])


def loss_fn(x: Any) -> jax.Array:
    """Returns the loss: a ridge on the unit circle, rising with the angle."""
    return jnp.arctan2(x[1], x[0]) - 2 * (jnp.hypot(x[0], x[1]) - 1) ** 2


def highest() -> np.ndarray:
    """Returns the direction of the highest loss at the distance, by trying 3,600."""
    angles = np.linspace(0, 2 * np.pi, 3600, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return directions[np.argmax(jax.vmap(loss_fn)(START + RHO_MAX * directions))]


def study(steps: int) -> dict[str, Any]:
    """Measures an ascent of so many steps."""
    radii: Any = {"rho": RHO, "rho_max": RHO_MAX, "steps": steps}
    plane = analysis.ascent_plane(loss_fn, START, rho=RHO, steps=steps)
    axes = np.stack([plane.direction_x, plane.direction_y])  # of the plane, which is all there is
    tx = sam(RHO, steps=steps)  # its update is g_k
    grads, opt_state = jax.grad(loss_fn)(START), tx.init(START)
    gradient, _ = tx.update(grads, opt_state, START, value_fn=loss_fn)
    gradient = gradient / np.linalg.norm(gradient)
    rise, alpha = analysis.max_alpha_sharpness(loss_fn, START, **radii, num_alphas=41)
    along = analysis.alpha_profile(loss_fn, START, [1.0], **radii)[0] - float(loss_fn(START))
    off = np.degrees(np.arccos(np.clip(gradient @ highest(), -1, 1)))
    found = {"path": START + plane.path @ axes, "gradient": gradient, "off": off}
    return found | {"along": along, "alpha": alpha, "rise": rise}


def draw(found: dict[int, dict[str, Any]]) -> Any:
    """Returns the surface with the longest ascent and the gradients, and the rises over steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.6, 2.7), layout="constrained")
    xs, ys = np.linspace(0.05, 2.0, 60), np.linspace(-0.95, 1.2, 60)
    surface = analysis.loss_surface(loss_fn, jnp.zeros(2), jnp.eye(2)[0], jnp.eye(2)[1], xs, ys)
    plots.loss_surface(xs, ys, surface, ax=left)
    left.plot(*found[STEPS[-1]]["path"].T, "k.-", zorder=4)
    circle = plt.Circle((1.0, 0.0), RHO_MAX, fill=False, linestyle="-.")
    left.add_patch(circle)
    for steps, row in found.items():
        arrow = RHO_MAX * row["gradient"]
        look: Any = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.013, "zorder": 3}
        left.quiver(*START, *arrow, color="white", edgecolor="k", linewidth=0.5, **look)
        place = dict(ha="center", va="center", fontsize=8)
        box = dict(boxstyle="circle,pad=0.1", facecolor="white")
        left.text(*(START + 0.72 * arrow), f"$g_{steps}$", bbox=box, **place, zorder=5)
    left.plot(
        *(START + RHO_MAX * highest()), "*", color="white", markeredgecolor="k", ms=10, zorder=6
    )
    left.set(xlabel="$x$ (star: highest loss at $\\rho_m$)", ylabel="$y$", aspect="equal")
    for name, key, style in (("sam", "along", "o-"), ("xsam", "rise", "s--")):
        label = {"sam": "along $g_k$ (SAM)", "xsam": "highest over $\\alpha$ (XSAM)"}[name]
        values = [row[key] for row in found.values()]
        right.plot(STEPS, values, style, color=plots.COLORS[name], label=label)
    right.axhline(0, color="k", lw=0.5)
    right.set(xlabel="ascent steps $k$", ylabel="rise of the loss at $\\rho_m$", xticks=STEPS)
    right.legend(loc="lower left")
    return figure


def main(out: Path = Path("runs/many_steps")) -> None:
    """Compare the last gradient of one to four ascent steps with the highest loss around.

    Args:
        out: folder of the picture
    """
    out = out.expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"--out is no folder: {error}") from None
    found = {steps: study(steps) for steps in STEPS}
    print("steps  degrees from g_k to the highest  rise along g_k  highest rise over alpha")
    for steps, row in found.items():
        numbers = f"{row['off']:32.1f}  {row['along']:14.3f}  {row['rise']:.3f}"
        print(f"{steps:5}  {numbers} at alpha {row['alpha']:.2f}")
    draw(found).savefig(out / "many_ascent_steps.png", dpi=200, bbox_inches="tight")
    print("wrote", out / "many_ascent_steps.png")


if __name__ == "__main__":
    with plt.rc_context({"font.size": 8, "legend.frameon": False, "lines.markersize": 4}):
        tyro.cli(main)
