r"""Gates: when a step is sharpness-aware. The other steps cost one gradient.

A gate is a function of the number of training steps taken, `gate(count) -> bool`; `every`, `after`
and `bernoulli` make such functions, and so may you. One that has to see the gradient is a `Gate`.
The state counts the gradients taken, `optax.tree.get(opt_state, "gradient_evaluations")`.

**Deciding on the host.** `gated` decides within the compiled step, by `jax.lax.cond`. On CPU the
gradient of a convolution runs about thirty times slower in there than outside (jaxlib 0.10), and
under `jax.vmap` a conditional whose condition is batched computes both branches. A gate that is a
function can be asked outside as well: give the answer as the extra argument `sharp`, a Python bool,
and the conditional disappears. State and results are the same, up to the rounding of another
program::

    @functools.partial(jax.jit, static_argnames="sharp")
    def train_step(params, opt_state, batch, sharp):
        ...
        updates, opt_state = tx.update(grads, opt_state, params, value_fn=value_fn, sharp=sharp)

    for count, batch in enumerate(batches):
        params, opt_state = train_step(params, opt_state, batch, sharp=bool(gate(count)))
"""

from xsam_jax.gating.gates import GradientNormState, after, bernoulli, every, gradient_norm
from xsam_jax.gating.transform import Gate, GatedState, GradientCounter, gated, switch

__all__ = [
    "Gate",
    "GatedState",
    "GradientCounter",
    "GradientNormState",
    "after",
    "bernoulli",
    "every",
    "gated",
    "gradient_norm",
    "switch",
]
