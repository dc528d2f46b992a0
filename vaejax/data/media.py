"""Photos and clips as uint8 frames: what a viewer would show, cut to the shape asked for.

Every frame is resampled once, from the decoded picture straight to the pixels asked for: crop, square pixels
and resize are one antialiased Lanczos resize of a box. Nothing half read is ever returned; what cannot be
read raises `Unreadable` with the reason.
"""

import contextlib
import io
import math
import os
import warnings
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image, ImageOps

from vaejax.data import quality

PHOTO_EXTENSIONS = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".avif",
        ".jp2",
        ".ppm",
    }
)
VIDEO_EXTENSIONS = frozenset(
    {
        ".mp4",
        ".mov",
        ".m4v",
        ".avi",
        ".mkv",
        ".webm",
        ".mpg",
        ".mpeg",
        ".m2v",
        ".vob",
        ".ogv",
        ".wmv",
        ".flv",
        ".ts",
        ".mts",
        ".m2ts",
        ".3gp",
        ".mxf",
        ".y4m",
    }
)

# Photos above 89 megapixels are legitimate here; above 179 Pillow refuses and they count as unreadable.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_REDUCING_GAP = 3.0  # shrink by whole factors first, to 3x the target: fast, and hardly different
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # AVColorSpace of a frame -> swscale's matrix
_LIMITED, _FULL = 1, 2  # AVColorRange
_LANCZOS = Interpolation.LANCZOS | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_NO_CLOCK_AFTER_SEEK = {"mpeg", "mpegvideo"}  # time goes by bytes there: frames came out 10 off
# Titles in another encoding than UTF-8 are no reason to refuse a clip; from 19 on PyAV replaces by itself.
_METADATA = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_TOLERANCE = 1e-3  # seconds; a clock of 1/600 s rounds a frame's time by up to 0.8 ms


class Unreadable(Exception):
    """A file that cannot give what was asked of it; the message is a one-line reason."""


def kind_of(path: str | os.PathLike) -> str | None:
    """Says whether a path's extension is a photo's ('image'), a clip's ('video') or neither (None)."""
    extension = os.path.splitext(path)[1].lower()
    if extension in PHOTO_EXTENSIONS:
        return "image"
    return "video" if extension in VIDEO_EXTENSIONS else None


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
    cut = {"height": height, "width": width, "zoom": zoom, "offset": offset, "max_upscale": max_upscale}
    with _reasons():
        if kind == "image":
            if frames != 1:
                raise Unreadable(f"only 1 of {frames} frames: it is a photo")
            return _read_photo(source, cut)[None]
        return _read_clip(source, frames, fps, start, cut)


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
        found = _probe_photo(source) if kind == "image" else _probe_clip(source)
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


def _box(shown: tuple[float, float], cut: dict) -> tuple[float, float, float, float]:
    """The crop (left, top, right, bottom), in pixels of a displayed picture of width and height `shown`."""
    cover = max(cut["width"] / shown[0], cut["height"] / shown[1])
    if cover > cut["max_upscale"] * (1 + 1e-9):
        raise Unreadable(f"does not fit: {shown[0]:g}x{shown[1]:g} for {cut['height']}x{cut['width']} (HxW)")
    scale = max(cover, min(cover * cut["zoom"], cut["max_upscale"]))
    wide, high = min(cut["width"] / scale, shown[0]), min(cut["height"] / scale, shown[1])
    top, left = (shown[1] - high) * cut["offset"][0], (shown[0] - wide) * cut["offset"][1]
    return left, top, left + wide, top + high


def _resize(image: Image.Image, shown: tuple[float, float], cut: dict) -> np.ndarray:
    """Crops and resizes in one resampling; `image` may have other (not square) pixels than `shown`."""
    x, y = image.width / shown[0], image.height / shown[1]
    left, top, right, bottom = _box(shown, cut)
    box = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
    size = (cut["width"], cut["height"])
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box, reducing_gap=_REDUCING_GAP))


# Photos ---------------------------------------------------------------------------------------------------


def _open_photo(source) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _shown_size(photo: Image.Image) -> tuple[int, int]:
    """Width and height after the EXIF orientation (which Pillow applies to TIFF by itself)."""
    sideways = photo.format != "TIFF" and photo.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return photo.size[::-1] if sideways else photo.size


def _read_photo(source, cut: dict) -> np.ndarray:
    with _open_photo(source) as photo:
        shown = _shown_size(photo)
        left, top, right, bottom = _box(shown, cut)
        # A JPEG much larger than needed decodes at 1/2, 1/4 or 1/8 size, several times faster.
        scale = _REDUCING_GAP * max(cut["width"] / (right - left), cut["height"] / (bottom - top))
        if scale < 1:
            photo.draft(None, tuple(math.ceil(side * scale) for side in photo.size))
        return _resize(_rgb(photo), shown, cut)


