"""Baseline codecs to compare a trained codec with: a linear projection, JPEG, H.264 and the identity."""

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import PIL
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image, features

from vaejax.errors import InputError
from vaejax.evaluate.codecs.base import LatentSize, array_bits, check_channels, check_frames
from vaejax.evaluate.codecs.linear import LinearCodec
from vaejax.models.latent_shape import latent_frames, latent_side
from vaejax.models.pixels import from_uint8

MATCHED_FRAMES = 64  # the JPEG quality for a clip shape is chosen on at most this many frames


class Files(NamedTuple):
    """A batch stored as files.

    Attributes:
      data: contents of the files, in the order of clips and frames.
      shape: shape of the frames, (B, T, H, W, 3).
    """

    data: list[bytes]
    shape: tuple[int, ...]

    def bits(self) -> float:
        """Bits per pixel, including file headers."""
        return 8 * sum(map(len, self.data)) / np.prod(self.shape[:-1])


class Identity:
    """A lossless codec that checks the scores: each must have its best value, except bits per pixel."""

    name = "identity"
    spatial_factor = temporal_factor = 1
    pixel_channels = None

    def __init__(self):
        self.settings: dict[str, Any] = {"kind": "identity"}

    def latent_shape(self, frames: int, height: int, width: int) -> None:
        """None, because the codec stores the frames."""

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """The frames (B, T, H, W, C) uint8."""
        check_frames(self, frames)
        return frames

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """The frames (B, T, H, W, C) as float32 in [-1, 1]."""
        return from_uint8(latents)

    def bits(self, latents: np.ndarray) -> float:
        """One byte per channel of a pixel."""
        return 8.0 * latents.shape[-1]


