"""The codec that `vaejax.load` returns: encodes images and clips, and decodes latents."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt8

from vaejax.codec import tiling
from vaejax.codec.arrays import array_of, check_channels_last
from vaejax.codec.latent import Latent
from vaejax.codec.load import TrainedVAE
from vaejax.codec.network import Network
from vaejax.codec.stream import StreamDecoder, StreamEncoder
from vaejax.errors import InputError
from vaejax.models.autoencoder import Architecture, Autoencoder
from vaejax.runtime import mesh as sharding

FRAMES = "an image (H, W, {0}), a clip (T, H, W, {0}) or a batch (B, T, H, W, {0})"
LATENTS = "a Latent, or an array (h, w, c), (t, h, w, c) or (b, t, h, w, c)"


class Codec:
    """A trained VAE: encodes 1 + ft·k frames to 1 + k latent frames, and fs x fs pixels to one latent pixel.

    ft and fs are the temporal and spatial factors of its architecture. Other lengths and sizes are padded
    with copies of the last frame and of the edges; decoding a `Latent` crops this padding. Clips are
    processed in chunks (stream.py), so working memory does not grow with their length.

    Args:
      vae: the autoencoder, as `load_vae` returns it.
      tile: side of square tiles in pixels, for frames that do not fit into memory; 0: whole frames.
      overlap: overlap of neighboring tiles in pixels. None: enough for exact results, or a quarter of a tile
        if attention or group normalization rules exact results out. If tiles do not give exact results, they
        are blended where they overlap.
      devices: devices among which a batch is divided, by samples if possible, else by height; None: one
        device.

    Attributes:
      name: the path that the model was read from.
      architecture: hyperparameters of the autoencoder.
      mean, std: statistics of each latent channel over the training data, (c,) float32; None if unknown.
      fingerprint: hash that identifies the model; latents record it.
      settings: {'compute', 'tile', 'overlap'}: the compute dtype and the arguments `tile` and `overlap`, on
        which the results depend besides the parameters.
      tiles_exact: whether tiles give the same result as whole frames.
    """

    def __init__(
        self,
        vae: TrainedVAE,
        *,
        tile: int = 0,
        overlap: int | None = None,
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
    ):
        a = vae.architecture
        self.name, self.architecture, self.fingerprint = vae.name, a, vae.fingerprint
        self.mean, self.std = vae.mean, vae.std
        self.settings = {"compute": a.dtype, "tile": tile, "overlap": overlap}
        self._tile, self._overlap = _in_latent_pixels(a, tile, overlap)
        self._reach = a.encoder.encoder_reach, a.decoder.decoder_reach
        wide = self._overlap is None or self._overlap >= 2 * max(self._reach)
        self.tiles_exact = a.is_local and wide
        mesh = sharding.over_height(devices) if devices else None
        c = a.latent_channels
        mean, std = (np.zeros(c), np.ones(c)) if vae.mean is None else (vae.mean, vae.std)
        self._network = Network.on_devices(Autoencoder(a), vae.params, mean, std, mesh)

    def encode(
        self,
        frames: Any,
        *,
        key: jax.Array | None = None,
        normalize: bool = True,
    ) -> Latent:
        """Encodes frames to latents.

        Args:
          frames: an image (H, W, C), a clip (T, H, W, C) or a batch (B, T, H, W, C), C the model's pixel
            channels: 3 for RGB, 4 for RGB and straight alpha. uint8, or float in [-1, 1]. Any T; H and W of
            at least 16. A NumPy or JAX array, a PyTorch tensor of the same layout, a Pillow image, or a list
            of Pillow images, which is a clip; see `arrays.array_of`.
          key: JAX random key to sample the posterior; None takes the mean of the posterior.
          normalize: whether to normalize latents to mean 0 and standard deviation 1, with the statistics of
            the training latents.

        Returns:
          A `Latent`. Its `values` are float32 and have as many axes as the frames. They are a JAX array if
          the frames are a JAX array, else a NumPy array.

        Raises:
          InputError: for frames smaller than 16x16, or if the model has no statistics for normalization.
          ValueError: for other shapes or data types, channels before height, or floats far outside [-1, 1].
        """
        c = self.architecture.pixel_channels
        frames = _array(frames, "frames", FRAMES.format(c), c)
        check_channels_last(frames.shape, c)
        stream = self.stream_encoder(key=key, normalize=normalize)
        values = _run(stream, frames, frames.ndim == 3)
        return Latent(
            values, stream.frames, stream.height, stream.width, normalize, stream.dtype, self.fingerprint
        )

    def decode(
        self,
        latents: Any,
        *,
        dtype: str = "",
        normalized: bool = True,
    ) -> UInt8[Array | np.ndarray, "*b H W C"] | Float32[Array | np.ndarray, "*b H W C"]:
        """Decodes latents to frames.

        Args:
          latents: a `Latent`; or an array or PyTorch tensor (h, w, c), (t, h, w, c) or (b, t, h, w, c), as a
            diffusion model generates it.
          dtype: data type of the frames, 'uint8' or 'float32'. '' takes the data type of the original frames,
            which a `Latent` records, and uint8 for an array.
          normalized: whether the values of an array are normalized; a `Latent` records this itself.

        Returns:
          An image (H, W, C), a clip (T, H, W, C) or a batch (B, T, H, W, C), uint8 or float32 in [-1, 1]. A
          `Latent` decodes to the original length and size. An array decodes to 1 + ft·(t - 1) frames of
          fs·h x fs·w pixels.

        Raises:
          InputError: for a `Latent` from a different model, or if the model has no statistics for
            normalization.
          ValueError: for latents of other shapes, or another dtype.
        """
        size, values = None, latents
        if isinstance(latents, Latent):
            if latents.model != self.fingerprint:
                raise InputError(self.wrong_model(latents.model))
            self._check_size(latents)
            size, values = (latents.frames, latents.height, latents.width), latents.values
            normalized, dtype = latents.normalized, dtype or latents.frame_dtype
        values = _array(values, "latents", LATENTS)
        stream = self.stream_decoder(size, normalized=normalized, dtype=dtype or "uint8")
        return _run(stream, values, values.ndim == 3)

    def stream_encoder(self, *, key: jax.Array | None = None, normalize: bool = True) -> StreamEncoder:
        """Creates an encoder for a clip of any length that arrives in parts.

        Args:
          key: JAX random key to sample the posterior; None takes the mean of the posterior.
          normalize: whether to normalize latents with the statistics of the training latents.

        Raises:
          InputError: if the model has no statistics for normalization.
        """
        self._check_statistics(normalize)
        return StreamEncoder(
            self._network, self.architecture, self._tile_layout(self._reach[0]), key, normalize
        )

    def stream_decoder(
        self, size: tuple[int, int, int] | None = None, *, normalized: bool = True, dtype: str = "uint8"
    ) -> StreamDecoder:
        """Creates a decoder for latents that arrive in parts.

        Args:
          size: (T, H, W) to which the decoded clip is cropped; None: no cropping.
          normalized: whether the latents are normalized.
          dtype: data type of the frames: 'uint8', or 'float32' in [-1, 1].

        Raises:
          InputError: if the model has no statistics for normalization.
          ValueError: for another dtype.
        """
        if dtype not in ("uint8", "float32"):
            raise ValueError(f"dtype = {dtype!r}; accepted: uint8 or float32")
        self._check_statistics(normalized)
        layout = self._tile_layout(self._reach[1])
        return StreamDecoder(self._network, self.architecture, layout, size, normalized, dtype)

    def wrong_model(self, fingerprint: str) -> str:
        """The error message for latents from a different model."""
        return (
            f"latents from a different model ({fingerprint}); accepted: latents from {self.name}"
            f" ({self.fingerprint}), or load the run and step that encoded these latents (--model, --step)"
        )

    def _check_size(self, latent: Latent) -> None:
        """Raises ValueError if the shape of the values does not match the T, H and W of the latent."""
        shape = self.architecture.latent_shape(latent.frames, latent.height, latent.width)
        is_image = latent.ndim == 3 and latent.frames == 1
        if latent.shape[-4:] != (shape[1:] if is_image else shape):
            raise ValueError(
                f"latents have shape {latent.shape}, which does not match the original clip,"
                f" {latent.frames}x{latent.height}x{latent.width} (TxHxW); accepted: shape {shape}, or a"
                " plain array of any size"
            )

    def _tile_layout(self, reach: int) -> Callable[[int, int], tiling.Tiles]:
        """Returns a function from (h, w), the size of a latent frame, to its tiles.

        `reach` is how far the receptive field extends to each side, in latent pixels.
        """
        margin = reach if self.tiles_exact else 0
        overlap = self._overlap
        if overlap is None:
            overlap = 2 * margin or self._tile // 4

        def layout(h: int, w: int) -> tiling.Tiles:
            if not self._tile:
                return tiling.Tiles(h, w, max(h, w), 0)
            return tiling.Tiles(h, w, self._tile, overlap, margin)

        return layout

    def _check_statistics(self, normalized: bool) -> None:
        if normalized and self.mean is None:
            raise InputError(
                f"{self.name}: no latent statistics, which normalization needs; accepted: a finished run, or"
                " a run scored by vaejax evaluate --checkpoint; in Python also normalize=False for encoding"
                " and normalized=False for decoding"
            )


def _array(x: Any, what: str, accepted: str, channels: int = 3) -> np.ndarray | jax.Array:
    """Converts to an array; raises ValueError unless it has 3 to 5 axes."""
    if isinstance(x, str | bytes) or hasattr(x, "__fspath__"):
        raise ValueError(f"{what} = {x!r}; accepted: {accepted}. For files: python -m vaejax.codec")
    array = array_of(x, channels)
    if array.ndim not in (3, 4, 5):
        raise ValueError(f"{what} have {array.ndim} axes, shape {array.shape}; accepted: {accepted}")
    return array


def _in_latent_pixels(architecture: Architecture, tile: int, overlap: int | None) -> tuple[int, int | None]:
    """Converts tile and overlap from pixels to latent pixels.

    Raises:
      InputError: if tile or overlap is negative or not a multiple of the spatial factor, the tile is too
        small for the overlap, or there is an overlap but no tile.
    """
    s = architecture.spatial_factor
    if overlap is not None and not tile:
        raise InputError(f"overlap = {overlap} pixels without a tile; accepted: tile and overlap together")
    for name, value in (("tile", tile), ("overlap", overlap or 0)):
        if value < 0 or value % s:
            raise InputError(f"{name} = {value} pixels; accepted: positive multiples of {s}, or 0")
    if tile and overlap is not None:
        if overlap >= tile:
            raise InputError(f"overlap = {overlap} pixels; accepted: less than the tile of {tile} pixels")
    elif tile and architecture.is_local:
        needed = 2 * max(architecture.encoder.encoder_reach, architecture.decoder.decoder_reach)
        if tile // s <= needed:
            raise InputError(
                f"tile = {tile} pixels; accepted: {s * (needed + 1)} or more, or a smaller tile together with"
                f" an overlap; with an overlap below {s * needed} pixels, results are only approximate"
            )
    return tile // s, None if overlap is None else overlap // s


def _run(stream: StreamEncoder | StreamDecoder, x: Any, is_image: bool) -> Any:
    """Passes a whole clip or batch, or an image (H, W, C) or (h, w, c), through a stream."""
    parts = [stream.push(x[None] if is_image else x), stream.flush()]
    parts = [part for part in parts if part.shape[-4]] or parts[:1]
    xp = jnp if isinstance(parts[0], jax.Array) else np
    whole = parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=-4)
    return whole[0] if is_image else whole
