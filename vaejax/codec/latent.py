"""Latents together with what decoding needs to restore the original clip."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Latent:
    """Latents of an image, a clip or a batch, and the size and dtype of the frames they came from.

    `latent.values` is the array, float32; `numpy.asarray(latent)` and `jax.numpy.asarray(latent)` return it.
    The object is a JAX pytree whose only leaf is `values`, so `jax.tree.map` works on it.

    Attributes:
      values: (h, w, c) for an image, (t, h, w, c) for a clip, (b, t, h, w, c) for a batch; float32.
      frames: number of original frames T, before padding with copies of the last frame.
      height, width: original H and W, before padding with copies of the edges.
      normalized: whether values are (z - mean) / std, with the statistics of the training latents.
      dtype: data type of the original frames: 'uint8', or 'float32' in [-1, 1].
      model: fingerprint of the model that encoded the frames.
    """

    values: Any
    frames: int = flax.struct.field(pytree_node=False)
    height: int = flax.struct.field(pytree_node=False)
    width: int = flax.struct.field(pytree_node=False)
    normalized: bool = flax.struct.field(pytree_node=False)
    dtype: str = flax.struct.field(pytree_node=False)
    model: str = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return self.values.shape

    def __repr__(self) -> str:
        kind = "normalized" if self.normalized else "not normalized"
        shape = "x".join(map(str, getattr(self.values, "shape", ())))
        return (
            f"Latent({shape} {kind}, of {self.frames}x{self.height}x{self.width} {self.dtype} frames,"
            f" model {self.model})"
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype, copy=copy)

    def __jax_array__(self) -> jax.Array:
        return jnp.asarray(self.values)
