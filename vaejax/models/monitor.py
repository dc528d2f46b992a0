"""Activations that a forward pass hands out, for distillation and to watch for spots."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def record(module: nn.Module, level: int, x: Float[Array, "B T H W C"]) -> None:
    """Stores activations as 'level_N' in whichever of two Flax collections is mutable.

    "features" receives x itself, and "activations" the norm over channels of each pixel.

    Args:
      module: encoder or decoder.
      level: level N; 0 is the highest resolution.
      x: activations (B, T, H, W, C) of the level's resolution.
    """
    _sow(module, "features", level, x)
    if module.is_mutable_collection("activations"):
        _sow(module, "activations", level, jnp.linalg.norm(x.astype(jnp.float32), axis=-1))


def _sow(module: nn.Module, collection: str, level: int, x: jax.Array) -> None:
    """Stores an array in a collection if that is mutable; a later array of this level replaces it."""
    if not module.is_initializing():
        module.sow(collection, f"level_{level}", x, reduce_fn=lambda _, new: new, init_fn=lambda: x)
