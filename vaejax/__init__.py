"""vaejax: one VAE for images and videos, for latent diffusion, trained with JAX."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the version needs no JAX
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
    """Opens a trained VAE, which encodes frames to latents and decodes them.

    Loading a model of the same architecture again compiles nothing.

    Args:
      path: 'RUN', 'RUN/checkpoints/STEP' or a folder of vaejax.export.
      step: a completed checkpoint of a run; default: the one in `path`, else the latest.
      dtype: compute dtype, 'float32' or 'bfloat16'; '' keeps that of training.
      tile: side of square tiles in pixels, for frames that do not fit into memory; 0: whole frames.
      overlap: of neighboring tiles, pixels; None: enough for exact results if the network allows it.
      devices: JAX devices that share each frame by height; None: one device.

    Returns:
      A `vaejax.codec.codec.Codec`.

    Raises:
      vaejax.errors.InputError: if there is no trained VAE at `path`, or an argument does not suit it.
    """
    from vaejax.codec.codec import Codec
    from vaejax.codec.load import load_vae

    return Codec(load_vae(os.fspath(path), step, dtype), tile=tile, overlap=overlap, devices=devices)