class Linear:
    """`linear.LinearCodec` as a `Codec`; its latents are coordinates of principal components. See `fit`."""

    name = "linear"

    def __init__(self, codec: LinearCodec, samples: int):
        self._codec = codec
        self.spatial_factor, self.temporal_factor = codec.spatial, codec.temporal
        self.pixel_channels = codec.pixel_channels
        self.settings: dict[str, Any] = {
            "kind": "linear",
            "channels": codec.channels,
            "spatial_factor": codec.spatial,
            "temporal_factor": codec.temporal,
            "samples": samples,
        }

    @classmethod
    def fit(cls, samples: np.ndarray | Iterable[np.ndarray], size: LatentSize) -> "Linear":
        """Fits the best linear codec of a latent size to training frames (N, T, H, W, C) uint8.

        Raises:
          InputError: if there are no samples, or `LinearCodec.fit` does not accept their type or size.
        """
        count = 0

        def counted() -> Iterator[np.ndarray]:
            nonlocal count
            for batch in _batches(samples):
                count += len(batch)
                yield batch

        try:
            codec = LinearCodec.fit(counted(), size.channels, size.spatial, size.temporal)
        except ValueError as error:
            raise InputError(
                f"linear: {error}; accepted: --data or a run with enough training samples for the fit"
            ) from error
        return cls(codec, count)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t, h, w, c) of the latents of a clip."""
        s = self.spatial_factor
        t, h, w = latent_frames(frames, self.temporal_factor), latent_side(height, s), latent_side(width, s)
        return t, h, w, self._codec.channels

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Encodes (B, T, H, W, C) uint8 to latents (b, t, h, w, c) float32."""
        check_frames(self, frames)
        try:
            return self._codec.encode(frames).astype(np.float32)
        except ValueError as error:
            raise InputError(
                f"linear: {error}; accepted: images, or training samples that include clips"
            ) from error

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decodes latents (b, t, h, w, c) to (B, T, H, W, C) float32 in [-1, 1]."""
        return self._codec.decode(latents)

    def bits(self, latents: np.ndarray) -> float:
        """Bits per pixel, 16 per latent number."""
        return array_bits(self, latents)


class Jpeg:
    """Stores every frame as a JPEG, written by Pillow with 4:4:4 color.

    4:4:4 and 4:2:0 were compared on photos, at the file sizes of 16-channel latents. At 1.2 bits per pixel (a
    latent pixel encodes 8x8x4 pixels) they are equally good. At 4 bits per pixel (a latent pixel encodes 8x8
    pixels) 4:4:4 is 0.8 to 1.7 dB better.

    Args:
      name: 'jpeg:Q' or 'jpeg:matched'.
      quality: 1 to 100, or a quality for each size (T, H, W) of clips.
      settings: further settings to record in results.
    """

    spatial_factor = temporal_factor = 1

    def __init__(
        self,
        name: str,
        quality: int | dict[tuple[int, int, int], int],
        settings: dict[str, Any] | None = None,
    ):
        self.name, self._quality = name, quality
        reported: Any = quality
        if isinstance(quality, dict):
            reported = {"x".join(map(str, shape)): each for shape, each in quality.items()}
        self.settings: dict[str, Any] = {
            "kind": "jpeg",
            "quality": reported,
            "subsampling": "4:4:4",
            "optimize": True,
            "pillow": PIL.__version__,
            "libjpeg": features.version("libjpeg_turbo") or features.version("jpg"),
            **(settings or {}),
        }

    @classmethod
    def matched(cls, name: str, samples: np.ndarray | Iterable[np.ndarray], size: LatentSize) -> "Jpeg":
        """Chooses the quality at which frames take, on average, about as many bits as latents of size `size`.

        Each shape (T, H, W) has its own quality, because latents of an image take more bits per pixel than
        those of a clip. The quality is chosen on the middle frames of the first MATCHED_FRAMES samples of
        that shape.

        Raises:
          InputError: if there are no samples, or they are not RGB.
        """
        frames: dict[tuple[int, int, int], list[np.ndarray]] = {}
        for batch in _batches(samples):
            check_channels(name, 3, batch.shape[-1])
            kept = frames.setdefault(batch.shape[1:4], [])
            kept += [sample[len(sample) // 2].copy() for sample in batch[: MATCHED_FRAMES - len(kept)]]
        if not frames:
            raise InputError(
                f"{name}: no training samples to choose its quality by; accepted: --data or a run with"
                " training samples"
            )
        target = {shape: size.bits(*shape) for shape in frames}
        quality = {shape: nearest_quality(some, target[shape]) for shape, some in frames.items()}
        settings = {
            "bits_wanted": {"x".join(map(str, shape)): bits for shape, bits in target.items()},
            "samples": {"x".join(map(str, shape)): len(some) for shape, some in frames.items()},
        }
        return cls(name, quality, settings)

    def latent_shape(self, frames: int, height: int, width: int) -> None:
        """None, because the codec stores files."""

    def encode(self, frames: np.ndarray) -> Files:
        """Encodes (B, T, H, W, 3) uint8 to B·T files."""
        check_frames(self, frames)
        quality, shape = self._quality, frames.shape[1:4]
        if isinstance(quality, dict):
            if shape not in quality:
                known = ", ".join("x".join(map(str, each)) for each in quality)
                raise InputError(
                    f"{self.name}: clips of {'x'.join(map(str, shape))} (T, H, W); accepted:"
                    f" {known}, the shapes of its training samples"
                )
            quality = quality[shape]
        return Files([_jpeg(frame, quality) for clip in frames for frame in clip], frames.shape)

    def decode(self, latents: Files) -> np.ndarray:
        """Decodes the files to (B, T, H, W, 3) float32 in [-1, 1]."""
        frames = [np.asarray(Image.open(io.BytesIO(data))) for data in latents.data]
        return from_uint8(np.stack(frames).reshape(latents.shape))

    def bits(self, latents: Files) -> float:
        """Bits per pixel of the files."""
        return latents.bits()


def nearest_quality(frames: Iterable[np.ndarray], bits: float) -> int:
    """The JPEG quality at which the mean size of frames (H, W, 3) uint8 is closest to `bits` per pixel.

    File sizes rise with quality, except that they may fall by a byte or two from one quality to the next. A
    local search therefore follows the bisection.
    """
    frames, sizes = list(frames), {}

    def excess(quality: int) -> float:
        if quality not in sizes:
            sizes[quality] = np.mean([8 * len(_jpeg(f, quality)) / (f.shape[0] * f.shape[1]) for f in frames])
        return sizes[quality] - bits

    low, high = 1, 100
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if excess(middle) >= 0 else (middle + 1, high)
    around = range(max(1, low - 3), min(100, low + 3) + 1)
    return min(around, key=lambda quality: abs(excess(quality)))


def _jpeg(frame: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality, subsampling=0, optimize=True)
    return file.getvalue()


# FFmpeg's numbers for BT.709 (the same for matrix, primaries and transfer curve) and for limited range.
_BT709, _LIMITED = 1, 1
_EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# Chroma is downsampled by averaging 2x2 pixels and upsampled by Lanczos, which beats bilinear by 1 dB on
# photos.
_DOWN, _UP = Interpolation.AREA | _EXACT, Interpolation.LANCZOS | _EXACT


class H264:
    """Stores every clip as an H.264 stream of libx264: 8 bits, 4:2:0, BT.709, limited range, on one thread.

    The stream has no container, and lacks the 600 bytes in which x264 names itself: they would dominate the
    size of a small clip. 4:2:0 needs even sizes, so the last row or column of an odd size is repeated.

    Args:
      name: 'h264:CRF'.
      crf: constant rate factor, 0 (lossless except for the conversion of colors) to 51.
      fps: frames per second; x264 spends more bits on frames that are shown for longer.
    """

    spatial_factor = temporal_factor = 1

    def __init__(self, name: str, crf: int, fps: float = 24.0):
        self.name, self._crf = name, crf
        self._fps = Fraction(fps).limit_denominator(1001)
        self.settings: dict[str, Any] = {
            "kind": "h264",
            "crf": crf,
            "preset": "medium",
            "x264_params": "asm=0",
            "pixels": "yuv420p, BT.709, limited range",
            "fps": float(self._fps),
            "av": av.__version__,
            "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
        }

    def latent_shape(self, frames: int, height: int, width: int) -> None:
        """None, because the codec stores streams."""

    def encode(self, frames: np.ndarray) -> Files:
        """Encodes (B, T, H, W, 3) uint8 to B streams."""
        check_frames(self, frames)
        return Files([self._stream(clip) for clip in frames], frames.shape)

    def decode(self, latents: Files) -> np.ndarray:
        """Decodes the streams to (B, T, H, W, 3) float32 in [-1, 1]."""
        out = np.empty(latents.shape, np.uint8)
        for data, clip in zip(latents.data, out, strict=True):
            self._read(data, clip)
        return from_uint8(out)

    def bits(self, latents: Files) -> float:
        """Bits per pixel of the streams."""
        return latents.bits()

    def _stream(self, clip: np.ndarray) -> bytes:
        clip = np.pad(clip, ((0, 0), (0, clip.shape[1] % 2), (0, clip.shape[2] % 2), (0, 0)), mode="edge")
        encoder = av.CodecContext.create("libx264", "w")
        encoder.height, encoder.width = clip.shape[1:3]
        encoder.pix_fmt, encoder.framerate, encoder.time_base = "yuv420p", self._fps, 1 / self._fps
        encoder.colorspace = encoder.color_primaries = encoder.color_trc = _BT709
        encoder.color_range = _LIMITED
        # The assembly code of x264 does not give the same stream every time.
        encoder.options = {"crf": str(self._crf), "preset": "medium", "x264-params": "asm=0"}
        encoder.thread_count = 1  # with more, the stream depends on the number of cores
        without_name = BitStreamFilterContext("filter_units=remove_types=6", "h264")
        reformatter, packets = VideoReformatter(), []
        for i, frame in enumerate(clip):
            picture = reformatter.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"),
                format="yuv420p",
                dst_colorspace=_BT709,
                dst_color_range=_LIMITED,
                interpolation=_DOWN,
                threads=1,
            )
            picture.pts, picture.time_base = i, 1 / self._fps
            packets += encoder.encode(picture)
        packets += encoder.encode(None)
        filtered = [kept for packet in [*packets, None] for kept in without_name.filter(packet)]
        return b"".join(map(bytes, filtered))

    def _read(self, data: bytes, out: np.ndarray) -> None:
        decoder = av.CodecContext.create("h264", "r")
        decoder.thread_count = 1
        packets = [*decoder.parse(data), *decoder.parse(None), None]
        pictures = [picture for packet in packets for picture in decoder.decode(packet)]
        reformatter = VideoReformatter()
        for picture, frame in zip(pictures, out, strict=True):
            rgb = reformatter.reformat(
                picture,
                format="rgb24",
                src_colorspace=_BT709,
                src_color_range=_LIMITED,
                interpolation=_UP,
                threads=1,
            ).to_ndarray()
            frame[:] = rgb[: frame.shape[0], : frame.shape[1]]


def _batches(samples: np.ndarray | Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    return [samples] if isinstance(samples, np.ndarray) else samples
