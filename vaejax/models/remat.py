"""Rematerialization: the backward pass recomputes part of a network instead of storing it."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recomputed(f: Callable[[Any, jax.Array], jax.Array], params: Any, x: jax.Array) -> jax.Array:
    """Computes f(params, x) and stores only params and x for the backward pass.

    Unlike `jax.checkpoint`, it makes the gradient of x wait for the gradients of the parameters. Without this
    order, XLA may leave the gradients of the parameters to the end of the backward pass, and keep the
    activations that they need. On a TPU these activations took as much memory as rematerialization saves.

    Args:
      f: function of (params, x) that returns an array.
      params: pytree of parameters.
      x: input array.
    """
    return f(params, x)


def _forward(f, params, x):
    return f(params, x), (params, x)


def _backward(f, kept, dy):
    # The first barrier keeps XLA from storing the forward pass's activations instead of recomputing them; the
    # second makes all gradients wait for each other.
    params, x, dy = jax.lax.optimization_barrier((*kept, dy))
    return jax.lax.optimization_barrier(jax.vjp(f, params, x)[1](dy))


recomputed.defvjp(_forward, _backward)


def submodule(
    parent: nn.Module, make: Callable[..., nn.Module], name: str, x: jax.Array, *args: Any, again: bool
) -> jax.Array:
    """Applies the submodule make(name=name) of `parent` to x; if `again`, the backward pass recomputes it.

    Recomputation neither initializes parameters nor fills a stream's cache, so these cases ignore `again`.
    """
    if not again or parent.is_initializing() or parent.is_mutable_collection("cache"):
        return make(name=name)(x, *args)
    alone = make(parent=None)
    return recomputed(
        lambda params, x: alone.apply({"params": params}, x, *args), parent.variables["params"][name], x
    )
