"""Reads photos and clips as uint8 frames: upright, with square pixels, cropped to the requested size.

One antialiased Lanczos resize scales a frame and makes its pixels square. Only photos much larger than the
result are first shrunk by a whole factor, which is faster. `read` returns all requested frames, or raises
`Unreadable` with the reason, or its subclass `Unavailable` if the reason is not the file's content.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator

import av
import numpy as np
import PIL
from PIL import Image

from vaejax import __version__
from vaejax.data import clip, heic, photo
from vaejax.data.crop import Crop, Unavailable, Unreadable
from vaejax.runtime.content import Content, size_of

ENDINGS = 8  # number of different endings that `passed_over` lists


def reader() -> str:
    """The versions of vaejax and of the decoders; other versions may read a file that these cannot."""
    decoders = f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}, Pillow {PIL.__version__}"
    return f"vaejax {__version__}, {decoders}" + (f", pillow-heif {heic.VERSION}" if heic.VERSION else "")


def kind_of(path: str | os.PathLike) -> str | None:
    """The kind of a file by its extension: 'image' for photos, 'video' for clips, None for others."""
    extension = os.path.splitext(path)[1].lower()
    if extension in photo.EXTENSIONS:
        return "image"
    return "video" if extension in clip.EXTENSIONS else None


def passed_over(endings: Counter[str]) -> list[str]:
    """One line that counts files of other kinds by their endings; [] if there are none."""
    if not endings:
        return []
    counts = [f"{count} {ending or 'without an ending'}" for ending, count in endings.most_common(ENDINGS)]
    if len(endings) > ENDINGS:
        counts.append(f"{sum(endings.values()) - sum(n for _, n in endings.most_common(ENDINGS))} others")
    missing = sorted((heic.KNOWN - heic.EXTENSIONS) & endings.keys())
    install = f" ({heic.INSTALL} reads {', '.join(missing)})" if missing else ""
    return [f"passed over by their endings: {', '.join(counts)}{install}"]


def read(
    file: Content,
    kind: str,
    *,
    frames: int,
    height: int,
    width: int,
    fps: float | None = None,
    start: float = 0.0,
    zoom: float = 1.0,
    offset: tuple[float, float] = (0.5, 0.5),
    max_upscale: float = 1.0,
    channels: int = 3,
) -> np.ndarray:
    """Reads a photo or part of a clip at the requested size.

    Args:
      file: a path, the bytes of a file, or a part of a larger file.
      kind: 'image' or 'video'.
      frames: number of frames T; 1 for a photo.
      height: H of the result, pixels.
      width: W of the result, pixels.
      fps: frame rate of the result: frame i of the result is the frame that the clip shows at
        `start + i / fps`. None reads consecutive frames, beginning with the one shown at `start`.
      start: time of the first frame to read, in seconds after the clip's first frame.
      zoom: scale of the picture, at least 1, relative to the smallest scale that covers H x W; see `Crop`.
      offset: position (y, x) of the crop in the picture, each in [0, 1]; see `Crop`.
      max_upscale: largest factor by which the picture may be enlarged.
      channels: C of the result: 3 for RGB, with transparent pixels over white; 4 for RGB and straight alpha,
        255 in media without alpha. The color of fully transparent pixels is then white.

    Returns:
      uint8, (T, H, W, C).

    Raises:
      Unreadable: if the file is missing, damaged or too small for H and W, or ends before T frames.
    """
    crop = Crop(height, width, zoom, offset, max_upscale, channels)
    with _one_line_reasons():
        if kind == "image":
            if frames != 1:
                raise Unreadable(f"a photo has 1 frame, not {frames}")
            return photo.read(file, crop)[None]
        return clip.read(file, frames, fps, start, crop)


def stream(file: Content, kind: str, channels: int = 3) -> Iterator[tuple[float, float, np.ndarray]]:
    """Decodes every frame of a file in order, in memory independent of the clip's length.

    Args:
      file: a path.
      kind: 'image' or 'video'.
      channels: C, as for `read`.

    Yields:
      (time, period, frame). `time` is in seconds after the first frame. `period` is how long the frame is
      shown if it is the last, in seconds; 0 for a photo. `frame` is uint8 (H, W, C), upright, with square
      pixels. All frames have the size of the first.

    Raises:
      Unreadable: if the file is damaged, once all intact frames before the damage have been yielded.
    """
    with _one_line_reasons():
        if kind == "image":
            yield 0.0, 0.0, photo.read_whole(file, channels)
        else:
            yield from clip.stream(file, channels)


def clock(file: Content) -> clip.Clock:
    """Reads the start time and the declared frame rates of a clip from its header and first frame.

    Raises:
      Unreadable: if no frame can be decoded.
    """
    with _one_line_reasons():
        return clip.clock(file)


def pictures(file: Content) -> int:
    """Counts the pictures in a photo's file, of which `read` uses the first; 1 if it cannot be read."""
    try:
        with _one_line_reasons():
            return photo.pictures(file)
    except Unreadable:  # only the first picture is used, so damage to later ones does not matter
        return 1


def probe(file: Content, kind: str, cuts: bool = False) -> dict:
    """Decodes a whole file and describes its content.

    Args:
      file: a path, or the bytes of a file.
      kind: 'image' or 'video'.
      cuts: whether to look for cuts in a clip, with PySceneDetect.

    Returns:
      A dict of
        width, height: size as displayed, in square pixels;
        frames: number of decodable frames, without those after an error of the decoder;
        fps: mean frame rate according to the timestamps, None for photos;
        duration: seconds from the first frame to the end of the last, 0 for photos;
        rotation: degrees clockwise from the coded to the displayed picture;
        codec: name of the codec or image format;
        bits_per_pixel: file size in bits, divided by displayed pixels and by frames;
        quality: estimated JPEG quality from 1 to 100, None for other formats;
        hdr: whether the file is HDR (PQ or HLG), which `read` converts to SDR;
        cuts: times of the first frame after each cut, in seconds after the first frame; None for photos, and
          unless cuts are looked for.

    Raises:
      Unreadable: if no frame can be decoded.
    """
    with _one_line_reasons():
        content = photo.probe(file) if kind == "image" else clip.probe(file, cuts)
    return _with_rate(file, content)


def headers(file: Content, kind: str) -> dict:
    """Describes a file by its header, and a clip also by its first frame and its last packets.

    This is much faster than `probe`, whose result it returns. But damage is not noticed, and a clip's numbers
    may differ: 'frames', 'fps' and 'duration' are those of the packets.

    Raises:
      Unreadable: if a photo's header or a clip's first frame cannot be read.
    """
    with _one_line_reasons():
        content = photo.probe(file, decode=False) if kind == "image" else clip.headers(file)
    return _with_rate(file, content)


def _with_rate(file: Content, content: dict) -> dict:
    """Adds 'bits_per_pixel' to the description of a file."""
    content["bits_per_pixel"] = 8 * size_of(file) / (content["width"] * content["height"] * content["frames"])
    return content


@contextlib.contextmanager
def _one_line_reasons() -> Iterator[None]:
    """Turns every error into an `Unreadable` of one line."""
    try:
        yield
    except Unreadable:
        raise
    except Image.UnidentifiedImageError as error:
        raise Unreadable("not an image that Pillow can read") from error
    except Exception as error:  # decoders raise many types for damaged files, from OSError to struct.error
        reason = getattr(error, "strerror", None) or f"{error}" or type(error).__name__
        # Pillow raises OSError for damaged files too, but without an error number.
        outside = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno)
        raise (Unavailable if outside else Unreadable)(" ".join(reason.split())) from error
