"""vaejax: one VAE for images and videos, for latent diffusion, trained with JAX."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # reading the version must not import JAX
    import jax

    from vaejax.codec.codec import Codec

__version__ = "0.1.0"


def load(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    dtype: str = "",
    tile: int = 0,
    overlap: int | None = None,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
) -> Codec:
    """Opens a trained VAE, which encodes frames to latents and decodes latents to frames.

    Within a process, a second model of the same architecture reuses the compiled programs of the first.

    Args:
      path: folder of a run, one of its checkpoints/STEP, or a folder written by vaejax.export; also at a
        URL, such as gs://BUCKET/RUN.
      step: training step of the checkpoint; None: the step that `path` names, or else the latest.
      dtype: compute dtype, 'float32' or 'bfloat16'; '' keeps the dtype of training.
      tile: side of square tiles in pixels, for frames that do not fit into memory; 0: whole frames.
      overlap: overlap of neighboring tiles in pixels. None: enough for exact results, or a quarter of a tile
        if attention or group normalization makes exact results impossible.
      devices: JAX devices over which a batch is split: by samples if the number of devices divides the batch
        size, else by frame height. None: one device.

    Returns:
      A `vaejax.codec.codec.Codec`.

    Raises:
      vaejax.errors.InputError: if there is no trained VAE at `path`, or an argument does not fit this VAE.
    """
    from vaejax.codec.codec import Codec
    from vaejax.codec.load import load_vae

    return Codec(load_vae(os.fspath(path), step, dtype), tile=tile, overlap=overlap, devices=devices)
