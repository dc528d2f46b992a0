"""Latents that know what they were made of."""

from typing import Any

import flax.struct
import numpy as np


@flax.struct.dataclass
class Latent:
    """Latents and what `decode` needs to give back as many frames of the same size.

    A pytree whose one leaf is `values`, so `jax.tree.map` works on it; `numpy.asarray` gives the values.

    Attributes:
      values: (h, w, c) of an image, (t, h, w, c) of a clip, (b, t, h, w, c) of a batch; float32.
      frames: T, before it was filled up with copies of the last frame to 1 + ft·k.
      height, width: before they were filled up with copies of the edges to multiples of fs.
      normalised: whether values are (z - mean) / std by the statistics of the training latents.
      dtype: of the frames: 'uint8', or 'float32' in [-1, 1].
      model: fingerprint of the model that gave it.
    """

    values: Any
    frames: int = flax.struct.field(pytree_node=False)
    height: int = flax.struct.field(pytree_node=False)
    width: int = flax.struct.field(pytree_node=False)
    normalised: bool = flax.struct.field(pytree_node=False)
    dtype: str = flax.struct.field(pytree_node=False)
    model: str = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        return self.values.shape

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.values, dtype, copy=copy)
