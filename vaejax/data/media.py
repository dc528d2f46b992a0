"""Reading of photos and clips as uint8 frames, as a viewer shows them, cropped to the requested shape.

Every frame is resampled once: crop, square pixels and resize are one antialiased Lanczos resize of a box. No
function returns part of a result: if a file cannot be read in full, it raises `Unreadable` with the reason.
"""

import contextlib
import os
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vaejax.data import clip, photo
from vaejax.data.crop import Crop, Unreadable


def kind_of(path: str | os.PathLike) -> str | None:
    """The kind of a file by its extension: 'image' for photos, 'video' for clips, None for others."""
    extension = os.path.splitext(path)[1].lower()
    if extension in photo.EXTENSIONS:
        return "image"
    return "video" if extension in clip.EXTENSIONS else None


def read(
    file: str | os.PathLike | bytes,
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
) -> np.ndarray:
    """Reads a photo or part of a clip at the requested size.

    Args:
      file: a path, or the bytes of a file.
      kind: 'image' or 'video'.
      frames: T; 1 for a photo.
      height: H of the result, pixels.
      width: W of the result, pixels.
      fps: frame i is the one that the clip shows `start + i / fps` seconds after its first frame; None reads
        consecutive frames from the one shown at `start`.
      start: seconds after the clip's first frame.
      zoom: see `Crop`, as `offset` and `max_upscale`.
      offset: (y, x) in [0, 1].
      max_upscale: the largest enlargement of a displayed pixel.

    Returns:
      uint8 RGB, (T, H, W, 3).

    Raises:
      Unreadable: if the file is damaged, too small for H and W, or ends before T frames.
    """
    crop = Crop(height, width, zoom, offset, max_upscale)
    with _one_line_reasons():
        if kind == "image":
            if frames != 1:
                raise Unreadable(f"only 1 of {frames} frames: it is a photo")
            return photo.read(file, crop)[None]
        return clip.read(file, frames, fps, start, crop)


def stream(file: str | os.PathLike, kind: str) -> Iterator[tuple[float, float, np.ndarray]]:
    """Reads every frame of a file once, in memory independent of the clip's length.

    Args:
      file: a path.
      kind: 'image' or 'video'.

    Yields:
      The time of the frame in seconds after the first; the seconds that it is shown if it is the last (0 for
      a photo); and uint8 RGB (H, W, 3), upright with square pixels. All frames have the size of the first.

    Raises:
      Unreadable: after the last intact frame, if the file is damaged; at once if it has no intact frame.
    """
    with _one_line_reasons():
        if kind == "image":
            yield 0.0, 0.0, photo.read_whole(file)
        else:
            yield from clip.stream(file)


def clock(file: str | os.PathLike) -> clip.Clock:
    """Reads the timing of a clip from its header and first frame.

    Raises:
      Unreadable: if no frame can be decoded.
    """
    with _one_line_reasons():
        return clip.clock(file)


def pictures(file: str | os.PathLike) -> int:
    """The number of pictures in a photo's file, more than 1 for an animation; `read` returns the first."""
    try:
        with _one_line_reasons():
            return photo.pictures(file)
    except Unreadable:  # damage after the first picture does not matter
        return 1


def probe(file: str | os.PathLike | bytes, kind: str) -> dict:
    """Decodes a whole file and describes its content.

    Returns:
      A dict of
        width, height: pixels as displayed, with square pixels;
        frames: number of decodable frames; a damaged clip counts those before the damage;
        fps: mean frame rate by the timestamps, None for photos;
        duration: seconds from the first frame to the end of the last, 0 for photos;
        rotation: degrees clockwise from the coded to the displayed picture;
        codec: name of the codec or image format;
        bits_per_pixel: file size per displayed pixel and frame;
        quality: estimated JPEG quality from 1 to 100, None for other formats.

    Raises:
      Unreadable: if no frame can be decoded.
    """
    with _one_line_reasons():
        content = photo.probe(file) if kind == "image" else clip.probe(file)
    size = len(file) if isinstance(file, bytes) else os.stat(file).st_size
    content["bits_per_pixel"] = 8 * size / (content["width"] * content["height"] * content["frames"])
    return content


@contextlib.contextmanager
def _one_line_reasons() -> Iterator[None]:
    """Turns every error of Pillow and FFmpeg into an `Unreadable` of one line."""
    try:
        yield
    except Unreadable:
        raise
    except Image.UnidentifiedImageError as error:
        raise Unreadable("not an image that Pillow can read") from error
    except Exception as error:  # damaged files raise anything, from OSError to struct.error
        reason = getattr(error, "strerror", None) or f"{error}" or type(error).__name__
        raise Unreadable(" ".join(reason.split())) from error
