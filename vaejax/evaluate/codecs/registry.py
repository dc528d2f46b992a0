"""What can be scored: anything that turns frames into something smaller and back.

A name on the command line opens a codec: the autoencoder of a vaejax run, one of diffusers', or a baseline.
All take the same frames and give the same, so every score is of the same thing.
"""

import os
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax.sharding import Mesh

from vaejax.errors import InputError

LATENT_BITS = 16  # of a latent number: what bfloat16 and float16, in which latents are stored, take
NAMES = "the folder of a run, diffusers:CLASS:PATH, linear, jpeg:Q, jpeg:matched, h264:CRF or identity"


class Codec(Protocol):
    """Frames to latents and back.

    Clips are T = 1 + k·temporal_factor frames, H and W multiples of spatial_factor; an image is T = 1.
    Some have more: `frame_multiple`, which takes the place of temporal_factor in a clip's length;
    `decode_chunked(latents, latent_frames)` and `decode_tiled(latents, tile, overlap)`, which do as `decode`,
    some latent frames at a time and by tiles of latent pixels; with the latter
    `tile_spans(size, tile, overlap)`, where its tiles lie along a side; and `posterior(frames)`, the
    (mean, log_variance) of the latents.

    Attributes:
      name: as given on the command line.
      settings: whatever changes a number, JSON.
      spatial_factor: pixels a latent pixel, each way.
      temporal_factor: frames a latent frame.
    """

    name: str
    settings: dict[str, Any]
    spatial_factor: int
    temporal_factor: int

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int] | None:
        """(t, h, w, c) of the latents of a clip; None for a codec that stores something else."""
        ...

    def encode(self, frames: np.ndarray) -> Any:
        """Maps (B, T, H, W, 3) uint8 to latents (b, t, h, w, c) float32, or to what the codec stores.

        Raises:
          InputError: for a size that the codec cannot take.
        """
        ...

    def decode(self, latents: Any) -> np.ndarray:
        """Maps what `encode` gave to (B, T, H, W, 3) float32, clipped to [-1, 1] and not rounded."""
        ...

    def bits(self, latents: Any) -> float:
        """Bits a pixel, of B·T·H·W: of files all their bytes, of arrays 16 bits a number."""
        ...


class LatentSize(NamedTuple):
    """How much smaller latents are: what the baselines that keep up with a codec need to know of it."""

    spatial: int
    temporal: int
    channels: int

    def bits(self, frames: int, height: int, width: int) -> float:
        """Bits a pixel of the latents of a clip, 16 a number."""
        numbers = (1 + (frames - 1) // self.temporal) * (height // self.spatial) * (width // self.spatial)
        return LATENT_BITS * numbers * self.channels / (frames * height * width)


DEFAULT_SIZE = LatentSize(spatial=8, temporal=4, channels=16)  # where there is no codec to keep up with


def open_codec(
    name: str,
    *,
    step: int | None = None,
    dtype: str = "",
    mesh: Mesh | None = None,
    like: Codec | None = None,
    samples: np.ndarray | Iterable[np.ndarray] = (),
    fps: float = 24.0,
    seed: int = 0,
) -> Codec:
    """Opens a codec by its name.

    Args:
      name: 'RUN' or 'RUN/checkpoints/STEP', 'diffusers:CLASS:PATH', PATH the folder of weights, a config.json
        or JSON text (random weights), 'linear', 'jpeg:Q', 'jpeg:matched', 'h264:CRF' or 'identity'.
      step: of a run, a completed checkpoint's; None takes the name's, or the last.
      dtype: of a run's computation, 'float32' or 'bfloat16'; '' takes the run's.
      mesh: of devices among which a run's codec splits its batches; None takes one device.
      like: the codec whose latent size `linear` has and whose bits `jpeg:matched` matches; without one, or
        with one that has no latents, DEFAULT_SIZE.
      samples: training frames (N, T, H, W, 3) uint8, or an iterable of such arrays whose shapes may differ,
        to which `linear` and `jpeg:matched` are fitted. Read once, and by those two alone.
      fps: frames a second, by which h264 weighs how long a frame is seen.
      seed: of random weights.

    Raises:
      InputError: one line, for a name that is none of these, or that cannot be opened.
    """
    # Imported here: all of them import this file, and torch is nobody's but diffusers'.
    from vaejax.evaluate.codecs import baselines

    kind, _, rest = name.partition(":")
    if name == "identity":
        return baselines.Identity()
    if name == "linear":
        return baselines.Linear.fit(samples, _size(like))
    if name == "jpeg:matched":
        return baselines.Jpeg.matched(name, samples, _size(like))
    if kind == "jpeg" and rest:
        return baselines.Jpeg(name, _whole(name, rest, 1, 100, " or jpeg:matched"))
    if kind == "h264" and rest:
        return baselines.H264(name, _whole(name, rest, 0, 51), fps)
    if kind == "diffusers":
        from vaejax.evaluate.codecs.diffusers import DiffusersCodec

        return DiffusersCodec.open(name, seed)
    if os.path.isdir(os.path.expanduser(name)):
        from vaejax.evaluate.codecs.vae import RunCodec

        return RunCodec.open(name, step, dtype, mesh)
    raise InputError(f"codec {name!r}: no such name or folder; accepted: {NAMES}")


def check_shape(codec: Codec, frames: int, height: int, width: int) -> None:
    """Raises InputError, naming codec, shape and what is accepted, if it cannot take clips of this size."""
    t, s = getattr(codec, "frame_multiple", codec.temporal_factor), codec.spatial_factor
    if frames < 1 or (frames - 1) % t or height < 1 or width < 1 or height % s or width % s:
        length = f"T = 1 + a multiple of {t}" if t > 1 else "T from 1"
        size = f"multiples of {s}" if s > 1 else "from 1"
        raise InputError(
            f"{' '.join(codec.name.split())}: clips of {frames}x{height}x{width} (T, H, W); accepted:"
            f" {length}, H and W {size}"
        )


def check_frames(codec: Codec, frames: np.ndarray) -> None:
    """As `check_shape` for (B, T, H, W, 3) uint8; ValueError for anything else."""
    if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; expected uint8 (B, T, H, W, 3)")
    check_shape(codec, *frames.shape[1:4])


def array_bits(codec: Codec, latents: np.ndarray) -> float:
    """Bits a pixel of latents (b, t, h, w, c), 16 a number."""
    _, t, h, w, c = latents.shape
    s = codec.spatial_factor
    size = LatentSize(s, codec.temporal_factor, c)
    return size.bits(1 + (t - 1) * size.temporal, h * s, w * s)


def normalise(frames: np.ndarray) -> np.ndarray:
    """Uint8 to float32 in [-1, 1]."""
    return frames.astype(np.float32) / 127.5 - 1


def _size(like: Codec | None) -> LatentSize:
    if like is None:
        return DEFAULT_SIZE
    s = like.spatial_factor
    latent = like.latent_shape(1, s, s)
    return LatentSize(s, like.temporal_factor, latent[-1]) if latent else DEFAULT_SIZE


def _whole(name: str, text: str, low: int, high: int, more: str = "") -> int:
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        kind = name.partition(":")[0]
        raise InputError(f"codec {name!r}; accepted: {kind}:{low} to {kind}:{high}{more}")
    return int(text)
