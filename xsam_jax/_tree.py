r"""Geometry of pytrees: norms, directions and angles over all leaves together.

Every result is accumulated in float32, or in float64 under x64, whatever the dtype of the leaves.
Other operations on trees are in `optax.tree`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

PyTree = Any

# Two directions at a larger angle span no plane: rounding errors are multiplied by 1 / sin(angle),
# and would exceed 1e-5 in float32.
LARGEST_ANGLE = jnp.pi - 0.03


def accumulation_dtype() -> jnp.dtype:
    """Returns the dtype of norms, dot products and angles: float32, or float64 under x64.

    Example:
      >>> accumulation_dtype()
      dtype('float32')
    """
    return jnp.result_type(float)


def _cast(leaf: Any) -> jax.Array:
    return jnp.asarray(leaf, accumulation_dtype())


def _sum(terms: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, terms) if terms else jnp.zeros((), accumulation_dtype())


def squared_norm(tree: PyTree) -> jax.Array:
    r"""Returns :math:`\|u\|^2` over all leaves, a scalar. An empty tree has 0.

    Example:
      >>> squared_norm({"a": jnp.array([1.0, 2.0]), "b": jnp.array(2.0)})
      Array(9., dtype=float32)
    """
    return _sum([jnp.sum(jnp.square(_cast(leaf))) for leaf in jax.tree.leaves(tree)])


def norm(tree: PyTree) -> jax.Array:
    r"""Returns :math:`\|u\|` over all leaves, a scalar.

    A norm below 3e-16 times the root of the number of entries in float32 (1e-146 in float64) is
    returned as zero. Squares of entries may have underflowed there, so a direction divided by the
    rest of the norm could have any length. Gradients of a converged model are far larger.

    Example:
      >>> norm({"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)})
      Array(5., dtype=float32)
    """
    info = jnp.finfo(accumulation_dtype())
    size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(tree))
    squared = squared_norm(tree)
    return jnp.sqrt(jnp.where(squared < size * float(info.tiny / info.eps), 0.0, squared))


def scale(factor: Any, tree: PyTree) -> PyTree:
    """Returns `factor` times every leaf, float32 (float64 under x64).

    The factor is not cast to the dtype of the leaves: one such as 1 / norm overflows in float16.

    Example:
      >>> scale(jnp.float32(1e5), jnp.array([1e-4], jnp.float16))
      Array([10.001659], dtype=float32)
    """
    factor = _cast(factor)
    return jax.tree.map(lambda leaf: factor * _cast(leaf), tree)


def divisor(tree: PyTree) -> jax.Array:
    r"""Returns :math:`\|u\|` as a divisor: infinity for a zero tree, and NaN if it overflows.

    A zero tree divided by it stays zero, and an infinite norm gives NaN, not a zero direction.

    Divide by it last, `dot(u, v) / divisor(v)`. A dot product ends in a sum over all leaves. XLA on
    CPU repeats that sum in the kernel of each leaf that is multiplied by it, unless a division
    comes between. Compile time would be quadratic in the number of leaves.

    Example:
      >>> divisor(jnp.array([3.0, 4.0])), divisor(jnp.zeros(2))
      (Array(5., dtype=float32), Array(inf, dtype=float32))
    """
    length = norm(tree)
    # where() before the division keeps a derivative through it finite at zero.
    length = jnp.where(jnp.isfinite(length), length, jnp.nan)
    return jnp.where(length == 0, jnp.inf, length)


def reciprocal_norm(tree: PyTree) -> jax.Array:
    r"""Returns :math:`1 / \|u\|`, zero for a zero tree, and NaN if the norm overflows.

    Example:
      >>> reciprocal_norm(jnp.array([3.0, 4.0])), reciprocal_norm(jnp.zeros(2))
      (Array(0.2, dtype=float32), Array(0., dtype=float32))
    """
    return 1.0 / divisor(tree)


def unit(tree: PyTree) -> PyTree:
    r"""Returns :math:`u / \|u\|`, guarded as `reciprocal_norm` is.

    Args:
      tree: a pytree of real arrays of any floating dtypes.

    Returns:
      A tree of the same structure and shapes, float32 (float64 under x64).

    Example:
      >>> unit({"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)})
      {'a': Array([0.6, 0. ], dtype=float32), 'b': Array(0.8, dtype=float32)}
      >>> unit(jnp.zeros(2))
      Array([0., 0.], dtype=float32)
    """
    return scale(reciprocal_norm(tree), tree)


def with_norm(length: Any, tree: PyTree) -> PyTree:
    r"""Returns :math:`s\, u / \|u\|` in one pass, guarded as `unit` is.

    Args:
      length: :math:`s`, any real scalar. A negative one reverses the direction.
      tree: a pytree of real arrays of any floating dtypes.

    Returns:
      A tree of the same structure and shapes, float32 (float64 under x64).

    Example:
      >>> with_norm(2.0, jnp.array([3.0, 4.0]))
      Array([1.2, 1.6], dtype=float32)
    """
    return scale(length, unit(tree))


def dot(u: PyTree, v: PyTree) -> jax.Array:
    r"""Returns :math:`\langle u, v \rangle` over all leaves, a scalar.

    Example:
      >>> dot({"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([3.0, 4.0])})
      Array(11., dtype=float32)
    """
    products = jax.tree.map(lambda a, b: jnp.sum(_cast(a) * _cast(b)), u, v)
    return _sum(jax.tree.leaves(products))


def cosine(u: PyTree, v: PyTree) -> jax.Array:
    r"""Returns :math:`\langle \hat u, \hat v \rangle`, a scalar, zero if one of them is zero.

    Example:
      >>> cosine(jnp.array([3.0, 4.0]), jnp.array([2.0, 0.0]))
      Array(0.6, dtype=float32)
    """
    return dot(u, v) / divisor(u) / divisor(v)


def project(u: PyTree, v: PyTree) -> PyTree:
    r"""Returns the orthogonal projection of `u` on `v`.

    .. math:: \langle u, \hat v \rangle\, \hat v

    Args:
      u: a pytree of real arrays.
      v: a pytree of the same structure. If it is zero, so is the projection.

    Returns:
      A tree of the same structure and shapes, float32 (float64 under x64).

    Example:
      >>> project(jnp.array([3.0, 4.0]), jnp.array([2.0, 0.0]))
      Array([3., 0.], dtype=float32)
    """
    length = divisor(v)
    # Two scalars: one scalar made of both sums would be a kernel twice as large.
    return scale(dot(u, v) / length, scale(1.0 / length, v))


def reject(u: PyTree, v: PyTree) -> PyTree:
    r"""Returns the component of `u` orthogonal to `v`.

    .. math:: u - \langle u, \hat v \rangle\, \hat v

    Args:
      u: a pytree of real arrays.
      v: a pytree of the same structure. If it is zero, the result is `u`.

    Returns:
      A tree of the same structure and shapes, float32 (float64 under x64).

    Example:
      >>> reject(jnp.array([3.0, 4.0]), jnp.array([2.0, 0.0]))
      Array([0., 4.], dtype=float32)
    """
    return combine(1.0, u, -1.0, project(u, v))


def angle(u: PyTree, v: PyTree) -> jax.Array:
    r"""Returns the angle between two trees, accurate to rounding over all of :math:`[0, \pi]`.

    Args:
      u: a pytree of real arrays.
      v: a pytree of the same structure.

    Returns:
      A scalar in radians, :math:`\pi/2` if one of the two is zero.

    Example:
      >>> angle(jnp.array([2.0, 0.0]), jnp.array([1.0, 1e-3]))
      Array(0.001, dtype=float32)
    """
    return 2 * jnp.arctan2(*half_angle(u, v, divisor(u), divisor(v)))


def half_angle(
    u: PyTree, v: PyTree, length_u: jax.Array, length_v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""Returns the sine and the cosine of half the angle between two trees.

    With :math:`c = \langle \hat u, \hat v\rangle` they are :math:`\sqrt{(1 \mp c)/2}`, from one
    pass over both trees. Within 11 degrees of 0 or :math:`\pi` this loses digits in float32 (an
    angle of 1e-3 would be 9 % off). There a second pass computes
    :math:`\|\hat u \mp \hat v\| / 2`.

    Args:
      u: a pytree of real arrays.
      v: a pytree of the same structure.
      length_u: the `divisor` of `u`.
      length_v: the `divisor` of `v`.

    Returns:
      Two scalars, :math:`\sqrt{1/2}` if one of the trees is zero.

    Example:
      >>> sine, cosine = half_angle(jnp.array([2.0, 0.0]), jnp.array([0.0, 3.0]), 2.0, 3.0)
      >>> print(f"{sine:.3f} {cosine:.3f}")
      0.707 0.707
    """
    c = dot(u, v) / length_u / length_v

    def from_cosine() -> tuple[jax.Array, jax.Array]:
        return jnp.sqrt((1 - c) / 2), jnp.sqrt((1 + c) / 2)

    def from_chord() -> tuple[jax.Array, jax.Array]:
        chord = combine(1.0, u, -jnp.sign(c) * length_u / length_v, v)
        # Not `norm`, which would round a small angle to zero as an underflow.
        small = jnp.sqrt(squared_norm(chord)) / length_u / 2
        large = jnp.sqrt(1 - small**2)
        return jnp.where(c > 0, small, large), jnp.where(c > 0, large, small)

    return jax.lax.cond(jnp.abs(c) > 0.98, from_chord, from_cosine)


def slerp_weights(
    alpha: jax.Array, half_sine: jax.Array, half_cosine: jax.Array
) -> tuple[jax.Array, jax.Array]:
    r"""Returns :math:`\sin((1-\alpha)\psi)/\sin\psi` and :math:`\sin(\alpha\psi)/\sin\psi`.

    With :math:`\varphi = (\alpha - 1/2)\psi` they are

    .. math:: \frac{\cos\varphi}{2\cos(\psi/2)} \mp \frac{\sin\varphi}{2\sin(\psi/2)},

    the coordinates along the sum and the difference of the two directions. This is accurate at both
    ends. As :math:`\psi \to 0` the limits are :math:`1-\alpha` and :math:`\alpha`.

    Args:
      alpha: the interpolation factor, any real scalar.
      half_sine: :math:`\sin(\psi/2)`, for :math:`\psi \in [0, \pi)`.
      half_cosine: :math:`\cos(\psi/2)`.

    Returns:
      The weights of the start and of the end direction.

    Example:
      >>> slerp_weights(jnp.float32(0.25), jnp.float32(0.0), jnp.float32(1.0))
      (Array(0.75, dtype=float32), Array(0.25, dtype=float32))
    """
    fraction = alpha - 0.5
    phi = fraction * 2 * jnp.arctan2(half_sine, half_cosine)
    along_sum = jnp.cos(phi) / half_cosine / 2
    along_difference = jnp.where(
        half_sine == 0, fraction, jnp.sin(phi) / jnp.where(half_sine == 0, 1.0, half_sine) / 2
    )
    return along_sum - along_difference, along_sum + along_difference


def combine(weight_u: Any, u: PyTree, weight_v: Any, v: PyTree) -> PyTree:
    """Returns `weight_u * u + weight_v * v`, float32 (float64 under x64).

    Example:
      >>> combine(2.0, jnp.array([1.0, 0.0]), 3.0, jnp.array([0.0, 1.0]))
      Array([2., 3.], dtype=float32)
    """
    return jax.tree.map(lambda a, b: a + b, scale(weight_u, u), scale(weight_v, v))


def total(trees: Sequence[PyTree]) -> PyTree:
    """Returns the sum of trees of one structure, float32 (float64 under x64).

    Example:
      >>> total([jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])])
      Array([4., 6.], dtype=float32)
    """
    return jax.tree.map(lambda *leaves: _sum([_cast(leaf) for leaf in leaves]), *trees)


def finite_or(tree: PyTree, other: PyTree) -> PyTree:
    """Returns `tree`, or `other` if it is not finite. A NaN would stay in a state forever.

    Example:
      >>> finite_or(jnp.array([1.0, jnp.nan]), jnp.array([2.0, 3.0]))
      Array([2., 3.], dtype=float32)
    """
    return optax.tree.where(jnp.isfinite(squared_norm(tree)), tree, other)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """Casts the leaves of `tree` to the dtypes of `like`.

    Example:
      >>> cast_like(jnp.array([0.5]), jnp.zeros(1, jnp.bfloat16))
      Array([0.5], dtype=bfloat16)
    """
    return jax.tree.map(lambda leaf, other: leaf.astype(jnp.result_type(other)), tree, like)
