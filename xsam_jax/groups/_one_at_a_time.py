"""Losses and gradients of stacked groups, evaluated one group after the other."""

from collections.abc import Callable
from typing import Any

import jax

from xsam_jax import _tree as tree


def one_at_a_time(name: str, function: Callable[..., Any], unroll: bool) -> Callable[..., Any]:
    """Returns a function that `jax.vmap` evaluates in a loop, also its derivative."""
    if name == "losses_fn":  # its derivative needs the activations of all passes
        return function

    def sequential(function: Callable[..., Any]) -> Callable[..., Any]:
        call = jax.custom_batching.custom_vmap(function)

        @call.def_vmap
        def loop(axis_size: int, in_batched: Any, *args: Any) -> tuple[Any, Any]:
            leaves, structure = jax.tree.flatten(args)
            batched = jax.tree.leaves(in_batched)

            def body(_: None, mapped: list[Any]) -> tuple[None, Any]:
                rest = iter(mapped)
                own = [next(rest) if b else leaf for leaf, b in zip(leaves, batched, strict=True)]
                return None, call(*jax.tree.unflatten(structure, own))

            mapped = [leaf for leaf, b in zip(leaves, batched, strict=True) if b]
            _, results = jax.lax.scan(body, None, mapped, unroll=axis_size if unroll else 1)
            return results, jax.tree.map(lambda _: True, results)

        return call

    def differentiable(function: Callable[..., Any]) -> Callable[..., Any]:
        value, value_and_grad = sequential(function), sequential(jax.value_and_grad(function))

        # custom_vmap has no reverse derivative.
        @jax.custom_vjp
        def loss(params: Any, rest: Any) -> Any:
            return value(params, rest)

        def backward(gradient: Any, cotangent: Any) -> tuple[Any, None]:
            return tree.cast_like(tree.scale(cotangent, gradient), gradient), None

        loss.defvjp(value_and_grad, backward)
        return loss

    def call(params: Any, group: Any) -> Any:
        # custom_vmap cannot close over traced values inside a conditional, such as the running
        # statistics of a loss in the search of xsam. Here they become arguments.
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(params, group)

        def pure(params: Any, rest: Any) -> Any:
            closed_over, group = rest
            arguments = jax.tree.leaves((params, group))
            results = jax.core.eval_jaxpr(closed.jaxpr, closed_over, *arguments)
            return jax.tree.unflatten(jax.tree.structure(shapes), results)

        loop = sequential(pure) if name == "grad_fn" else differentiable(pure)
        return loop(params, (closed.consts, group))

    return call
