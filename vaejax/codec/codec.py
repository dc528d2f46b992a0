"""The codec that `vaejax.load` gives: any number of frames of any size to latents, and back."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vaejax.codec import tiling
from vaejax.codec.latent import Latent
from vaejax.codec.load import Trained
from vaejax.codec.network import Network
from vaejax.codec.stream import StreamDecoder, StreamEncoder, TilesOf
from vaejax.errors import InputError
from vaejax.models.autoencoder import Autoencoder
from vaejax.runtime import mesh as sharding


class Codec:
    """A trained VAE: 1 + ft·k frames are 1 + k latent frames, fs x fs pixels one latent pixel.

    Other lengths and sizes are filled up with copies of the last frame and of the edges, which decoding takes
    away again. A clip is worked on in chunks (stream.py), so memory beyond frames and latents does not grow
    with its length.

    Args:
      trained: the autoencoder.
      tile: side of square tiles in pixels, for frames that do not fit; 0 takes frames whole.
      overlap: of tiles, pixels; None takes what makes tiles exact, or a quarter of a tile where attention or
        group normalisation let nothing do so. Tiles that overlap by less are blended.
      devices: among which the height of frames is split; None is one device.

    Attributes:
      architecture: of the autoencoder.
      mean, std: of each latent channel over the training data, (c,); None where nobody computed them.
      fingerprint: of the model.
      tiles_exact: whether tiles give what whole frames do.
    """

    def __init__(
        self,
        trained: Trained,
        *,
        tile: int = 0,
        overlap: int | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        a = trained.architecture
        self.name, self.architecture, self.fingerprint = trained.name, a, trained.fingerprint
        self.mean, self.std = trained.mean, trained.std
        self._tile, self._overlap = _in_latents(a, tile, overlap)
        self._reach = tiling.encoder_reach(a), tiling.decoder_reach(a)
        wide = self._overlap is None or self._overlap >= 2 * max(self._reach)
        self.tiles_exact = tiling.is_exact(a) and wide
        mesh = sharding.over_height(devices) if devices else None
        c = a.latent_channels
        mean, std = (np.zeros(c), np.ones(c)) if self.mean is None else (self.mean, self.std)
        self._network = Network(Autoencoder(a), trained.params, mean, std, mesh)

    def encode(self, frames: Any, *, key: Any = None, normalise: bool = True) -> Latent:
        """Frames to latents.

        Args:
          frames: an image (H, W, 3), a clip (T, H, W, 3) or a batch (B, T, H, W, 3), of NumPy or JAX; uint8,
            or float in [-1, 1]. Any T; H and W from 16.
          key: of JAX, to sample the posterior; None gives its mean.
          normalise: by the statistics of the training latents, to mean 0 and standard deviation 1.

        Returns:
          Latents of as many axes as the frames, of JAX if the frames are.

        Raises:
          InputError: for frames smaller than 16x16, or where the model has no statistics.
          ValueError: for what are no frames.
        """
        stream = self.stream_encoder(key=key, normalise=normalise)
        image = np.ndim(frames) == 3
        parts = [stream.push(frames[None] if image else frames), stream.flush()]
        values = _along_time(parts, image)
        return Latent(
            values, stream.frames, stream.height, stream.width, normalise, stream.dtype, self.fingerprint
        )

    def decode(self, latents: Any, *, dtype: str = "", normalised: bool = True) -> Any:
        """Latents to frames.

        Args:
          latents: a `Latent`; or an array (h, w, c), (t, h, w, c) or (b, t, h, w, c), of a diffusion model.
          dtype: of the frames, 'uint8' or 'float32'; '' is that of the frames that were encoded, and of an
            array's uint8.
          normalised: whether an array's values are; a `Latent` knows.

        Returns:
          An image (H, W, 3), a clip (T, H, W, 3) or a batch (B, T, H, W, 3), as long and as large as what was
          encoded; of an array 1 + ft·(t - 1) frames of fs·h x fs·w. float32 is in [-1, 1].

        Raises:
          InputError: for a latent of another model, or where the model has no statistics.
          ValueError: for what are no latents.
        """
        size = None
        if isinstance(latents, Latent):
            if latents.model != self.fingerprint:
                raise InputError(self.another_model(latents.model))
            size = latents.frames, latents.height, latents.width
            self._check_size(latents)
            normalised, dtype, latents = latents.normalised, dtype or latents.dtype, latents.values
        stream = self.stream_decoder(size, normalised=normalised, dtype=dtype or "uint8")
        image = np.ndim(latents) == 3
        return _along_time([stream.push(latents[None] if image else latents), stream.flush()], image)

    def stream_encoder(self, *, key: Any = None, normalise: bool = True) -> StreamEncoder:
        """Encodes a clip of any length that arrives in parts.

        Args:
          key: of JAX, to sample; None gives means.
          normalise: by the statistics of the training latents.
        """
        self._check_statistics(normalise)
        tiles = self._tiles(self._reach[0])
        return StreamEncoder(self._network, self.architecture, tiles, key, normalise)

    def stream_decoder(
        self, size: tuple[int, int, int] | None = None, *, normalised: bool = True, dtype: str = "uint8"
    ) -> StreamDecoder:
        """Decodes latents that arrive in parts.

        Args:
          size: (T, H, W) of the clip, to which the frames are cut; None gives all that the latents hold.
          normalised: whether the latents are.
          dtype: of the frames, 'uint8', or 'float32' in [-1, 1].
        """
        if dtype not in ("uint8", "float32"):
            raise ValueError(f"dtype {dtype!r}; accepted: uint8 or float32")
        self._check_statistics(normalised)
        tiles = self._tiles(self._reach[1])
        return StreamDecoder(self._network, self.architecture, tiles, size, normalised, dtype)

    def _check_size(self, latent: Latent) -> None:
        """Raises ValueError where the values are not those of so many frames of that size."""
        a = self.architecture
        t, s = -(-(latent.frames - 1) // a.temporal_factor), a.spatial_factor
        shape = (1 + t, -(-latent.height // s), -(-latent.width // s), a.latent_channels)
        if latent.shape[-4:] not in (shape, shape[1:]):
            raise ValueError(
                f"latents are {latent.shape} of {latent.frames}x{latent.height}x{latent.width} frames;"
                f" accepted: {shape}, or the bare array"
            )

    def another_model(self, fingerprint: str) -> str:
        """What is said of a latent of another model."""
        return f"a latent of the model {fingerprint}; accepted: of {self.fingerprint}, which is {self.name}"

    def _tiles(self, reach: int) -> TilesOf:
        """The tiles of latents of h x w: exact, or blended where they cannot be."""
        margin = reach if self.tiles_exact else 0
        overlap = self._overlap
        if overlap is None:
            overlap = 2 * margin or self._tile // 4

        def tiles(h: int, w: int) -> tiling.Tiles:
            if not self._tile:
                return tiling.Tiles(h, w, max(h, w), 0)
            return tiling.Tiles(h, w, self._tile, overlap, margin)

        return tiles

    def _check_statistics(self, normalised: bool) -> None:
        if normalised and self.mean is None:
            raise InputError(
                f"{self.name}: no statistics of its latents; accepted: a run that came to its end, one that"
                " vaejax.evaluate --checkpoint saw, or latents that are not normalised"
            )


def _in_latents(architecture, tile: int, overlap: int | None) -> tuple[int, int | None]:
    """Tile and overlap in latent pixels.

    Raises:
      InputError: for what is no multiple of fs, or too small a tile.
    """
    s = architecture.spatial_factor
    if overlap is not None and not tile:
        raise InputError(f"overlap of {overlap} pixels; accepted: with a tile")
    for name, value in (("tile", tile), ("overlap", overlap or 0)):
        if value < 0 or value % s:
            raise InputError(f"{name} of {value} pixels; accepted: multiples of {s}")
    if tile and overlap is not None:
        tiling.check_tile(tile // s, overlap // s)
    elif tile and tiling.is_exact(architecture):
        needed = 2 * max(tiling.encoder_reach(architecture), tiling.decoder_reach(architecture))
        if tile // s <= needed:
            raise InputError(
                f"tile of {tile} pixels; accepted: from {s * (needed + 1)}, for tiles overlap by {s * needed}"
                " to be exact; or an overlap of your own"
            )
    return tile // s, None if overlap is None else overlap // s


def _along_time(parts: list, image: bool) -> Any:
    """The parts of a stream as one, the one frame of an image by itself."""
    parts = [part for part in parts if part.shape[-4]] or parts[:1]
    xp = jax.numpy if isinstance(parts[0], jax.Array) else np
    whole = parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=-4)
    return whole[0] if image else whole
