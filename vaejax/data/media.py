"""Photos and clips as uint8 frames: what a viewer would show, cut to the shape asked for.

Every frame is resampled once, from the decoded picture straight to the pixels asked for: crop, square pixels
and resize are one antialiased Lanczos resize of a box. Nothing half read is ever returned; what cannot be
read raises `Unreadable` with the reason.
"""

import contextlib
import os
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vaejax.data import clip, photo
from vaejax.data.crop import Cut, Unreadable


def kind_of(path: str | os.PathLike) -> str | None:
    """Says whether a path's extension is a photo's ('image'), a clip's ('video') or neither (None)."""
    extension = os.path.splitext(path)[1].lower()
    if extension in photo.EXTENSIONS:
        return "image"
    return "video" if extension in clip.EXTENSIONS else None


def read(
    source: str | os.PathLike | bytes,
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
    """Reads a photo or part of a clip at the size asked for.

    Args:
      source: a path, or the bytes of a file.
      kind: 'image' or 'video'.
      frames: T; an image has one.
      height: H of the result, pixels.
      width: W of the result, pixels.
      fps: frame i is what the clip shows `start + i / fps` seconds after its first frame; None takes
        consecutive frames from the one shown at `start`.
      start: seconds from the clip's first frame.
      zoom: at least 1; how much smaller the crop is than the largest that fits. Limited by `max_upscale`.
      offset: (y, x) in [0, 1], where the crop sits in the room that it leaves.
      max_upscale: the most a displayed pixel may be enlarged.

    Returns:
      uint8 RGB, (T, H, W, 3).

    Raises:
      Unreadable: the file is damaged, too small for H and W, or ends before T frames.
    """
    cut = Cut(height, width, zoom, offset, max_upscale)
    with _reasons():
        if kind == "image":
            if frames != 1:
                raise Unreadable(f"only 1 of {frames} frames: it is a photo")
            return photo.read(source, cut)[None]
        return clip.read(source, frames, fps, start, cut)


def stream(source: str | os.PathLike, kind: str) -> Iterator[tuple[float, float, np.ndarray]]:
    """Reads every frame of a clip once, as displayed; memory does not grow with its length.

    Args:
      source: a path.
      kind: 'image' or 'video'.

    Yields:
      Seconds from the first frame, seconds that it is shown if no other follows (0 for a photo), and uint8
      RGB (H, W, 3): upright, with square pixels, all of the size of the first.

    Raises:
      Unreadable: after the last sound frame, if the file is damaged; at once if it has none.
    """
    with _reasons():
        if kind == "image":
            yield 0.0, 0.0, photo.whole(source)
        else:
            yield from clip.stream(source)


def clock(source: str | os.PathLike) -> clip.Clock:
    """Reads what a clip tells of its time before it is decoded.

    Raises:
      Unreadable: not one frame can be decoded.
    """
    with _reasons():
        return clip.clock(source)


def pictures(source: str | os.PathLike) -> int:
    """How many pictures a photo's file shows, of which the first is read: more than 1 if it is animated."""
    try:
        with _reasons():
            return photo.pictures(source)
    except Unreadable:  # what is damaged after the first is not missed
        return 1


def probe(source: str | os.PathLike | bytes, kind: str) -> dict:
    """Decodes a whole file and says what is in it.

    Returns:
      A dict of width and height (pixels as displayed: rotated, with square pixels), frames (really
      decodable; a clip that breaks off keeps those before the damage), fps (mean, from the timestamps; None
      for photos), duration (seconds from the first frame to the end of the last; 0 for photos), rotation
      (degrees clockwise that a viewer turns the coded picture), codec, bits_per_pixel (of the file, per
      displayed pixel and frame) and quality (JPEG, 1 to 100, estimated; None for other formats).

    Raises:
      Unreadable: not one frame can be decoded.
    """
    with _reasons():
        found = photo.probe(source) if kind == "image" else clip.probe(source)
    size = len(source) if isinstance(source, bytes) else os.stat(source).st_size
    found["bits_per_pixel"] = 8 * size / (found["width"] * found["height"] * found["frames"])
    return found


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turns whatever Pillow and FFmpeg raise into an Unreadable of one line."""
    try:
        yield
    except Unreadable:
        raise
    except Image.UnidentifiedImageError as error:
        raise Unreadable("not an image that Pillow can read") from error
    except Exception as error:  # a damaged file makes decoders raise anything, from OSError to struct.error
        reason = getattr(error, "strerror", None) or f"{error}" or type(error).__name__
        raise Unreadable(" ".join(reason.split())) from error
