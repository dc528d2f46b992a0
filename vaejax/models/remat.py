"""Rematerialisation: what part of a network computes is not kept for the backward pass but computed again."""

import functools
from collections.abc import Callable
from typing import Any

import jax


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recomputed(f: Callable[[Any, jax.Array], jax.Array], params: Any, x: jax.Array) -> jax.Array:
    """f(params, x), of which only params and x are kept.

    `jax.checkpoint` does the same up to one thing: XLA may put off the gradients of parameters, which nobody
    waits for, and keep what they need until the end, on a TPU as much as rematerialisation saved. Here the
    gradient of x waits for those of the parameters.
    """
    return f(params, x)


def _forward(f, params, x):
    return f(params, x), (params, x)


def _backward(f, kept, dy):
    # Behind a barrier XLA cannot see that this was computed before.
    params, x, dy = jax.lax.optimization_barrier((*kept, dy))
    return jax.lax.optimization_barrier(jax.vjp(f, params, x)[1](dy))


recomputed.defvjp(_forward, _backward)
