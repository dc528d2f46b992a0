"""Rematerialization: the backward pass recomputes part of a network instead of storing it."""

import functools
from collections.abc import Callable
from typing import Any

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
