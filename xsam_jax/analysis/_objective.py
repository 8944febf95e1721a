"""The loss to analyse: checked, averaged over batches, and compiled once."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xsam_jax import _tree as tree

Batches = Iterable[Any] | None
Progress = Callable[[int], Any] | None


class Objective:
    r"""The loss :math:`L(\theta)`, the mean of `value_fn(params, batch)` over batches.

    Args:
      value_fn: the loss as a pure function of the parameters, or of them and a batch.
      params: :math:`\theta`, a pytree of real floating-point arrays. Half precision becomes
        float32, because small steps would be rounded away.
      batches: a re-iterable of batches, pytrees of arrays, or None.

    Raises:
      TypeError: `value_fn` is not a function that returns a real scalar, a leaf of `params` is not
        a real floating-point array, or `batches` is a single batch, or allows one pass only.
      ValueError: `params` has no entries, or there is no batch.
    """

    def __init__(self, value_fn: Callable[..., Any], params: Any, batches: Batches) -> None:
        check_function(value_fn)
        # jax.jit caches by the hash of value_fn. A partial can always be hashed.
        self._value_fn = value_fn if _is_hashable(value_fn) else functools.partial(value_fn)
        self.params = _arrays(params)
        self._batches = batches
        self._count: int | None = None if batches is not None else 1
        arguments = () if batches is None else (_first_batch(batches),)
        _check_result(value_fn, self.params, arguments, batches)

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    def _arguments(self) -> Iterator[tuple[Any, ...]]:
        """Yields the further arguments of the loss, and raises if a pass has fewer batches."""
        if self._batches is None:
            yield ()
            return
        seen = 0
        for batch in self._batches:
            yield (batch,)
            seen += 1
        if seen == 0 or self._count not in (None, seen):
            raise ValueError(
                f"batches had {self._count or 'some'} at first and {seen} in a later pass: it is "
                "iterated over many times, so pass a list, or an object whose __iter__ begins anew"
            )
        self._count = seen

    def value(self, params: Any | None = None, name: str = "the loss at params") -> float:
        """Returns the loss, or raises a FloatingPointError if it is not finite."""
        [value] = self.values(_here, self.params if params is None else params, [jnp.zeros(())])
        checked_finite(name, value)
        return float(value)

    def value_and_gradient(self, params: Any) -> tuple[float, Any]:
        """Returns loss and gradient, float32 (float64 under x64), or raises if not finite."""
        value, gradient = self._mean(add_value_and_gradient, (0.0, self.params), params)
        checked_finite("the loss", value)
        checked_finite("the norm of the gradient", tree.norm(gradient))
        return float(value), gradient

    def hessian_vector_product(self, vector: Any) -> Any:
        """Returns the Hessian times a tree, float32 (float64 under x64)."""
        return self._mean(add_product, self.params, self.params, vector)

    def _mean(self, add: Callable[..., Any], like: Any, *arguments: Any) -> Any:
        dtype = tree.accumulation_dtype()
        total = jax.tree.map(lambda leaf: jnp.zeros_like(leaf, dtype=dtype), like)
        for batch in self._arguments():
            total = add(self._value_fn, total, *arguments, *batch)
        assert self._count is not None
        return total if self._count == 1 else tree.scale(1.0 / self._count, total)

    def values(
        self,
        place: Callable[[Any, Any], Any],
        shared: Any,
        points: Any,
        points_per_call: int = 1,
        progress: Progress = None,
    ) -> np.ndarray:
        """Returns the losses at `place(shared, point)`, float64 of shape (points,), as they are.

        Args:
          place: maps `shared` and a point to parameters. Pass a module-level function. Others are
            compiled in every call.
          shared: the first argument of `place`, the same for all points.
          points: the list of its second arguments, pytrees of equal structure and shapes.
          points_per_call: the number of points that `jax.vmap` evaluates together.
          progress: called with the number of points evaluated since its last call.
        """
        chunks = [points[i : i + points_per_call] for i in range(0, len(points), points_per_call)]
        total = np.zeros(len(points))
        for batch in self._arguments():
            found = []
            for chunk in chunks:
                if len(chunk) == 1:
                    losses = value_at_place(self._value_fn, place, shared, chunk[0], *batch)
                else:
                    # A shorter last chunk would need another program: its first point fills it up.
                    filled = chunk + chunk[:1] * (min(points_per_call, len(points)) - len(chunk))
                    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *filled)
                    losses = values_at_places(self._value_fn, place, shared, stacked, *batch)
                    losses = losses[: len(chunk)]
                found.append(losses)
                if progress is not None:
                    losses.block_until_ready()
                    progress(len(chunk))
            total += np.concatenate([np.atleast_1d(np.asarray(x, np.float64)) for x in found])
        assert self._count is not None
        return total / self._count


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def add_value_and_gradient(value_fn: Any, total: Any, params: Any, *batch: Any) -> Any:
    """Returns `total` plus loss and gradient at `params`."""
    result = jax.value_and_grad(value_fn)(params, *batch)
    return jax.tree.map(jnp.add, total, result)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def add_product(value_fn: Any, total: Any, params: Any, vector: Any, *batch: Any) -> Any:
    """Returns `total` plus the product of the Hessian and `vector`."""

    def gradient(params: Any) -> Any:
        return jax.grad(value_fn)(params, *batch)

    product = jax.jvp(gradient, (params,), (tree.cast_like(vector, params),))[1]
    return jax.tree.map(jnp.add, total, product)


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_at_place(value_fn: Any, place: Any, shared: Any, point: Any, *batch: Any) -> jax.Array:
    """Returns the loss at the parameters `place(shared, point)`."""
    return value_fn(place(shared, point), *batch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def values_at_places(value_fn: Any, place: Any, shared: Any, points: Any, *batch: Any) -> jax.Array:
    """Returns the losses at several points, stacked in `points`."""
    return jax.vmap(lambda point: value_fn(place(shared, point), *batch))(points)


def checked_finite(name: str, values: Any) -> None:
    """Raises a FloatingPointError unless all values are finite."""
    if not np.all(np.isfinite(values)):
        raise FloatingPointError(f"{name} is not finite, got {np.asarray(values)}")


def mean_and_standard_error(samples: Any) -> tuple[float, float]:
    """Returns the mean of at least two samples, and its standard error.

    Args:
      samples: of shape (number,).

    Example:
      >>> mean_and_standard_error([1.0, 3.0])
      (2.0, 1.0)
    """
    samples = np.asarray(samples, np.float64)
    return float(samples.mean()), float(samples.std(ddof=1) / np.sqrt(len(samples)))


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _here(params: Any, point: Any) -> Any:
    del point
    return params


def _arrays(params: Any) -> Any:
    leaves = jax.tree.leaves(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = f" at params{jax.tree_util.keystr(path)}"
        if not hasattr(leaf, "dtype") and not isinstance(leaf, (int, float, complex)):
            raise TypeError(f"params must have real floating-point leaves, got {leaf!r}{name}")
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.complexfloating) or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                "params must have real floating-point leaves, got "
                f"{dtype}{list(jnp.shape(leaf))}{name}: close value_fn over the others; in Flax "
                "NNX, graphdef, params, rest = nnx.split(model, nnx.Param, ...)"
            )
    if not sum(jnp.size(leaf) for leaf in leaves):
        raise ValueError(f"params has no parameters, got {params!r}")
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), jnp.float32)),
        params,
    )


def check_like(name: str, given: Any, params: Any) -> None:
    """Raises a TypeError unless a tree has the structure and the shapes of the parameters."""
    expected: Any = jax.tree.structure(params)
    got: Any = jax.tree.structure(given)
    shapes = [
        [tuple(jnp.shape(leaf)) for leaf in jax.tree.leaves(node)] for node in (params, given)
    ]
    if expected != got or shapes[0] != shapes[1]:
        raise TypeError(
            f"{name} must have the structure and shapes of params, {expected} {shapes[0]}, got "
            f"{got} {shapes[1]}"
        )


def check_function(value_fn: Any) -> None:
    """Raises unless `value_fn` is a function."""
    if not callable(value_fn):
        kind = type(value_fn).__name__
        raise TypeError(f"value_fn must be a function of the parameters, got {kind}")


def _first_batch(batches: Any) -> Any:
    """Returns the first batch, or raises if there is none, or if only one pass is possible."""
    one = "for a single batch write batches=[batch]"
    if not hasattr(batches, "__iter__") or isinstance(batches, (str, bytes)):
        raise TypeError(f"batches must be an iterable of batches, got {batches!r}")
    if hasattr(batches, "shape"):
        raise TypeError(f"batches must be an iterable of batches, got an array: {one}")
    if isinstance(batches, Mapping):
        raise TypeError(f"batches must be an iterable of batches, got a mapping: {one}")
    iterator = iter(batches)
    if iterator is iter(batches):
        raise TypeError(
            f"batches is iterated over many times, and {batches!r} runs dry after the first: pass "
            "a list, or an object whose __iter__ begins anew"
        )
    if isinstance(batches, Sequence) and len(batches) > 1:
        kinds = [
            (
                jax.tree.structure(batch),
                [(jnp.ndim(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(batch)],
            )
            for batch in batches[:2]
        ]
        if kinds[0] != kinds[1]:
            raise TypeError(f"the first two batches are not alike, {kinds[0]}, {kinds[1]}: {one}")
    for batch in iterator:
        return batch
    raise ValueError("batches has no batch")


def _check_result(value_fn: Any, params: Any, arguments: tuple[Any, ...], batches: Any) -> None:
    call = "value_fn(params)" if batches is None else "value_fn(params, batch)"
    with contextlib.suppress(ValueError):  # some functions have no signature
        signature = inspect.signature(value_fn)
        try:
            signature.bind(params, *arguments)
        except TypeError as error:
            raise TypeError(
                f"value_fn is called as {call}, and takes {signature}: {error}. It is "
                "called with a batch if batches=[...] is given"
            ) from None
    result = jax.eval_shape(value_fn, params, *arguments)
    if isinstance(result, (tuple, list, dict)):
        raise TypeError(
            f"{call} must return the loss alone, got a {type(result).__name__} of {len(result)}: "
            "for a loss_fn that returns (loss, aux) write "
            "value_fn=lambda *arguments: loss_fn(*arguments)[0]"
        )
    if not hasattr(result, "shape"):
        raise TypeError(f"{call} must return a real scalar, got {result!r}")
    if result.shape != () or not jnp.issubdtype(result.dtype, jnp.floating):
        hint = ": take the mean over samples" if result.shape else ""
        raise TypeError(
            f"{call} must return a real scalar, got {result.dtype}{list(result.shape)}{hint}"
        )
