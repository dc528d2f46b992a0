"""Encodes and decodes a clip that arrives in parts, in memory that does not grow with its length.

The convolutions are causal and cache their last frames (models/conv.py), so parts of any length give the
same result as the whole clip. Parts are regrouped into chunks: the first frame, then the frames of 1, 2 or 4
latent frames at a time. Few programs are therefore compiled, however long the parts are.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float32, UInt8

from vaejax.codec.arrays import array_of, check_channels_last
from vaejax.codec.network import Cache, Network
from vaejax.codec.tiling import Tiles
from vaejax.errors import InputError
from vaejax.models.autoencoder import Architecture
from vaejax.models.pixels import to_uint8

TileLayout = Callable[[int, int], Tiles]  # from (h, w), the size of a latent frame, to its tiles
# A chunk has at most this many latent frames and this many pixels, but at least one latent frame.
MAX_LATENT_FRAMES, MAX_PIXELS = 4, 2**20
SMALLEST = 16  # smallest accepted height and width of a frame, in pixels
LARGEST_FLOAT = 1.5  # largest |pixel| of float frames: above 1, because resampling filters overshoot


class _Stream:
    """The state common to encoder and decoder: items that wait for a full chunk, and one cache per tile.

    Items are frames in the encoder, and latent frames in the decoder.
    """

    def __init__(self, network: Network, architecture: Architecture, layout: TileLayout, unit: int):
        self._network, self._architecture, self._layout = network, architecture, layout
        self._unit = unit  # items per latent frame: the temporal factor when encoding, 1 when decoding
        self._spatial, self._temporal = architecture.spatial_factor, architecture.temporal_factor
        self._channels, self._uses_modality = architecture.latent_channels, architecture.uses_modality
        self._pixel_channels = architecture.pixel_channels
        self._waiting: Any = None  # (B, n, ...)
        self._like: Any = None  # (B, 0, ...): an empty slice of a pushed array, to keep its shape and type
        self._rank, self._started, self._flushed, self._is_video = 0, False, False, True
        self._tiles: Tiles | None = None
        self._caches: list[Cache] = []
        self.disagreement = 0.0

    def _checked(self, x: Any, what: str) -> Any:
        """Checks that a pushed array matches the earlier ones, and returns it as (B, n, ...)."""
        self._check_open()
        x = array_of(x, self._pixel_channels)
        if x.ndim not in ((self._rank,) if self._rank else (4, 5)):
            accepted = f"{self._rank} axes, as before" if self._rank else "4 axes for a clip, 5 for a batch"
            raise ValueError(f"{what} have {x.ndim} axes, shape {x.shape}; accepted: {accepted}")
        batch = x[None] if x.ndim == 4 else x
        if 0 in batch.shape[:1] + batch.shape[2:]:
            raise ValueError(f"{what} have shape {x.shape}; accepted: no axis of size 0 except the time axis")
        if self._like is not None and (batch.shape[2:], len(batch)) != (
            self._like.shape[2:],
            len(self._like),
        ):
            accepted = "the same shape as before, except for time"
            raise ValueError(f"{what} have shape {x.shape}; accepted: {accepted}")
        self._rank, self._like = x.ndim, batch[:, :0]
        return batch

    def _check_open(self) -> None:
        if self._flushed:
            raise ValueError("the stream was flushed; accepted: a new stream")

    def _end(self, what: str) -> None:
        self._check_open()
        if self._like is None or not (self._started or self._waiting is not None):
            raise ValueError(f"no {what} was pushed; accepted: at least one before the end of the stream")
        self._flushed = True

    def _chunks(self, x: Any, pixels: int) -> Iterator[Any]:
        """Yields the chunks that are complete; the remaining items wait.

        Args:
          x: the next items, (B, n, ...), or None.
          pixels: number of pixels that one latent frame covers: H · W times the temporal factor.
        """
        if self._waiting is not None:
            x = self._waiting if x is None else _numpy_of(x).concatenate([self._waiting, x], axis=1)
        if x is None:
            return
        done, count = 0, x.shape[1]
        # FiLM treats images and clips differently, so the first frame waits for the next frame or `flush`.
        if not self._started and count > (self._uses_modality and not self._flushed):
            self._started, self._is_video, done = True, count > 1 or not self._uses_modality, 1
            yield x[:, :1]
        most = min(MAX_LATENT_FRAMES, max(1, MAX_PIXELS // (len(x) * pixels)))
        while self._started and (groups := (count - done) // self._unit):
            size = self._unit * _power_of_two_below(min(groups, most))
            yield x[:, done : done + size]
            done += size
        self._waiting = x[:, done:] if done < count else None

    def _tiles_of(self, h: int, w: int) -> Tiles:
        """The tiles of latent frames of size h x w; the first call also creates their empty caches."""
        if self._tiles is None:
            self._tiles = self._layout(h, w)
            self._caches = [{} for _ in self._tiles.places]
        return self._tiles

    def _in_tiles(self, tiles: Tiles, factor: int, work: Callable, *arrays: tuple[Any, int]) -> Any:
        """Applies `work` to a chunk, tile by tile, and joins the results.

        Args:
          tiles: tiles of a latent frame.
          factor: pixels of the result per latent pixel, along each side.
          work: function (cache, *arrays) -> (result, cache).
          arrays: pairs of an array (B, n, H, W, C), or None, and its pixels per latent pixel along each side.
        """
        if len(tiles.places) == 1:
            result, self._caches[0] = work(self._caches[0], *(x for x, _ in arrays))
            return result
        parts = []
        for i, ((y0, y1), (x0, x1)) in enumerate(tiles.places):
            cut = (None if x is None else x[:, :, y0 * s : y1 * s, x0 * s : x1 * s] for x, s in arrays)
            result, cache = work(self._caches[i], *cut)
            # Results and caches move to the host: all tiles together need as much memory as the whole frame.
            parts.append(np.asarray(result))
            self._caches[i] = jax.tree.map(np.asarray, cache)
        joined, disagreement = tiles.join(parts, factor)
        self.disagreement = max(self.disagreement, disagreement)
        return joined

    def _concatenated(self, chunks: list[Any], empty: tuple[int, ...], dtype: str) -> Any:
        """Joins the results of one push into one array, of the same type and rank as the pushed array."""
        xp = _numpy_of(self._like)
        chunks = chunks or [np.zeros((len(self._like), 0, *empty), dtype)]
        # Even a single chunk is copied: NumPy's view of a JAX array is read-only.
        whole = xp.concatenate([xp.asarray(chunk) for chunk in chunks], axis=1)
        return whole[0] if self._rank == 4 else whole


class StreamEncoder(_Stream):
    """Encodes frames as they arrive. Created by `Codec.stream_encoder`.

    Attributes:
      frames: number of frames pushed so far.
      height, width: size of the frames; 0 before the first push.
      dtype: data type of the frames, 'uint8' or 'float32'; '' before the first push.
      disagreement: how much blended tiles differ where they overlap, as measured by `Tiles.join`; the largest
        value of all chunks so far. Exact tiles give 0.
    """

    def __init__(
        self,
        network: Network,
        architecture: Architecture,
        layout: TileLayout,
        key: jax.Array | None,
        normalize: bool,
    ):
        super().__init__(network, architecture, layout, architecture.temporal_factor)
        self._key, self._normalize = key, normalize
        self._index = 0  # index of the next latent frame
        self.frames = self.height = self.width = 0
        self.dtype = ""

    def push(self, frames: ArrayLike) -> Float32[Array | np.ndarray, "*b t h w c"]:
        """Adds the next frames and returns the latents they complete.

        Args:
          frames: (T, H, W, C) or (B, T, H, W, C), uint8 or float in [-1, 1], of the types that `Codec.encode`
            accepts; T may differ between calls.

        Returns:
          Latents, (t, h, w, c) or (b, t, h, w, c) float32; t may be 0.

        Raises:
          InputError: for frames smaller than 16x16.
          ValueError: for other shapes or data types; for floats out of range; if the data type or the shape,
            except for T, differs from earlier calls; or after `flush`.
        """
        x = self._checked(frames, "frames")
        check_channels_last(x.shape, self._pixel_channels)
        dtype = "uint8" if x.dtype == np.uint8 else "float32"
        known = dtype == "uint8" or jnp.issubdtype(x.dtype, jnp.floating)
        if x.shape[-1] != self._pixel_channels or not known:
            raise ValueError(
                f"frames are {x.dtype} {x.shape}; accepted: uint8, or float in [-1, 1], with"
                f" {self._pixel_channels} channels (last axis)"
            )
        if self.dtype not in ("", dtype):
            raise ValueError(f"frames are {x.dtype}; accepted: {self.dtype}, as before")
        if min(x.shape[2:4]) < SMALLEST:
            raise InputError(
                f"frames of {x.shape[2]}x{x.shape[3]} (HxW); accepted: at least {SMALLEST}x{SMALLEST}"
            )
        if dtype == "float32":
            _check_range(x)
        self.dtype, (self.height, self.width) = dtype, x.shape[2:4]
        self.frames += x.shape[1]
        return self._encode(x)

    def flush(self) -> Float32[Array | np.ndarray, "*b t h w c"]:
        """Ends the clip and returns the last latents, after padding the clip with copies of its last frame.

        Raises:
          ValueError: if nothing was pushed, or the stream has ended already.
        """
        self._end("frame")
        missing, _, _ = self._architecture.padding(self.frames, self.height, self.width)
        fill = None
        if missing:
            fill = _numpy_of(self._like).repeat(self._waiting[:, -1:], missing, axis=1)
        return self._encode(fill)

    def _encode(self, frames: Any) -> Any:
        _, *size = self._architecture.latent_shape(1, self.height, self.width)
        chunks = self._chunks(frames, self._unit * self.height * self.width)
        return self._concatenated([self._encode_chunk(chunk) for chunk in chunks], tuple(size), "float32")

    def _encode_chunk(self, frames: Any) -> Any:
        _, h, w, _ = self._architecture.latent_shape(1, self.height, self.width)
        _, rows, columns = self._architecture.padding(1, self.height, self.width)
        if rows or columns:
            room = (0, 0), (0, 0), (0, rows), (0, columns), (0, 0)
            frames = _numpy_of(frames).pad(frames, room, mode="edge")
        t = max(1, frames.shape[1] // self._unit)  # a chunk is the first frame, or whole latent frames
        noise = None
        if self._key is not None:
            noise = _latent_noise(self._key, self._index, t, (len(frames), h, w, self._channels))
        flags = {"is_video": self._is_video, "normalize": self._normalize}

        def work(cache: Cache, x: Any, noise: Any) -> tuple[Any, Cache]:
            return self._network.encode(cache, x, noise, **flags)

        latents = self._in_tiles(self._tiles_of(h, w), 1, work, (frames, self._spatial), (noise, 1))
        self._index += t
        return latents


def _check_range(x: Any) -> None:
    """Raises ValueError for float frames that are clearly not in [-1, 1], such as 0 to 255."""
    if not x.size or isinstance(x, jax.core.Tracer):
        return
    low, high = float(x.min()), float(x.max())
    largest = max(-low, high)
    if largest <= LARGEST_FLOAT:
        return
    # A resampling filter overshoots the range from 0 to 255 only slightly.
    guess = ", which looks like 0 to 255" if high > -4 * low else ""
    raise ValueError(
        f"float frames reach an absolute value of {largest:.4g}{guess}; accepted: floats in [-1, 1], or uint8"
        " from 0 to 255; x / 127.5 - 1 converts floats from 0 to 255"
    )


@functools.partial(jax.jit, static_argnums=(2, 3))
def _latent_noise(key: jax.Array, start: int, count: int, shape: tuple[int, ...]) -> jax.Array:
    """Normal noise (b, count, h, w, c) for latent frames from index `start` on; `shape` is (b, h, w, c).

    The noise of a latent frame depends on its index, not on chunks or tiles.
    """
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(start + jnp.arange(count))
    return jax.vmap(lambda key: jax.random.normal(key, shape), out_axes=1)(keys)


class StreamDecoder(_Stream):
    """Decodes latents as they arrive. Created by `Codec.stream_decoder`.

    Attributes:
      frames: number of frames returned so far.
      disagreement: as in `StreamEncoder`, for pixels in [-1, 1].
    """

    def __init__(
        self,
        network: Network,
        architecture: Architecture,
        layout: TileLayout,
        size: tuple[int, int, int] | None,
        normalized: bool,
        dtype: str,
    ):
        super().__init__(network, architecture, layout, 1)
        self._size, self._normalized, self._dtype = size, normalized, dtype
        self.frames = 0

    def push(
        self, latents: ArrayLike
    ) -> UInt8[Array | np.ndarray, "*B T H W C"] | Float32[Array | np.ndarray, "*B T H W C"]:
        """Adds the next latents and returns the frames they complete.

        Args:
          latents: (t, h, w, c) or (b, t, h, w, c); t may differ between calls.

        Returns:
          Frames, (T, H, W, C) or (B, T, H, W, C), in the stream's data type; T may be 0.

        Raises:
          ValueError: for other shapes; if the shape, except for t, differs from earlier calls; or after
            `flush`.
        """
        x = self._checked(latents, "latents")
        if x.shape[-1] != self._channels:
            raise ValueError(f"latents have shape {x.shape}; accepted: {self._channels} channels (last axis)")
        return self._decode(x)

    def flush(self) -> UInt8[Array | np.ndarray, "*B T H W C"] | Float32[Array | np.ndarray, "*B T H W C"]:
        """Ends the clip and returns its last frames.

        Raises:
          ValueError: if nothing was pushed, or the stream has ended already.
        """
        self._end("latent")
        return self._decode(None)

    def _decode(self, latents: Any) -> Any:
        h, w = self._like.shape[2:4]
        height, width = self._size[1:] if self._size else (self._spatial * h, self._spatial * w)
        cropped = []
        for chunk in self._chunks(latents, self._temporal * h * w * self._spatial**2):
            frames = self._decode_chunk(chunk)
            left = max(0, self._size[0] - self.frames) if self._size else frames.shape[1]
            cropped.append(frames[:, :left, :height, :width])
            self.frames += cropped[-1].shape[1]
        return self._concatenated(cropped, (height, width, self._pixel_channels), self._dtype)

    def _decode_chunk(self, latents: Any) -> Any:
        tiles = self._tiles_of(*latents.shape[2:4])
        in_parts = len(tiles.places) > 1
        dtype = "float32" if in_parts else self._dtype  # tiles are rounded after they are joined
        flags = {"is_video": self._is_video, "normalized": self._normalized, "dtype": dtype}

        def work(cache: Cache, z: Any) -> tuple[Any, Cache]:
            return self._network.decode(cache, z, **flags)

        frames = self._in_tiles(tiles, self._spatial, work, (latents, 1))
        return to_uint8(frames) if in_parts and self._dtype == "uint8" else frames


def _power_of_two_below(n: int) -> int:
    """The largest power of two that is at most n."""
    return 1 << (n.bit_length() - 1)


def _numpy_of(x: Any) -> Any:
    """jax.numpy for a JAX array, else numpy."""
    return jnp if isinstance(x, jax.Array) else np
