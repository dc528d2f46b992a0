"""Small autoencoders whose parameters are all away from their initial values, many of which are 0."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from vaejax.config.schema import defaults
from vaejax.models.autoencoder import Architecture, Autoencoder

SMALL = {"widths": (8, 12), "encoder_blocks": 1, "decoder_blocks": 1, "latent_channels": 4, "stem_factor": 2}


def architecture(**options) -> Architecture:
    """The configuration's default architecture with `options`, e.g. size='tiny' or `SMALL`'s."""
    remat = options.pop("remat", ())  # any levels; a model ignores those that it lacks
    model = defaults().model
    model.update(options)
    return dataclasses.replace(Architecture.of(model), remat=remat)


@functools.cache
def randomised(seed: int = 0, **options):
    """An autoencoder of `SMALL` with `options`, and its parameters, all made random."""
    model = Autoencoder(architecture(**(SMALL | options)))
    s, t = model.architecture.spatial_factor, model.architecture.temporal_factor

    def init():
        key = jax.random.key(seed)
        params, as_tree = ravel_pytree(model.init(key, jnp.zeros((1, 1 + t, s, s, 3)), key)["params"])
        return as_tree(params + 0.1 * jax.random.normal(key, params.shape))

    return model, jax.jit(init)()


def clip(frames: int, height: int = 16, width: int = 16, batch: int = 1, seed: int = 1) -> jax.Array:
    """Noise in [-1, 1], (batch, frames, height, width, 3)."""
    return jax.random.uniform(jax.random.key(seed), (batch, frames, height, width, 3), minval=-1)
