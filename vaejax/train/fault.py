"""Faults that tests put into a run, to see that it survives them."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Fault:
    """A NaN in one sample, and so on the device that holds it.

    Attributes:
      place: 'data' (x), 'generator' (x_hat) or 'discriminator' (the reconstruction that it sees).
      bucket: name of the bucket.
      strikes: from the step, counted from 0, and the batch in [-1, 1], (B, T, H, W, C), to () bool; traced.
      sample: place in the batch.
    """

    place: str
    bucket: str
    strikes: Callable[[jax.Array, jax.Array], jax.Array]
    sample: int = 0


def strike(faults: Sequence[Fault], place: str, step: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Y (B, ...), spoiled where a fault of this place strikes at this step of batch x."""
    for fault in faults:
        if fault.place == place:
            y = y.at[fault.sample].add(jnp.where(fault.strikes(step, x), jnp.nan, 0.0))
    return y
