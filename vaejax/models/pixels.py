"""Conversion between 8-bit pixels and the range [-1, 1] of models; NumPy and JAX arrays alike."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Pixels = TypeVar("Pixels", np.ndarray, jax.Array)


def from_uint8(frames: Pixels) -> Pixels:
    """uint8 pixels as float32 in [-1, 1], any shape."""
    return frames.astype(np.float32) / 127.5 - 1.0


def to_uint8(x: Pixels) -> Pixels:
    """Values in [-1, 1], clipped to that range, as the nearest uint8 pixels, any shape."""
    xp: Any = jnp if isinstance(x, jax.Array) else np
    return xp.round((xp.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)
