"""Beam search, as one compiled loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

WORST = -1e9  # a score that no translation has


class Beams(NamedTuple):
    """The state of the search.

    Attributes:
      length: The number of tokens so far.
      tokens: Those of the translations that go on, (sentences, beam, limit).
      scores: Their log probabilities, (sentences, beam).
      ended: The tokens of the translations that have ended, like `tokens`.
      ended_scores: Their log probabilities, divided by a power of their length.
      cache: The arrays that `step` keeps, their first axis sentences times beam.
    """

    length: jax.Array
    tokens: jax.Array
    scores: jax.Array
    ended: jax.Array
    ended_scores: jax.Array
    cache: Any


def beam_search(
    step: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
    cache: Any,
    sentences: int,
    *,
    beam: int,
    limit: int,
    bos: int,
    eos: int,
    length_penalty: float,
) -> jax.Array:
    """Returns the best translation found of each sentence, (sentences, limit).

    At each step the best `2 beam` continuations of all translations are ranked by their log
    probabilities. Those among the first `beam` that end are kept, and the first `beam` that do not
    end go on. A sentence is done when `beam` translations have ended. Of these the one with the
    highest log probability, divided by its length with `eos` to the power `length_penalty`, wins.
    With `beam` 1 this is greedy.

    Args:
      step: `step(tokens, position, cache)` returns logits (rows, vocabulary) and the new cache,
        given the last token of each row. A row is a translation, of which a sentence has `beam`.
      cache: The cache before the first step, arrays whose first axis is rows.
      sentences: Their number.
      beam: Number of translations of each sentence.
      limit: Number of tokens, at which translations are made to end, `eos` included.
      bos: The token before the first.
      eos: The token that ends a translation. It fills up the rest.
      length_penalty: The exponent.
    """
    rows = jnp.arange(sentences)[:, None]
    tokens = jnp.full((sentences, beam, limit), eos, jnp.int32)
    scores = jnp.full((sentences, beam), WORST).at[:, 0].set(0.0)
    start = Beams(jnp.int32(0), tokens, scores, tokens, jnp.full((sentences, beam), WORST), cache)

    def is_done(scores: jax.Array) -> jax.Array:
        return scores.min(axis=1) > WORST / 2

    def goes_on(beams: Beams) -> jax.Array:
        return (beams.length < limit) & ~is_done(beams.ended_scores).all()

    def advance(beams: Beams) -> Beams:
        at = beams.length
        last = jnp.where(at == 0, bos, beams.tokens[:, :, at - 1])
        logits, cache = step(last.reshape(-1), at, beams.cache)
        log_probs = jax.nn.log_softmax(logits).reshape(sentences, beam, -1)
        size = log_probs.shape[-1]
        # The last token is the end, whatever its probability.
        others = jnp.where((at == limit - 1) & (jnp.arange(size) != eos), WORST, 0.0)
        all_scores = (beams.scores[..., None] + log_probs + others).reshape(sentences, -1)
        best, index = jax.lax.top_k(all_scores, min(2 * beam, beam * size))
        parents, new = index // size, index % size
        found = beams.tokens[rows, parents].at[:, :, at].set(new)
        ends = new == eos

        in_front = ends & (jnp.arange(new.shape[1]) < beam) & (best > WORST / 2)
        in_front &= ~is_done(beams.ended_scores)[:, None]
        normalized = best / (at + 1.0) ** length_penalty
        pooled = jnp.concatenate([beams.ended_scores, jnp.where(in_front, normalized, WORST)], 1)
        ended_scores, kept = jax.lax.top_k(pooled, beam)
        ended = jnp.concatenate([beams.ended, found], axis=1)[rows, kept]

        scores, chosen = jax.lax.top_k(jnp.where(ends, 2 * WORST, best), beam)
        of_chosen = (rows * beam + parents[rows, chosen]).reshape(-1)
        cache = jax.tree.map(lambda leaf: leaf[of_chosen], cache)
        return Beams(at + 1, found[rows, chosen], scores, ended, ended_scores, cache)

    return jax.lax.while_loop(goes_on, advance, start).ended[:, 0]
