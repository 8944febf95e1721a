"""SGD, SAM and XSAM on handwritten digits with 40 % wrong training labels, in bare JAX.

    python examples/01_noisy_digits.py        (or: make demo; --help lists the options)

Trains with each method at five radii, all 16 seeds at once. Takes under two minutes on two idle
cores, and draws two pictures. Expect a test accuracy of 82 % with SGD, 95 % with SAM and XSAM.
"""

from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from scipy.stats import sem
from sklearn.datasets import load_digits
from tqdm import tqdm

import xsam_jax as sx
from xsam_jax.analysis import plots

SHAPES, BATCH, STEPS = ((64, 256), (256, 256), (256, 10)), 64, 15  # steps per epoch
# fmt: off
METHODS: dict[str, Any] = {  # rho relative to SAM's, other arguments as published
    "sgd": lambda r: optax.identity(), "sam": sx.sam, "lsam": lambda r: sx.lsam(r, 2),
    "xsam": lambda r: sx.xsam(r, 2 * r, probe_every=STEPS, alpha_max=4.0, num_alphas=41),
    "gradient_norm_penalty": lambda r: sx.gradient_norm_penalty(r, 0.8), "cr_sam": sx.cr_sam,
    "esam": lambda r: sx.esam(r, 0.6, 0.5, jax.random.key(0)), "vasso": lambda r: sx.vasso(r, 0.4),
    "gam": lambda r: sx.gam(3 * r, 0.3 * r, 0.5, 0.6, 0.03), "wsam": lambda r: sx.wsam(r / 5, 0.9),
    "friendly_asam": lambda r: sx.friendly_asam(10 * r), "asam": lambda r: sx.asam(10 * r),
    "look_sam": lambda r: sx.look_sam(r / 2, 0.7, 5), "decoupled_wsam": lambda r: optax.identity(),
    "slerp_sam": lambda r: sx.slerp_sam(r, 1.5), "gsam": lambda r: sx.gsam(r, 0.4),
    "friendly_sam": sx.friendly_sam, "msam": lambda r: sx.msam(r, 2), "fisher_sam": sx.fisher_sam,
}
# fmt: on


def train(start: Any, rho: Any, images: Any, held_out: Any, method: str) -> Any:
    """Trains with one seed. No step counter depends on it, so vmap leaves `lax.cond` alone."""
    labels, kernels, batches = start

    def apply(params: Any, x: jax.Array) -> jax.Array:
        (w1, b1), (w2, b2), (w3, b3) = params
        return jax.nn.relu(jax.nn.relu(x @ w1 + b1) @ w2 + b2) @ w3 + b3

    schedule = optax.cosine_decay_schedule(0.05, len(batches))
    sgd = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(schedule, momentum=0.9))
    tx: Any = optax.chain(METHODS[method](rho), sgd)
    if method == "decoupled_wsam":  # takes the optimizer inside
        tx = sx.decoupled_wsam(sgd, schedule, 2 * rho, gamma=0.9)

    def train_step(carry: Any, rows: jax.Array) -> Any:
        params, opt_state = carry

        def losses_fn(params: Any) -> jax.Array:  # of each image: only ESAM uses it
            logits = apply(params, images[rows])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])

        loss: Any = {"value_fn": lambda params: losses_fn(params).mean(), "losses_fn": losses_fn}
        grads = jax.grad(loss["value_fn"])(params)
        updates, opt_state = tx.update(grads, opt_state, params, **loss)
        found = [optax.tree.get(opt_state, name, jnp.nan) for name in ("alpha", "psi")]
        return (optax.apply_updates(params, updates), opt_state), found

    params = [(kernel, jnp.zeros(kernel.shape[1])) for kernel in kernels]
    (params, _), found = jax.lax.scan(train_step, (params, tx.init(params)), batches)
    return [100 * jnp.mean(apply(params, x).argmax(-1) == y) for x, y in held_out], found


def main(
    method: tuple[Literal["all", *METHODS], ...] = ("sgd", "sam", "xsam"),  # type: ignore
    rho: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7),
    seeds: int = 16,
    epochs: int = 60,
    out: Path = Path("runs/noisy_digits"),
) -> None:
    if not all(number > 0 for number in (seeds - 1, epochs, *rho)):
        raise SystemExit("seeds must be at least 2, epochs at least 1, every rho above 0")
    (images, labels), rng = load_digits(return_X_y=True), np.random.default_rng(0)
    parts = np.split(rng.permutation(len(labels)), [1000, 1297])
    (images, labels), *held_out = [(images[part].astype("f") / 16, labels[part]) for part in parts]
    rows = rng.permuted(np.tile(np.arange(1000), (seeds, epochs + 1, 1)), axis=-1)
    labels = (labels + (rows[:, 0] < 400) * rng.integers(1, 10, (seeds, 1000))) % 10
    kernels = [rng.normal(0, n**-0.5, (seeds, n, m)).astype("f") for n, m in SHAPES]
    start = labels, kernels, rows[:, 1:, : STEPS * BATCH].reshape(seeds, -1, BATCH)
    run = jax.jit(jax.vmap(train, in_axes=(0, None, None, None, None)), static_argnums=4)
    runs: Any = {name: [] for name in (METHODS if "all" in method else method)}
    for name, r in tqdm([(n, r) for n in runs for r in rho[: 1 if n == "sgd" else None]]):
        runs[name].append(jax.device_get(run(start, r, images, held_out, name)))

    print(f"{'validation at':22}{''.join(f'{r:7g}' for r in rho)}   test (standard error)")
    tests, curves, best = {}, {}, {}
    for name, results in runs.items():
        validation, test = np.array([accuracies for accuracies, _ in results]).swapaxes(0, 1)
        means, flat = validation.mean(axis=1), np.ones(len(rho))
        curves[name] = test.mean(axis=1) * flat, sem(test, axis=1) * flat
        best[name] = results[i := int(means.argmax())][1]
        tests[name] = t = test[i]
        row = "".join(f"{mean:6.1f}{' *'[int(mean == means.max())]}" for mean in means)
        print(f"{name:22}{row:{7 * len(rho)}} {t.mean():5.1f} ± {t.std(ddof=1):.1f} ({sem(t):.1f})")
    base = "sam" if "sam" in tests else next(iter(tests))
    for name in [name for name in tests if name != base]:
        gap, error = np.mean(tests[name] - tests[base]), sem(tests[name] - tests[base])
        print(f"{name} - {base}: {gap:+.1f} ({error:.1f}){', a tie' * int(abs(gap) < 2 * error)}")
    pictures: Any = {"accuracy_over_rho": (rho, curves, "$\\rho$", "test accuracy (%)")}
    if "xsam" in runs:
        a, psi = (x.reshape(seeds, epochs, -1).mean(-1) for x in best["xsam"])
        lines = {"$\\alpha^*$": (a.mean(0), sem(a)), "$\\psi$": (psi.mean(0), sem(psi))}
        pictures["alpha_and_psi"] = range(1, epochs + 1), lines, "epoch", "XSAM at the best rho"
    out.mkdir(parents=True, exist_ok=True)
    for name, (x, lines, xlabel, ylabel) in pictures.items():
        axes: Any = plots.average_sharpness(x, lines)
        axes.set(xlabel=f"{xlabel} (band: ± 2 standard errors)", ylabel=ylabel)
        axes.figure.savefig(out / f"{name}.png", dpi=200, bbox_inches="tight")


if __name__ == "__main__":
    tyro.cli(main)
