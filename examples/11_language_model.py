"""A Transformer language model: AdamW against SAM and XSAM in the last third of training.

    python -m examples.11_language_model        (or: make language-model; --help lists the options)

Trains five small models per method on characters of Python's help, or of a text file, and rounds
their matrices. Takes 5 minutes on one core. Expect that rounding to 3 bits costs AdamW 0.22, SAM
0.18 and XSAM 0.15. But SAM and XSAM begin with a loss that is 0.013 and 0.033 higher. So they are
ahead at 3 bits, by 0.03, and behind at 4 bits and more. A larger `--rho` does more of both.
"""

from pathlib import Path
from pydoc_data import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import tyro
from flax import nnx
from scipy import stats

from xsam_jax import gated, sam, xsam
from xsam_jax.analysis import plots
from xsam_jax.gating import after

CONTEXT, BATCH, WIDTH, HEADS, LAYERS = 64, 8, 64, 4, 2
BITS, WINDOWS = (32, 6, 5, 4, 3), 256  # number of parts of the held-out text that are evaluated


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.query_key_value = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs)
        self.mix_heads = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.expand = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.contract = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        heads = self.query_key_value(self.norms[0](x)).reshape(*x.shape[:2], 3, HEADS, -1)
        values = jax.nn.dot_product_attention(*jnp.moveaxis(heads, 2, 0), is_causal=True)
        x += self.mix_heads(values.reshape(x.shape))
        return x + self.contract(nnx.gelu(self.expand(self.norms[1](x))))


class LanguageModel(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.tokens = nnx.Embed(128, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = nnx.Sequential(*[Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 128, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.tokens(tokens) + self.positions(jnp.arange(CONTEXT))
        return self.head(self.norm(self.blocks(x)))


def make_optimizers(rho: float, steps: int) -> dict[str, Any]:
    """Returns three optimizers, which are equal until the learning rate decays."""
    start = 2 * steps // 3
    rate = optax.linear_schedule(3e-3, 0.0, steps - start, transition_begin=start)
    adamw = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.1))
    return {
        "adamw": optax.with_extra_args_support(adamw),
        "sam": optax.chain(gated(sam(rho), after(start)), adamw),
        "xsam": optax.chain(gated(xsam(rho, 2 * rho, probe_every=20), after(start)), adamw),
    }


def round_matrices(params: Any, bits: jax.Array) -> Any:
    """Rounds to the nearest of 2^bits - 1 values per output channel, symmetric about 0."""

    def rounded(weight: jax.Array) -> jax.Array:
        spacing = jnp.abs(weight).max(axis=0) / (2.0 ** (bits - 1) - 1)
        return jnp.round(weight / spacing) * spacing if weight.ndim == 2 else weight

    return jax.tree.map(rounded, params)


def train(params: Any, starts: Any, text: Any, held_out: Any, graphdef: Any, tx: Any) -> jax.Array:
    """Trains one model, and returns its held-out loss at each number of bits."""

    def loss_fn(params: Any, windows: jax.Array) -> jax.Array:
        logits = nnx.merge(graphdef, params)(windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    def train_step(carry: Any, starts: jax.Array) -> tuple[Any, None]:
        params, opt_state = carry
        windows = text[starts[:, None] + jnp.arange(CONTEXT + 1)]
        value_fn = lambda params: loss_fn(params, windows)  # noqa: E731
        grads = jax.grad(value_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=value_fn)
        return (optax.apply_updates(params, updates), opt_state), None

    # The step counters begin here, so they are the same for all seeds. Under `jax.vmap` the gate
    # therefore stays a conditional, and only the last third of the steps computes two gradients.
    (params, _), _ = jax.lax.scan(train_step, (params, tx.init(params)), starts)
    return jax.lax.map(lambda b: loss_fn(round_matrices(params, b), held_out), jnp.array(BITS))


def main(
    text: tyro.conf.Positional[Path | None] = None,
    rho: float = 0.05,
    steps: int = 800,
    seeds: int = 5,
    first_seed: int = 0,
    out: Path = Path("runs/language_model"),
) -> None:
    """Train on a text file, by default on Python's help. The last tenth of it is held out."""
    if seeds < 2 or steps < 1 or not 0 < rho < np.inf:
        raise SystemExit("seeds must be 2 or more, steps at least 1, and rho positive and finite")
    if any(map(Path.is_file, ((out := out.expanduser()), *out.parents))):
        raise SystemExit(f"--out {out} is no folder: there is a file")
    if not (text is None or text.is_file()):
        raise SystemExit(f"{text} is no file")
    raw = "\n".join(topics.topics.values()).encode() if text is None else text.read_bytes()
    tokens = np.minimum(np.frombuffer(raw, np.uint8), 127).astype(np.int32)  # ASCII
    if len(tokens) < 20 * CONTEXT:
        raise SystemExit(f"text must have at least {20 * CONTEXT} characters, got {len(tokens)}")
    training, rest = np.split(tokens, [len(tokens) * 9 // 10])
    places = np.linspace(0, len(rest) - CONTEXT - 1, WINDOWS, dtype=int)
    held_out = rest[places[:, None] + np.arange(CONTEXT + 1)]
    models = [LanguageModel(nnx.Rngs(first_seed + i)) for i in range(seeds)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(nnx.state, models))
    rng, size = np.random.default_rng(first_seed), (seeds, steps, BATCH)
    starts = rng.integers(len(training) - CONTEXT, size=size)
    data = params, starts, training, held_out, nnx.graphdef(models[0])
    train_seeds = jax.jit(jax.vmap(train, [0, 0] + 4 * [None]), static_argnums=(4, 5))
    rows = [*(f"{b} bits" for b in BITS), *(f"rise to {b} bits" for b in BITS[1:])]
    table, gaps, halves = (pd.DataFrame(index=rows) for _ in range(3))
    values: dict[str, Any] = {}
    for name, tx in make_optimizers(rho, steps).items():
        losses = np.asarray(train_seeds(*data, tx), np.float64)  # of shape (seeds, bits)
        values[name] = np.hstack([losses, losses[:, 1:] - losses[:, :1]])
        gap = values[name] - values["adamw"]
        table[name], gaps[name] = values[name].mean(axis=0), gap.mean(axis=0)
        halves[name] = stats.t.ppf(0.975, seeds - 1) * stats.sem(gap)
    print(f"Held-out loss in nats per character, and its rise by rounding, mean of {seeds} seeds:")
    print(table.round(4), "Difference to AdamW with its 95 % interval, paired by seed:", sep="\n")
    print((gaps.map("{:+.4f}".format) + halves.map(" ± {:.4f}".format)).to_string())
    colors, ylabel, n = {"adamw": "#555555"} | plots.COLORS, "loss minus AdamW's", len(BITS)
    axes = gaps.head(n).plot(yerr=halves.head(n), color=colors, capsize=2, ylabel=ylabel)
    out.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(out / "loss_over_bits.png", dpi=200, bbox_inches="tight")


if __name__ == "__main__":
    tyro.cli(main)
