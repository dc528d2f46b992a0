"""Small autoencoders whose parameters are all away from their initial values, many of which are 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.config.schema import defaults
from vaejax.models.autoencoder import Architecture, Autoencoder
from vaejax.models.families import architecture_of

SMALL = {"widths": (8, 12), "encoder_blocks": 1, "decoder_blocks": 1, "latent_channels": 4, "stem_factor": 2}
# Two levels instead of three, for tests that compile whole updates.
SMALLEST = SMALL | {"widths": (8,), "stem_factor": 4, "temporal_factor": 2}


def architecture(**options) -> Architecture:
    """The configuration's default architecture with `options`, e.g. size='tiny' or `SMALL`'s."""
    remat = options.pop("remat", ())  # any levels; a model ignores those that it lacks
    model = defaults().model
    model.update(options)
    return architecture_of(model).replace(remat=remat)


@functools.cache
def randomized(seed: int = 0, **options):
    """An autoencoder of `SMALL` with `options`, and its parameters, all made random."""
    model = Autoencoder(architecture(**(SMALL | options)))
    clip = jax.ShapeDtypeStruct(model.architecture.example_shape, jnp.float32)
    return model, random_parameters(model, clip, jax.random.key(seed), seed=seed)


def random_parameters(module, *inputs, seed: int = 0, gain: float = 0.4):
    """Random parameters of a module: kernels of this gain, and everything else near its usual initial value.

    NumPy draws them, because XLA takes seconds to compile an initialization.
    """
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        noise = rng.standard_normal(shape.shape)
        if shape.ndim > 1:
            noise *= gain / np.prod(shape.shape[:-1]) ** 0.5
        else:
            noise = 0.1 * noise + (path[-1].key in ("scale", "gain"))
        return jnp.asarray(noise, shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def clip(frames: int, height: int = 16, width: int = 16, batch: int = 1, seed: int = 1) -> jax.Array:
    """Noise in [-1, 1], (batch, frames, height, width, 3)."""
    return jax.random.uniform(jax.random.key(seed), (batch, frames, height, width, 3), minval=-1)
