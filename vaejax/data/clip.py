"""Decodes clips to upright uint8 RGB frames with square pixels, following timestamps and color tags."""

import contextlib
import io
import math
import os
from collections import deque
from collections.abc import Generator, Iterator
from fractions import Fraction
from itertools import chain
from typing import Any, NamedTuple

import av
import av.container
import av.stream
import numpy as np
from av.error import BlockingIOError as FilterNeedsInput
from av.error import EOFError as FilterAtEnd
from av.error import FFmpegError
from av.filter import Graph
from av.video.reformatter import Interpolation, VideoReformatter

from vaejax.data.crop import Crop, Unreadable

EXTENSIONS = frozenset(
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

# FFmpeg's AVColorSpace of a frame -> number of the color matrix in swscale.
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
_LIMITED, _FULL = 1, 2  # values of FFmpeg's AVColorRange
_LANCZOS = Interpolation.LANCZOS | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# FFmpeg seeks in these formats by byte position; in a test, the frames after a seek were off by 10.
_NO_CLOCK_AFTER_SEEK = {"mpeg", "mpegvideo"}
# A title that is not UTF-8 must not make a clip unreadable; PyAV 19 and later replace such text by default.
_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_TOLERANCE = 1e-3  # seconds; a file whose clock ticks in 1/600 s rounds times by up to 0.8 ms


@contextlib.contextmanager
def _open(file: str | os.PathLike | bytes) -> Iterator[tuple]:
    """Opens a clip; yields the container and its first video stream that is not cover art."""
    # The file: prefix and the whitelist keep a name like http:a.mp4 or a playlist from opening a connection.
    # The whitelist is not in `options`: PyAV passes those to the streams too, and before 18 crashes on .mpg.
    target = io.BytesIO(file) if isinstance(file, bytes) else f"file:{os.fspath(file)}"
    local = {"protocol_whitelist": "file"}
    with av.open(target, container_options=local, **_METADATA) as container:
        cover_art = av.stream.Disposition.attached_pic
        streams = [each for each in container.streams.video if not each.disposition & cover_art]
        if not streams:
            raise Unreadable("has no video stream")
        codec = streams[0].codec_context
        if codec is None:
            raise Unreadable("has no decoder for its video stream")
        codec.thread_count = 1  # worker processes already use all cores
        codec.options = {"err_detect": "explode"}  # raise an error; by default FFmpeg conceals damage
        yield container, streams[0]


def open_container(path: str | os.PathLike) -> av.container.InputContainer:
    """Opens a clip to copy its streams without decoding."""
    return av.open(f"file:{os.fspath(path)}", container_options={"protocol_whitelist": "file"}, **_METADATA)


class _Frame(NamedTuple):
    time: float  # seconds by the file's clock; `_frames_from` makes it seconds after the first frame
    period: float  # seconds for which the frame is shown if it is the last one
    ratio: float  # pixel aspect ratio: width of a coded pixel / its height
    codec: str
    picture: av.VideoFrame


def _decode(container, stream) -> Iterator[_Frame]:
    """Yields the frames in display order; times that are missing or do not increase are estimated."""
    nominal = float(1 / (stream.average_rate or Fraction(25)))
    ratio = float(stream.sample_aspect_ratio or 1)
    ratio = ratio if 0.1 < ratio < 10 else 1.0  # a header with a ratio outside this range is wrong
    last = None
    for picture in container.decode(stream):
        time = picture.time
        if time is None or (last is not None and time <= last):
            time = 0.0 if last is None else last + nominal
        last = time
        period = float(picture.duration * picture.time_base) if picture.duration else nominal
        yield _Frame(time, period, ratio, stream.codec_context.name, picture)


def _frames_from(file: str | os.PathLike | bytes, start: float) -> Generator[_Frame]:
    """Yields frames, beginning with a keyframe at or before `start`, or with the first if seeking fails."""
    with _open(file) as (container, stream):
        frames = _decode(container, stream)
        first = next(frames, None)
        if first is None:
            raise Unreadable("no frame can be decoded")
        frames = _seek(container, stream, first, start) if start > 0 else chain([first], frames)
        if frames is not None:
            for frame in frames:
                yield frame._replace(time=frame.time - first.time)
            return
    with _open(file) as (container, stream):
        for frame in _decode(container, stream):
            yield frame._replace(time=frame.time - first.time)


def _seek(container, stream, first: _Frame, start: float) -> Iterator[_Frame] | None:
    """The frames, beginning with a keyframe at or before `start`; None if seeking fails or lands later."""
    tick = first.picture.time_base
    if first.picture.pts is None or tick is None or container.format.name in _NO_CLOCK_AFTER_SEEK:
        return None
    try:
        container.seek(int((first.time + start) / tick), stream=stream)
        frames = _decode(container, stream)
        landed = next(frames, None)
    except FFmpegError:
        return None
    if landed is None or landed.picture.pts is None or landed.time > first.time + start + _TOLERANCE:
        return None
    return chain([landed], frames)


def _deinterlace(frames: Iterator[_Frame]) -> Iterator[_Frame]:
    """Deinterlaces the frames flagged as interlaced, with FFmpeg's bwdif; all others pass unchanged."""
    graph: Graph | None = None
    waiting: deque[_Frame] = deque()  # the filter looks one frame ahead, so its output comes one frame later
    for frame in frames:
        picture = frame.picture
        if graph is None and not picture.interlaced_frame:
            yield frame
            continue
        if graph is None:
            graph = Graph()
            buffer = graph.add_buffer(
                width=picture.width,
                height=picture.height,
                format=picture.format,
                time_base=picture.time_base or Fraction(1, 1000),
            )
            bwdif = graph.add("bwdif", "mode=send_frame:deint=interlaced")
            graph.link_nodes(buffer, bwdif, graph.add("buffersink")).configure()
        waiting.append(frame)
        graph.push(picture)
        yield from _pull(graph, waiting)
    if graph is not None:
        graph.push(None)
        yield from _pull(graph, waiting)


def _pull(graph: Graph, waiting: deque[_Frame]) -> Iterator[_Frame]:
    while waiting:
        try:
            picture = graph.pull()
        except (FilterNeedsInput, FilterAtEnd):
            return
        yield waiting.popleft()._replace(picture=picture)  # keeps the time: the filter has its own


def _intervals(frames: Iterator[_Frame]) -> Generator[tuple[float, float, _Frame]]:
    """Yields (begin, end, frame): the times, in seconds, at which a frame appears and disappears.

    If the clip is damaged, raises the error only after the last intact frame.
    """
    current = damage = None
    try:
        for frame in frames:
            if current is not None:
                yield current.time, frame.time, current
            current = frame
    except FFmpegError as error:
        damage = error
    if current is not None:
        yield current.time, current.time + current.period, current
    if damage is not None:
        raise damage


def read(
    file: str | os.PathLike | bytes, count: int, fps: float | None, start: float, crop: Crop
) -> np.ndarray:
    """Reads `count` frames, uint8 (count, H, W, 3), from `start` seconds on; see media.read."""
    out = np.empty((count, crop.height, crop.width, 3), np.uint8)
    done, scale = 0, _Scaler(crop)
    with contextlib.closing(_intervals(_deinterlace(_frames_from(file, start)))) as intervals:
        for _, end, frame in intervals:
            # `until` counts the requested times, start + i / fps, that precede the next frame. Without fps,
            # every frame that is still shown after `start` is requested once.
            left = end - _TOLERANCE - start
            until = done + (left > 0) if fps is None else min(count, math.ceil(left * fps))
            if until > done:
                out[done:until] = scale(frame)
                done = until
            if done == count:
                return out
    rate = "" if fps is None else f" at {fps:g} fps"
    raise Unreadable(f"only {done} of {count} frames from {start:g} s{rate}: the clip ends")


class Clock(NamedTuple):
    """The timing of a clip, according to its header and first frame.

    Attributes:
      start: time of the first frame in seconds, on the clock that the file's video and audio share.
      rates: frame rates that the header declares, the most likely first; some files have none or wrong ones.
    """

    start: float
    rates: tuple[Fraction, ...]


def clock(file: str | os.PathLike | bytes) -> Clock:
    """Reads the timing of a clip; see media.clock."""
    with _open(file) as (container, stream):
        first = next(_decode(container, stream), None)
        if first is None:
            raise Unreadable("no frame can be decoded")
        rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
        return Clock(first.time, tuple(Fraction(rate) for rate in rates if rate))


def stream(file: str | os.PathLike | bytes) -> Iterator[tuple[float, float, np.ndarray]]:
    """Reads every frame at the clip's own size; see media.stream."""
    damage: list[FFmpegError] = []
    scale: _Scaler | None = None
    with contextlib.closing(_frames_from(file, 0.0)) as frames:
        for frame in _deinterlace(_intact(frames, damage)):
            if scale is None:
                width, height = _shown_size(frame)
                scale = _Scaler(Crop(height, width, max_upscale=math.inf))
            yield frame.time, frame.period, scale(frame)
    if damage:
        raise damage[0]


def _intact(frames: Iterator[_Frame], damage: list[FFmpegError]) -> Iterator[_Frame]:
    """Yields frames until an error, and appends the error to `damage` instead of raising it.

    The deinterlacer can therefore still return the frames that it holds.
    """
    try:
        yield from frames
    except FFmpegError as error:
        damage.append(error)


def _orientation(picture: av.VideoFrame) -> tuple[int, bool]:
    """The counterclockwise quarter turns from the coded to the shown picture, and whether to mirror it first.

    Both come from the display matrix, because `VideoFrame.rotation` takes mirrored pictures for upside-down
    ones.
    """
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0, False
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
    mirrored = a * d < b * c
    if mirrored:
        a, b = -a, -b
    return -round(math.atan2(b, a) / (math.pi / 2)) % 4, mirrored


def _shown_size(frame: _Frame) -> tuple[int, int]:
    """Width and height as displayed: the width is stretched to square pixels; a quarter turn swaps both."""
    size = max(1, round(frame.picture.width * frame.ratio)), frame.picture.height
    return (size[1], size[0]) if _orientation(frame.picture)[0] % 2 else size


class _Scaler:
    """Converts a clip's frames to RGB at the scale of a crop, in one swscale pass; then rotates and crops.

    Lanczos with full chroma and accurate rounding has a PSNR of 54 to 59 dB against an exact conversion
    followed by Pillow's Lanczos, and is 8 times as fast as that at 720p. PyAV's defaults (bilinear, half
    chroma) reach 43 dB.
    """

    def __init__(self, crop: Crop):
        self._crop, self._reformatter = crop, VideoReformatter()  # reused, because it caches filters

    def __call__(self, frame: _Frame) -> np.ndarray:
        """Converts a frame to uint8 (H, W, 3), the size of the crop."""
        shown, (turns, mirrored) = _shown_size(frame), _orientation(frame.picture)
        left, top, right, bottom = self._crop.box(shown)
        wide = max(self._crop.width, round(shown[0] * self._crop.width / (right - left)))
        high = max(self._crop.height, round(shown[1] * self._crop.height / (bottom - top)))
        x = min(round(left * self._crop.width / (right - left)), wide - self._crop.width)
        y = min(round(top * self._crop.height / (bottom - top)), high - self._crop.height)
        coded = (high, wide) if turns % 2 else (wide, high)
        rgb = self._rgb(frame.picture, *coded)
        upright = np.rot90(rgb[:, ::-1] if mirrored else rgb, turns)
        return upright[y : y + self._crop.height, x : x + self._crop.width]

    def _rgb(self, picture: av.VideoFrame, width: int, height: int) -> np.ndarray:
        """Converts a picture to RGB by its tagged color matrix and range.

        Like players, it takes untagged pictures as limited range (yuvj formats: full range), and as BT.709 if
        they have at least 720 lines, otherwise as BT.601.
        """
        colors = {}
        if not picture.format.is_rgb:
            matrix = _MATRICES.get(int(picture.colorspace), 1 if picture.height >= 720 else 5)
            full = int(picture.color_range) == _FULL or picture.format.name.startswith("yuvj")
            colors = {"src_colorspace": matrix, "src_color_range": _FULL if full else _LIMITED}
        return self._reformatter.reformat(
            picture, width, height, "rgb24", interpolation=_LANCZOS, threads=1, **colors
        ).to_ndarray()


def probe(file: str | os.PathLike | bytes) -> dict:
    """Decodes a whole clip; returns the result of media.probe without 'bits_per_pixel'."""
    count, last = 0, None
    try:
        with contextlib.closing(_frames_from(file, 0.0)) as frames:
            for last in frames:  # noqa: B007 - the last frame gives the duration
                count += 1
    except FFmpegError:
        if last is None:
            raise
    if last is None:
        raise Unreadable("no frame can be decoded")
    width, height = _shown_size(last)
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
