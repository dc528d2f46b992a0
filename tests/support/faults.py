"""Faults injected into a run: NaN in one sample, and thus only on the device that holds it."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vaejax.train.step import Inject


@dataclasses.dataclass(frozen=True)
class Fault:
    """A NaN in one sample.

    Attributes:
      place: where to add it: 'data' (x), 'generator' (x_hat), or 'discriminator' (the x_hat that it sees).
      bucket: name of the bucket.
      strikes: traced function of the step, counted from 0, and the batch (B, T, H, W, C) in [-1, 1]; returns
        whether to add the NaN, a boolean scalar.
      sample: index in the batch.
    """

    place: str
    bucket: str
    strikes: Callable[[jax.Array, jax.Array], jax.Array]
    sample: int = 0


def injecting(*faults: Fault) -> Inject:
    """The `inject` argument of `fit` for these faults."""

    def inject(bucket: str, place: str, step: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        for fault in faults:
            if (fault.bucket, fault.place) == (bucket, place):
                y = y.at[fault.sample].add(jnp.where(fault.strikes(step, x), jnp.nan, 0.0))
        return y

    return inject