def _rgb(photo: Image.Image) -> Image.Image:
    """Decodes the first picture of a file to RGB, upright.

    Transparency is laid over white, as a page or a photo viewer shows it: what lies under it is arbitrary.
    """
    photo.load()
    photo = ImageOps.exif_transpose(photo)
    if photo.mode.startswith("I"):  # Pillow's own conversion clips 16 bits to 255
        values = np.asarray(photo)
        if values.min() < 0 or values.max() > 65535:
            raise Unreadable(f"pixels of {values.min()} to {values.max()} have no known range")
        photo = Image.fromarray(np.round(values / 257).astype(np.uint8))
    elif photo.mode == "F":
        raise Unreadable("floating-point pixels have no known range")
    elif photo.has_transparency_data:
        photo = photo.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    return photo.convert("RGB")


def _probe_photo(source) -> dict:
    with _open_photo(source) as photo:
        codec, tables = photo.format.lower(), getattr(photo, "quantization", None)
        turns = 0 if photo.format == "TIFF" else photo.getexif().get(0x0112, 1)
        width, height = _rgb(photo).size
    return {
        "width": width,
        "height": height,
        "frames": 1,
        "fps": None,
        "duration": 0.0,
        "rotation": {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}.get(turns, 0),
        "codec": codec,
        "quality": quality.jpeg_quality(tables) if tables else None,
    }


# Clips ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_clip(source) -> Iterator[tuple]:
    """Yields the container and its first real video stream; decodes in this thread and closes at the end."""
    # Named as a file, and FFmpeg held to files: a name like http:a.mp4 or a play list opens no connection.
    # Not as `options`, which PyAV gives to the streams too: before 18 that crashes on .mpg.
    target = io.BytesIO(source) if isinstance(source, bytes) else f"file:{os.fspath(source)}"
    local = {"protocol_whitelist": "file"}
    with av.open(target, container_options=local, **_METADATA) as container:
        cover_art = av.stream.Disposition.attached_pic
        streams = [each for each in container.streams.video if not each.disposition & cover_art]
        if not streams:
            raise Unreadable("has no video stream")
        codec = streams[0].codec_context
        if codec is None:
            raise Unreadable("no decoder for its video")
        codec.thread_count = 1  # the workers are the parallelism
        codec.options = {"err_detect": "explode"}  # an error, where FFmpeg would paint over the damage
        yield container, streams[0]


class _Frame(NamedTuple):
    time: float  # seconds; from the clip's first frame, once _frames_from has seen it
    period: float  # seconds shown if no other follows
    ratio: float  # width of a coded pixel over its height
    codec: str
    picture: av.VideoFrame


def _decoded(container, stream) -> Iterator[_Frame]:
    """Yields the frames as shown, their times strictly increasing; a missing timestamp is counted on."""
    nominal = float(1 / (stream.average_rate or Fraction(25)))
    ratio = float(stream.sample_aspect_ratio or 1)
    ratio = ratio if 0.1 < ratio < 10 else 1.0  # nonsense in the header
    last = None
    for picture in container.decode(stream):
        time = picture.time
        if time is None or (last is not None and time <= last):
            time = 0.0 if last is None else last + nominal
        last = time
        period = float(picture.duration * picture.time_base) if picture.duration else nominal
        yield _Frame(time, period, ratio, stream.codec_context.name, picture)


def _frames_from(source, start: float) -> Iterator[_Frame]:
    """Yields the frames from one shown at or before `start`, from the nearest keyframe where it can."""
    with _open_clip(source) as (container, stream):
        frames = _decoded(container, stream)
        first = next(frames, None)
        if first is None:
            raise Unreadable("no frame can be decoded")
        frames = _sought(container, stream, first, start) if start > 0 else chain([first], frames)
        if frames is not None:
            for frame in frames:
                yield frame._replace(time=frame.time - first.time)
            return
    with _open_clip(source) as (container, stream):
        for frame in _decoded(container, stream):
            yield frame._replace(time=frame.time - first.time)


def _sought(container, stream, first: _Frame, start: float) -> Iterator[_Frame] | None:
    """The frames from a keyframe before `start`; None if the seek came out late or has no clock."""
    if first.picture.pts is None or container.format.name in _NO_CLOCK_AFTER_SEEK:
        return None
    try:
        container.seek(int((first.time + start) / first.picture.time_base), stream=stream)
        frames = _decoded(container, stream)
        found = next(frames, None)
    except av.error.FFmpegError:
        return None
    if found is None or found.picture.pts is None or found.time > first.time + start + _TOLERANCE:
        return None
    return chain([found], frames)


def _deinterlaced(frames: Iterator[_Frame]) -> Iterator[_Frame]:
    """Passes frames on until one is flagged as interlaced; from there bwdif mends those that are flagged."""
    graph, waiting = None, deque()  # the filter looks one frame ahead: its output comes that much later
    for frame in frames:
        picture = frame.picture
        if graph is None and not picture.interlaced_frame:
            yield frame
            continue
        if graph is None:
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=picture.width,
                height=picture.height,
                format=picture.format,
                time_base=picture.time_base or Fraction(1, 1000),
            )
            bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
            graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
        waiting.append(frame)
        graph.push(picture)
        yield from _pulled(graph, waiting)
    if graph is not None:
        graph.push(None)
        yield from _pulled(graph, waiting)


