"""Rematerialization: the backward pass recomputes part of a network instead of storing it."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recomputed(f: Callable[[Any, jax.Array], Any], variables: Any, x: jax.Array) -> Any:
    """Computes f(variables, x) and stores only variables and x for the backward pass.

    Unlike `jax.checkpoint`, it makes the gradient of x wait for the gradients of the parameters. Without this
    order, XLA may leave the gradients of the parameters to the end of the backward pass, and keep the
    activations that they need. On a TPU these activations took as much memory as rematerialization saves.

    Args:
      f: function of (variables, x) that returns a pytree of floating-point arrays.
      variables: pytree of floating-point arrays: parameters, and the frames that a stream remembers.
      x: input array.
    """
    return f(variables, x)


def _forward(f, variables, x):
    return f(variables, x), (variables, x)


def _backward(f, kept, dy):
    # The first barrier keeps XLA from storing the forward pass's activations instead of recomputing them; the
    # second makes all gradients wait for each other.
    variables, x, dy = jax.lax.optimization_barrier((*kept, dy))
    return jax.lax.optimization_barrier(jax.vjp(f, variables, x)[1](dy))


recomputed.defvjp(_forward, _backward)


def submodule(
    parent: nn.Module, make: Callable[..., nn.Module], name: str, x: jax.Array, *args: Any, again: bool
) -> jax.Array:
    """Applies the submodule make(name=name) of `parent` to x; if `again`, the backward pass recomputes it.

    Initialization ignores `again`.
    """
    if not again or parent.is_initializing():
        return make(name=name)(x, *args)
    alone, streams = make(parent=None), parent.is_mutable_collection("cache")
    variables = {kind: parent.variables.get(kind, {}).get(name) for kind in ("params", "cache")}
    variables = {kind: value for kind, value in variables.items() if value}

    def apply(variables: Any, x: jax.Array) -> Any:
        return alone.apply(variables, x, *args, mutable=["cache"] if streams else [])

    result: Any = recomputed(apply, variables, x)
    y, state = result
    if streams:
        parent.put_variable("cache", name, state["cache"])
    return y
