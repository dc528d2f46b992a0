"""Rematerialization: the backward pass recomputes part of a network instead of storing it."""

import functools
from collections.abc import Callable
from typing import Any

import jax


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recomputed(f: Callable[[Any, jax.Array], jax.Array], params: Any, x: jax.Array) -> jax.Array:
    """Computes f(params, x) and stores only params and x for the backward pass.

    `jax.checkpoint` differs in one point. With it XLA may postpone the parameters' gradients and keep their
    inputs alive until the end: on a TPU that costs as much memory as rematerialization saves. Here the
    gradient of x waits for the gradients of the parameters.

    Args:
      f: maps (params, x) to an array.
      params: any pytree.
      x: any array.
    """
    return f(params, x)


def _forward(f, params, x):
    return f(params, x), (params, x)


def _backward(f, kept, dy):
    # The barrier keeps XLA from reusing the forward pass's activations.
    params, x, dy = jax.lax.optimization_barrier((*kept, dy))
    return jax.lax.optimization_barrier(jax.vjp(f, params, x)[1](dy))


recomputed.defvjp(_forward, _backward)
