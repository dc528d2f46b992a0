"""Clips as uint8 frames at their true times: rotated, with square pixels, in the colours tagged."""

import contextlib
import io
import math
import os
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from vaejax.data.crop import Cut, Unreadable

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

_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # AVColorSpace of a frame -> swscale's matrix
_LIMITED, _FULL = 1, 2  # AVColorRange
_LANCZOS = Interpolation.LANCZOS | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_NO_CLOCK_AFTER_SEEK = {"mpeg", "mpegvideo"}  # time goes by bytes there: frames came out 10 off
# Titles in another encoding than UTF-8 are no reason to refuse a clip; from 19 on PyAV replaces by itself.
_METADATA = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_TOLERANCE = 1e-3  # seconds; a clock of 1/600 s rounds a frame's time by up to 0.8 ms


@contextlib.contextmanager
def _open(source) -> Iterator[tuple]:
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


def opened(path) -> av.container.InputContainer:
    """A clip's file, to copy streams of it as they are."""
    return av.open(f"file:{os.fspath(path)}", container_options={"protocol_whitelist": "file"}, **_METADATA)


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
    with _open(source) as (container, stream):
        frames = _decoded(container, stream)
        first = next(frames, None)
        if first is None:
            raise Unreadable("no frame can be decoded")
        frames = _sought(container, stream, first, start) if start > 0 else chain([first], frames)
        if frames is not None:
            for frame in frames:
                yield frame._replace(time=frame.time - first.time)
            return
    with _open(source) as (container, stream):
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


def read(source, count: int, fps: float | None, start: float, cut: Cut) -> np.ndarray:
    """Reads `count` frames, uint8 (T, H, W, 3), from `start` seconds on; see media.read."""
    out = np.empty((count, cut.height, cut.width, 3), np.uint8)
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


class Clock(NamedTuple):
    """What a clip's header and its first frame tell of its time.

    Attributes:
      start: of the first frame, seconds by the file's own clock, which its audio shares.
      rates: frames a second that the header names, the likelier first; none, or wrong, in some files.
    """

    start: float
    rates: tuple[Fraction, ...]


def clock(source) -> Clock:
    """See media.clock."""
    with _open(source) as (container, stream):
        first = next(_decoded(container, stream), None)
        if first is None:
            raise Unreadable("no frame can be decoded")
        rates = (stream.average_rate, stream.guessed_rate, stream.base_rate)
        return Clock(first.time, tuple(Fraction(rate) for rate in rates if rate))


def stream(source) -> Iterator[tuple[float, float, np.ndarray]]:
    """Every frame at its own size; see media.stream."""
    damage, scale = [], None
    with contextlib.closing(_frames_from(source, 0.0)) as frames:
        for frame in _deinterlaced(_sound(frames, damage)):
            if scale is None:
                width, height = _shown_size(frame)
                scale = _Scaler(Cut(height, width, max_upscale=math.inf))
            yield frame.time, frame.period, scale(frame)
    if damage:
        raise damage[0]


def _sound(frames: Iterator[_Frame], damage: list) -> Iterator[_Frame]:
    """The frames before damage, which is added to `damage`: what waits for the next frame is not lost."""
    try:
        yield from frames
    except av.error.FFmpegError as error:
        damage.append(error)


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


def _shown_size(frame: _Frame) -> tuple[int, int]:
    """Width and height as displayed: square pixels (the width is stretched), then the rotation."""
    size = max(1, round(frame.picture.width * frame.ratio)), frame.picture.height
    return size[::-1] if _orientation(frame.picture)[0] % 2 else size


class _Scaler:
    """Colour, size and rotation of a clip's frames in one swscale pass, and the crop.

    Lanczos with full chroma and rounding: 54 to 59 dB from an exact conversion followed by Pillow's Lanczos,
    at 8x its speed on 720p. swscale's defaults (bilinear, half the chroma) are at 43 dB.
    """

    def __init__(self, cut: Cut):
        self._cut, self._reformatter = cut, VideoReformatter()  # one: its filter tables are made once

    def __call__(self, frame: _Frame) -> np.ndarray:
        """The frame as uint8 (H, W, C)."""
        shown, (turns, mirrored) = _shown_size(frame), _orientation(frame.picture)
        left, top, right, bottom = self._cut.box(shown)
        wide = max(self._cut.width, round(shown[0] * self._cut.width / (right - left)))
        high = max(self._cut.height, round(shown[1] * self._cut.height / (bottom - top)))
        x = min(round(left * self._cut.width / (right - left)), wide - self._cut.width)
        y = min(round(top * self._cut.height / (bottom - top)), high - self._cut.height)
        coded = (high, wide) if turns % 2 else (wide, high)
        rgb = self._rgb(frame.picture, *coded)
        upright = np.rot90(rgb[:, ::-1] if mirrored else rgb, turns)
        return upright[y : y + self._cut.height, x : x + self._cut.width]

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


def probe(source) -> dict:
    """Decodes a clip whole and says what is in it; see media.probe."""
    count = 0
    try:
        with contextlib.closing(_frames_from(source, 0.0)) as frames:
            for last in frames:  # noqa: B007 - the last frame gives the duration
                count += 1
    except av.error.FFmpegError:
        if not count:
            raise
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
