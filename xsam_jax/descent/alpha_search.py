"""Searches for the highest loss over a grid of alphas, inside a compiled program.

Each search takes `loss_at(alpha) -> scalar` and the grid, a vector. It returns the index of the
maximum and its loss, -inf if no loss was finite. A loss that is not finite never wins.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from xsam_jax import _checks as checks
from xsam_jax._devices import varying_like

LossAt = Callable[[jax.Array], jax.Array]
BatchSize: TypeAlias = int | Literal["all"] | None

# On CPU a convolution vmapped over its kernels is slow, and one alpha at a time is fastest. On TPU,
# so many at a time need no more memory than a gradient, and raise the peak of a step by at most 1 %
# (docs/benchmarks.md). A GPU was not measured.
ACCELERATOR_BATCH_SIZE = 3
# A larger model keeps the device busy with one alpha, and copies of its parameters need memory.
LARGE_MODEL = 50_000_000


def check_batch_size(probe_batch_size: Any) -> None:
    """Raises unless it is None, "all", or a positive integer.

    Args:
      probe_batch_size: the argument of that name.

    Example:
      >>> check_batch_size("all")
    """
    if isinstance(probe_batch_size, str):
        checks.choice("probe_batch_size", probe_batch_size, ("all",))
    elif probe_batch_size is not None:
        checks.static_integer("probe_batch_size", probe_batch_size, 1)


def grid_search(
    loss_at: LossAt, alphas: jax.Array, batch_size: BatchSize = None, num_params: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Evaluates every alpha. The first maximum wins.

    Args:
      loss_at: the loss as a function of a scalar alpha.
      alphas: the grid, of shape (n,).
      batch_size: the number of losses that `jax.vmap` evaluates together, "all" for the whole grid,
        or None: 1 on CPU and for a large model, `ACCELERATOR_BATCH_SIZE` elsewhere.
      num_params: the number of parameters. More than `LARGE_MODEL` make the model a large one.

    Returns:
      The index of the maximum, int32, and its loss.

    Example:
      >>> index, loss = grid_search(lambda a: -((a - 1.2) ** 2), jnp.linspace(0.0, 2.0, 21))
      >>> int(index)
      12
    """

    def losses_in_chunks(size: int) -> Callable[[jax.Array], jax.Array]:
        if size == 1:
            return lambda alphas: jax.lax.map(loss_at, alphas)
        if size >= alphas.size:
            return jax.vmap(loss_at)
        return lambda alphas: jax.lax.map(loss_at, alphas, batch_size=size)

    if batch_size is None and num_params > LARGE_MODEL:
        batch_size = 1
    if batch_size is None:
        losses = jax.lax.platform_dependent(
            alphas, cpu=losses_in_chunks(1), default=losses_in_chunks(ACCELERATOR_BATCH_SIZE)
        )
    else:
        losses = losses_in_chunks(alphas.size if batch_size == "all" else batch_size)(alphas)
    losses = _finite_or_lowest(losses)
    index = jnp.argmax(losses).astype(jnp.int32)
    return index, losses[index]


def section_search(loss_at: LossAt, alphas: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds the maximum of a loss that rises, then falls over the grid, by Fibonacci search.

    It compares two interior points at Fibonacci distances. The maximum cannot lie beyond the lower
    one, so the interval is cut there, and the other point stays interior at the next distance.
    Each cut takes one evaluation: 7 for 21 points, 8 for 41. Of two equal losses the earlier point
    is kept. If the loss has several local maxima, it finds one of them.

    Args:
      loss_at: the loss as a function of a scalar alpha.
      alphas: the grid, of shape (n,).

    Returns:
      The index of the maximum, int32, and its loss.

    Example:
      >>> index, loss = section_search(lambda a: -((a - 1.2) ** 2), jnp.linspace(0.0, 2.0, 21))
      >>> int(index)
      12

    References:
      Kiefer, `Sequential minimax search for a maximum
      <https://doi.org/10.1090/S0002-9939-1953-0055639-3>`_, 1953
    """
    size = alphas.size
    fibonacci = [1, 2, 3]
    while fibonacci[-2] <= size:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    distances = jnp.asarray(fibonacci, jnp.int32)
    top = len(fibonacci) - 1

    # The grid is 1..size inside the open interval (low, low + distances[level]). Its two inner
    # points are low + distances[level - 2] and low + distances[level - 1]. Points beyond the grid
    # count as -inf, and so does the right point at the start, which is beyond it.
    def cut(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        level = top - i
        low, known, known_loss, new = carry
        new_loss = _finite_or_lowest(loss_at(alphas[jnp.minimum(new, size) - 1]))
        new_loss = jnp.where(new <= size, new_loss, -jnp.inf)
        new_is_left = new < known
        keep_new = (new_loss > known_loss) | ((new_loss == known_loss) & new_is_left)
        keep_left = keep_new == new_is_left
        low = jnp.where(keep_left, low, low + distances[level - 2])
        kept, kept_loss = jnp.where(keep_new, new, known), jnp.where(keep_new, new_loss, known_loss)
        # A kept left point is the right one of the new interval, and vice versa.
        following = low + distances[jnp.where(keep_left, jnp.maximum(level - 3, 0), level - 2)]
        return low, kept, kept_loss, following

    start = (
        jnp.int32(0),
        distances[top - 1],
        jnp.asarray(-jnp.inf, alphas.dtype),
        distances[top - 2],
    )
    _, best, loss, _ = jax.lax.fori_loop(0, top - 1, cut, varying_like(start, alphas))
    return best - 1, loss


def _finite_or_lowest(loss: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(loss), loss, -jnp.inf)
