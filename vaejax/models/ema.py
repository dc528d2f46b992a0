"""The exponential moving average of parameters."""

from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def ema(average: Tree, params: Tree, decay: float, step: jax.Array) -> Tree:
    """Returns the moving average after update `step`, counted from 0; `params` are the updated parameters.

    The decay is min(decay, (1 + step) / (10 + step)), so that the initial parameters soon lose their weight.
    """
    warm = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, p: a + (1 - warm) * (p - a), average, params)
