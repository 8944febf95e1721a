r"""Gates decide which steps are sharpness-aware. The other steps cost one gradient.

A gate is a function of the number of training steps, `gate(count) -> bool`. `every`, `after` and
`bernoulli` return such functions, and you can write your own. A gate that reads the gradient is a
`Gate`. The state counts the sharpness-aware steps: `optax.tree.get(opt_state, "sharp_steps")`.

**Deciding on the host.** `gated` decides within the compiled step, by `jax.lax.cond`. On CPU the
gradient of a convolution runs about thirty times slower inside a conditional (jaxlib 0.10), and
under `jax.vmap` a conditional whose condition is batched computes both branches. The host can
evaluate a gate that is a function of the step count. Pass the answer as the extra argument `sharp`,
a Python bool, and the program has no conditional. State and results are the same up to rounding::

    @functools.partial(jax.jit, static_argnames="sharp")
    def train_step(params, opt_state, batch, sharp):
        ...
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=value_fn, sharp=sharp)

    for count, batch in enumerate(batches):
        params, opt_state = train_step(params, opt_state, batch, sharp=bool(gate(count)))
"""

from xsam_jax.gating.gated import Gate, GatedState, gated, switch
from xsam_jax.gating.gates import GradientNormState, after, bernoulli, every, gradient_norm

__all__ = [
    "Gate",
    "GatedState",
    "GradientNormState",
    "after",
    "bernoulli",
    "every",
    "gated",
    "gradient_norm",
    "switch",
]
