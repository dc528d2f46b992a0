"""Encoding and decoding of a clip that arrives in parts, in memory that does not grow with its length.

The convolutions are causal and remember their last frames (models/conv.py), so parts of any length give what
the whole clip would. Work is done in chunks of 1 frame at the start and of 1, 2 or 4 latent frames after it,
so few programs are compiled whatever is pushed.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.codec.network import Network
from vaejax.codec.tiling import Tiles
from vaejax.errors import InputError
from vaejax.models.autoencoder import Architecture

TilesOf = Callable[[int, int], Tiles]  # of latents of h x w
LARGEST = 4  # latent frames of a chunk
PIXELS = 2**20  # of a chunk, at most, but one latent frame at least


class _Stream:
    """What both directions share: what waits for the rest of its chunk, and a cache for every tile."""

    def __init__(self, network: Network, architecture: Architecture, tiles: TilesOf, unit: int):
        self._network, self._tiles_of, self._unit = network, tiles, unit
        self._spatial, self._temporal = architecture.spatial_factor, architecture.temporal_factor
        self._channels, self._film = architecture.latent_channels, architecture.film
        self._waiting = self._like = None  # arrays (B, n, ...); of the latter n = 0
        self._rank, self._started, self._flushed, self._is_video = 0, False, False, True
        self._tiles: Tiles | None = None
        self._caches: list[dict] = []
        self.disagreement = 0.0

    def _taken(self, x: Any, what: str) -> Any:
        """What is pushed, as (B, n, ...)."""
        if self._flushed:
            raise ValueError("the stream was flushed; accepted: a new one")
        x = x if isinstance(x, jax.Array) else np.asarray(x)
        if x.ndim not in ((self._rank,) if self._rank else (4, 5)):
            accepted = f"{self._rank}, as before" if self._rank else "4 of a clip or 5 of a batch"
            raise ValueError(f"{what} have {x.ndim} axes, {x.shape}; accepted: {accepted}")
        batch = x[None] if x.ndim == 4 else x
        if 0 in batch.shape[:1] + batch.shape[2:]:
            raise ValueError(f"{what} are {x.shape}; accepted: at least one pixel of at least one clip")
        if self._like is not None and (batch.shape[2:], len(batch)) != (
            self._like.shape[2:],
            len(self._like),
        ):
            raise ValueError(f"{what} are {x.shape}; accepted: the size of those before")
        self._rank, self._like = x.ndim, batch[:, :0]
        return batch

    def _end(self, what: str) -> None:
        if self._flushed:
            raise ValueError("the stream was flushed; accepted: a new one")
        if self._like is None or not (self._started or self._waiting is not None):
            raise ValueError(f"no {what} was pushed")
        self._flushed = True

    def _chunks(self, x: Any, pixels: int) -> Iterator[Any]:
        """Cuts whatever can be worked on into chunks; the rest waits.

        Args:
          x: (B, n, ...), or None.
          pixels: of `_unit` items.
        """
        if self._waiting is not None:
            x = self._waiting if x is None else _module(x).concatenate([self._waiting, x], axis=1)
        if x is None:
            return
        done, count = 0, x.shape[1]
        # FiLM tells an image from a clip: the first frame waits until it is known which of them this is.
        if not self._started and count > (self._film and not self._flushed):
            self._started, self._is_video, done = True, count > 1 or not self._film, 1
            yield x[:, :1]
        largest = min(LARGEST, max(1, PIXELS // (len(x) * pixels)))
        while self._started and (groups := (count - done) // self._unit):
            size = self._unit * _power_of_two(min(groups, largest))
            yield x[:, done : done + size]
            done += size
        self._waiting = x[:, done:] if done < count else None

    def _in_tiles(self, after: int, work: Callable, *arrays: tuple[Any, int]) -> Any:
        """`work` of arrays, or of every tile of them with a cache of its own.

        Args:
          after: pixels of the result by one latent pixel.
          work: (cache, *arrays) -> (result, cache).
          arrays: (B, n, H, W, C) or None, each with its pixels by one latent pixel.
        """
        if len(self._tiles.places) == 1:
            result, self._caches[0] = work(self._caches[0], *(x for x, _ in arrays))
            return result
        parts = []
        for i, ((y0, y1), (x0, x1)) in enumerate(self._tiles.places):
            cut = (None if x is None else x[:, :, y0 * s : y1 * s, x0 * s : x1 * s] for x, s in arrays)
            result, cache = work(self._caches[i], *cut)
            # On the host: the caches of all tiles are as large as that of the frame that does not fit.
            parts.append(np.asarray(result))
            self._caches[i] = jax.tree.map(np.asarray, cache)
        joined, apart = self._tiles.joined(parts, after)
        self.disagreement = max(self.disagreement, apart)
        return joined

    def _lay_out(self, h: int, w: int) -> None:
        """Lays the tiles of latents of h x w, once."""
        if self._tiles is None:
            self._tiles = self._tiles_of(h, w)
            self._caches = [{} for _ in self._tiles.places]

    def _joined(self, found: list, empty: tuple[int, ...], dtype: str) -> Any:
        """The chunks as one, of the kind and the rank of what was pushed."""
        xp = _module(self._like)
        found = found or [np.zeros((len(self._like), 0, *empty), dtype)]
        # Joined even if it is one: what NumPy sees of an array of JAX cannot be written to.
        whole = xp.concatenate([xp.asarray(one) for one in found], axis=1)
        return whole[0] if self._rank == 4 else whole


class StreamEncoder(_Stream):
    """Frames in, latents out, as soon as they exist. Made by `Codec.stream_encoder`.

    Attributes:
      frames: pushed so far.
      height, width: of the frames; 0 before the first push.
      dtype: of the frames, 'uint8' or 'float32'; '' before the first push.
      disagreement: where tiles are blended, the largest of any chunk, see `Tiles.joined`; 0 where they are
        exact.
    """

    def __init__(
        self, network: Network, architecture: Architecture, tiles: TilesOf, key: Any, normalised: bool
    ):
        super().__init__(network, architecture, tiles, architecture.temporal_factor)
        self._key, self._normalised, self._index = key, normalised, 0
        self.frames = self.height = self.width = 0
        self.dtype = ""

    def push(self, frames: Any) -> Any:
        """Takes the next frames.

        Args:
          frames: (T, H, W, 3) or (B, T, H, W, 3), uint8 or float in [-1, 1]; any T, all of one size.

        Returns:
          (t, h, w, c) or (b, t, h, w, c) float32, the latents that are complete; t may be 0.

        Raises:
          InputError: for frames smaller than 16x16.
          ValueError: for what are no frames, or others than before.
        """
        frames = self._taken(frames, "frames")
        kind = "uint8" if frames.dtype == np.uint8 else "float32"
        if frames.shape[-1] != 3 or not (kind == "uint8" or jnp.issubdtype(frames.dtype, jnp.floating)):
            raise ValueError(f"{frames.dtype} {frames.shape}; accepted: uint8, or float in [-1, 1], RGB last")
        if self.dtype not in ("", kind):
            raise ValueError(f"{frames.dtype} frames; accepted: {self.dtype}, as before")
        if min(frames.shape[2:4]) < 16:
            raise InputError(f"frames of {frames.shape[2]}x{frames.shape[3]} (HxW); accepted: from 16x16")
        self.dtype, (self.height, self.width) = kind, frames.shape[2:4]
        self.frames += frames.shape[1]
        return self._worked(frames)

    def flush(self) -> Any:
        """Ends the clip: gives the latents still due, after filling up with copies of the last frame."""
        self._end("frame")
        # The first frame stands alone, the others by `_unit`.
        missing = -(self.frames - 1) % self._unit
        fill = _module(self._like).repeat(self._waiting[:, -1:], missing, axis=1) if missing else None
        return self._worked(fill)

    def _worked(self, frames: Any) -> Any:
        h, w = (-(-size // self._spatial) for size in (self.height, self.width))
        self._lay_out(h, w)
        found = [
            self._encoded(chunk) for chunk in self._chunks(frames, self._unit * self.height * self.width)
        ]
        return self._joined(found, (h, w, self._channels), "float32")

    def _encoded(self, frames: Any) -> Any:
        room = [(0, -size % self._spatial) for size in frames.shape[2:4]]
        if room != [(0, 0)] * 2:
            frames = _module(frames).pad(frames, ((0, 0), (0, 0), *room, (0, 0)), mode="edge")
        noise = self._noise(frames)
        how = {"is_video": self._is_video, "normalised": self._normalised}

        def work(cache, x, noise):
            return self._network.encode(cache, x, noise, **how)

        latents = self._in_tiles(1, work, (frames, self._spatial), (noise, 1))
        self._index += latents.shape[1]
        return latents

    def _noise(self, frames: Any) -> jax.Array | None:
        """Of the frames' latents, drawn for each latent frame by its index: whatever chunks and tiles are."""
        if self._key is None:
            return None
        h, w = (size // self._spatial for size in frames.shape[2:4])
        count = -(-frames.shape[1] // self._unit)
        return _normal(self._key, self._index, count, (len(frames), h, w, self._channels))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _normal(key: jax.Array, start: int, count: int, shape: tuple[int, ...]) -> jax.Array:
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(start + jnp.arange(count))
    return jax.vmap(lambda key: jax.random.normal(key, shape), out_axes=1)(keys)


class StreamDecoder(_Stream):
    """Latents in, frames out, as soon as they exist. Made by `Codec.stream_decoder`.

    Attributes:
      frames: given out so far.
      disagreement: as the encoder's, of pixels in [-1, 1].
    """

    def __init__(
        self,
        network: Network,
        architecture: Architecture,
        tiles: TilesOf,
        size: tuple[int, int, int] | None,
        normalised: bool,
        dtype: str,
    ):
        super().__init__(network, architecture, tiles, 1)
        self._size, self._normalised, self._dtype = size, normalised, dtype
        self.frames = 0

    def push(self, latents: Any) -> Any:
        """Takes the next latents.

        Args:
          latents: (t, h, w, c) or (b, t, h, w, c); any t, all of one size.

        Returns:
          (T, H, W, 3) or (B, T, H, W, 3), the frames that follow from them; T may be 0.

        Raises:
          ValueError: for what are no latents of this model, or others than before.
        """
        latents = self._taken(latents, "latents")
        if latents.shape[-1] != self._channels:
            raise ValueError(f"latents are {latents.shape}; accepted: {self._channels} channels, last")
        return self._worked(latents)

    def flush(self) -> Any:
        """Ends the clip: gives the frames still due."""
        self._end("latent")
        return self._worked(None)

    def _worked(self, latents: Any) -> Any:
        h, w = self._like.shape[2:4]
        self._lay_out(h, w)
        height, width = self._size[1:] if self._size else (self._spatial * h, self._spatial * w)
        found = []
        for chunk in self._chunks(latents, self._temporal * h * w * self._spatial**2):
            frames = self._decoded(chunk)
            left = max(0, self._size[0] - self.frames) if self._size else frames.shape[1]
            found.append(frames[:, :left, :height, :width])
            self.frames += found[-1].shape[1]
        return self._joined(found, (height, width, 3), self._dtype)

    def _decoded(self, latents: Any) -> Any:
        in_parts = len(self._tiles.places) > 1
        dtype = "float32" if in_parts else self._dtype  # rounded after they are joined
        how = {"is_video": self._is_video, "normalised": self._normalised, "dtype": dtype}

        def work(cache, z):
            return self._network.decode(cache, z, **how)

        frames = self._in_tiles(self._spatial, work, (latents, 1))
        if in_parts and self._dtype == "uint8":
            return np.round((frames + 1) * 127.5).astype(np.uint8)
        return frames


def _power_of_two(n: int) -> int:
    """The largest that is at most n."""
    return 1 << (n.bit_length() - 1)


def _module(x: Any):
    return jnp if isinstance(x, jax.Array) else np
