"""Conversion between 8-bit pixels and the models' range [-1, 1], for NumPy and JAX arrays."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Pixels = TypeVar("Pixels", np.ndarray, jax.Array)


def from_uint8(frames: Pixels) -> Pixels:
    """Converts uint8 pixels of any shape to float32 in [-1, 1]."""
    return frames.astype(np.float32) / 127.5 - 1.0


def to_uint8(x: Pixels) -> Pixels:
    """Converts values of any shape, clipped to [-1, 1], to the nearest uint8 pixels."""
    xp: Any = jnp if isinstance(x, jax.Array) else np
    return xp.round((xp.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)