def _pulled(graph: av.filter.Graph, waiting: deque[_Frame]) -> Iterator[_Frame]:
    while waiting:
        try:
            picture = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        yield waiting.popleft()._replace(picture=picture)  # its tags are kept, its clock is another


def _intervals(frames: Iterator[_Frame]) -> Iterator[tuple[float, float, _Frame]]:
    """Yields (begin, end, frame); damage is raised only after the last sound frame was given out."""
    current = damage = None
    try:
        for frame in frames:
            if current is not None:
                yield current.time, frame.time, current
            current = frame
    except av.error.FFmpegError as error:
        damage = error
    if current is not None:
        yield current.time, current.time + current.period, current
    if damage is not None:
        raise damage


def _read_clip(source, count: int, fps: float | None, start: float, cut: dict) -> np.ndarray:
    out = np.empty((count, cut["height"], cut["width"], 3), np.uint8)
    done, scale = 0, _Scaler(cut)
    with contextlib.closing(_intervals(_deinterlaced(_frames_from(source, start)))) as intervals:
        for _, end, frame in intervals:
            # How many of the wanted times, start + i / fps, lie before the next frame.
            left = end - _TOLERANCE - start
            until = done + (left > 0) if fps is None else min(count, math.ceil(left * fps))
            if until > done:
                out[done:until] = scale(frame)
                done = until
            if done == count:
                return out
    rate = "" if fps is None else f" at {fps:g} fps"
    raise Unreadable(f"only {done} of {count} frames from {start:g} s{rate}: the clip ends")


def _orientation(picture: av.VideoFrame) -> tuple[int, bool]:
    """Quarter turns anticlockwise by which a viewer turns the coded picture, and whether it mirrors it first.

    From the display matrix itself: `VideoFrame.rotation` takes a mirrored picture for one that stands on its
    head.
    """
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0, False
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
    mirrored = a * d < b * c
    if mirrored:
        a, b = -a, -b
    return -round(math.atan2(b, a) / (math.pi / 2)) % 4, mirrored


def _shown_clip(frame: _Frame) -> tuple[int, int]:
    """Width and height as displayed: square pixels (the width is stretched), then the rotation."""
    size = max(1, round(frame.picture.width * frame.ratio)), frame.picture.height
    return size[::-1] if _orientation(frame.picture)[0] % 2 else size


class _Scaler:
    """Colour, size and rotation of a clip's frames in one swscale pass, and the crop.

    Lanczos with full chroma and rounding: 54 to 59 dB from an exact conversion followed by Pillow's Lanczos,
    at 8x its speed on 720p. swscale's defaults (bilinear, half the chroma) are at 43 dB.
    """

    def __init__(self, cut: dict):
        self._cut, self._reformatter = cut, VideoReformatter()  # one: its filter tables are made once

    def __call__(self, frame: _Frame) -> np.ndarray:
        """The frame as uint8 (H, W, C)."""
        shown, (turns, mirrored) = _shown_clip(frame), _orientation(frame.picture)
        left, top, right, bottom = _box(shown, self._cut)
        wide = max(self._cut["width"], round(shown[0] * self._cut["width"] / (right - left)))
        high = max(self._cut["height"], round(shown[1] * self._cut["height"] / (bottom - top)))
        x = min(round(left * self._cut["width"] / (right - left)), wide - self._cut["width"])
        y = min(round(top * self._cut["height"] / (bottom - top)), high - self._cut["height"])
        coded = (high, wide) if turns % 2 else (wide, high)
        rgb = self._rgb(frame.picture, *coded)
        upright = np.rot90(rgb[:, ::-1] if mirrored else rgb, turns)
        return upright[y : y + self._cut["height"], x : x + self._cut["width"]]

    def _rgb(self, picture: av.VideoFrame, width: int, height: int) -> np.ndarray:
        """By the matrix and range that the picture is tagged with.

        Where it is not tagged: BT.709 from 720 lines on, else BT.601, and limited range, as players assume.
        """
        colours = {}
        if not picture.format.is_rgb:
            matrix = _MATRICES.get(int(picture.colorspace), 1 if picture.height >= 720 else 5)
            full = int(picture.color_range) == _FULL or picture.format.name.startswith("yuvj")
            colours = {"src_colorspace": matrix, "src_color_range": _FULL if full else _LIMITED}
        return self._reformatter.reformat(
            picture, width, height, "rgb24", interpolation=_LANCZOS, threads=1, **colours
        ).to_ndarray()


def _probe_clip(source) -> dict:
    count = 0
    try:
        with contextlib.closing(_frames_from(source, 0.0)) as frames:
            for last in frames:  # noqa: B007 - the last frame gives the duration
                count += 1
    except av.error.FFmpegError:
        if not count:
            raise
    width, height = _shown_clip(last)
    return {
        "width": width,
        "height": height,
        "frames": count,
        "fps": (count - 1) / last.time if count > 1 else 1 / last.period,
        "duration": last.time + last.period,
        "rotation": -90 * _orientation(last.picture)[0] % 360,
        "codec": last.codec,
        "quality": None,
    }
