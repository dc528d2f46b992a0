"""The interface of a codec, which encodes frames to a smaller form and decodes that form.

All codecs take frames in one format and return frames in one format, so their scores are comparable.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

from vaejax.errors import InputError
from vaejax.models.latent_shape import decoded_frames

LATENT_BITS = 16  # bits per latent number, as if latents were stored in bfloat16 or float16


class Codec(Protocol):
    """Encodes frames to latents, or to a form of its own such as files, and decodes the result.

    A clip has T = 1 + k·temporal_factor frames; an image has T = 1. H and W are multiples of spatial_factor.

    A codec may also have
    - `frame_multiple`, if clips must have T = 1 + k·frame_multiple frames instead;
    - `pixel_channels`, if frames need not have C = 3 channels, RGB: their number, or None for any number;
    - `posterior(frames)`, the (mean, log_variance) of the latents;
    - `decode_chunked(latents, latent_frames)`, which decodes `latent_frames` latent frames at a time;
    - `decode_tiled(latents, tile, overlap)`, which decodes square tiles of `tile` latent pixels, and
      `tile_spans(size, tile, overlap)`, the (start, stop) of these tiles along `size` latent pixels.

    Attributes:
      name: name of the codec on the command line.
      settings: everything that affects a score, as JSON values.
      spatial_factor: pixels per latent pixel along H and along W.
      temporal_factor: frames per latent frame, except the first, which encodes one frame.
    """

    name: str
    settings: dict[str, Any]
    spatial_factor: int
    temporal_factor: int

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int] | None:
        """(t, h, w, c) of the latents of a clip; None for a codec without latents."""
        ...

    def encode(self, frames: np.ndarray) -> Any:
        """Encodes (B, T, H, W, C) uint8 to latents (b, t, h, w, c) float32, or to the codec's own form.

        Raises:
          InputError: if the codec does not take frames of this size.
        """
        ...

    def decode(self, latents: Any) -> np.ndarray:
        """Decodes the result of `encode` to (B, T, H, W, C) float32 in [-1, 1], clipped and not rounded."""
        ...

    def bits(self, latents: Any) -> float:
        """Bits per pixel of the result of `encode`: all bits of files, or 16 bits per latent number."""
        ...


class LatentSize(NamedTuple):
    """The compression factors and channels of a codec's latents, which baselines can match."""

    spatial: int
    temporal: int
    channels: int

    def bits(self, frames: int, height: int, width: int) -> float:
        """Bits per pixel of the latents of a clip, at 16 bits per number; only whole latent pixels count."""
        numbers = (1 + (frames - 1) // self.temporal) * (height // self.spatial) * (width // self.spatial)
        return LATENT_BITS * numbers * self.channels / (frames * height * width)


def check_shape(codec: Codec, frames: int, height: int, width: int, channels: int = 3) -> None:
    """Raises InputError if a codec does not take clips of `frames` frames of `height` x `width` pixels."""
    check_channels(codec.name, getattr(codec, "pixel_channels", 3), channels)
    t, s = getattr(codec, "frame_multiple", codec.temporal_factor), codec.spatial_factor
    if frames < 1 or (frames - 1) % t or height < 1 or width < 1 or height % s or width % s:
        length = f"T = 1 + a multiple of {t}" if t > 1 else "T at least 1"
        size = f"multiples of {s}" if s > 1 else "at least 1"
        raise InputError(
            f"{' '.join(codec.name.split())}: clips of {frames}x{height}x{width} (T, H, W); accepted:"
            f" {length}, H and W {size}"
        )


def check_channels(name: str, accepted: int | None, channels: int) -> None:
    """Raises InputError if the codec `name` takes `accepted` channels (None: any) and frames have others."""
    if accepted not in (None, channels):
        raise InputError(f"{' '.join(name.split())}: frames of {channels} channels; accepted: {accepted}")


def check_frames(codec: Codec, frames: np.ndarray) -> None:
    """Raises ValueError unless frames are (B, T, H, W, C) uint8, and InputError like `check_shape`."""
    if frames.dtype != np.uint8 or frames.ndim != 5:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; accepted: uint8 (B, T, H, W, C)")
    check_shape(codec, *frames.shape[1:])


def array_bits(codec: Codec, latents: np.ndarray) -> float:
    """Bits per pixel of latents (b, t, h, w, c), at 16 bits per number."""
    _, t, h, w, c = latents.shape
    s, ft = codec.spatial_factor, codec.temporal_factor
    return LatentSize(s, ft, c).bits(decoded_frames(t, ft), h * s, w * s)
