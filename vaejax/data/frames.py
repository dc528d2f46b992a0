"""Decodes the undamaged frames of a clip, on a clock without jumps."""

import contextlib
import errno
import os
from collections.abc import Generator, Iterable, Iterator
from fractions import Fraction
from itertools import chain
from typing import Any, NamedTuple

import av
import av.container
import av.stream
from av.error import FFmpegError, InvalidDataError
from av.filter import Graph
from av.format import Flags

from vaejax.data import heic, matroska
from vaejax.data.crop import Unreadable
from vaejax.runtime.content import Content, opened

# Seconds. In formats whose clock may jump, FFmpeg treats a longer step as a jump.
JUMP = 10.0
# FFmpeg seeks in this format by byte position; in a test, the frames after a seek were off by 10.
NO_CLOCK_AFTER_SEEK = {"mpegvideo"}
_THUMBNAILS = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
# A title that is not UTF-8 must not make a clip unreadable; PyAV 19 and later replace such text by default.
_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# FFmpeg's own decoders of these codecs leave out alpha, which libvpx reads.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
TOLERANCE = 1e-3  # seconds; a file whose clock ticks in 1/600 s rounds times by up to 0.8 ms


@contextlib.contextmanager
def open_clip(file: Content) -> Iterator[tuple]:
    """Opens a clip; yields the container and the video stream that a player shows."""
    with open_container(file) as container:
        brands = (container.metadata.get(name, "") for name in ("major_brand", "compatible_brands"))
        heic.refuse(heic.split_brands("".join(brands)))
        stream = _shown_stream(container)
        codec = stream.codec_context
        _set_up(codec)
        yield container, stream


def _set_up(codec: Any) -> None:
    codec.thread_count = 1  # worker processes already use all cores
    codec.options = {"err_detect": "explode"}  # raise an error; by default FFmpeg conceals damage


def _shown_stream(container) -> Any:
    """The largest of the default video streams, or of all if there is no default; never cover art."""
    streams = [each for each in container.streams.video if not each.disposition & _THUMBNAILS]
    if not streams:
        raise Unreadable("has no video stream")
    streams = [each for each in streams if each.codec_context is not None]
    if not streams:
        raise Unreadable("has no decoder for its video stream")
    default = [each for each in streams if each.disposition & av.stream.Disposition.default]
    return max(default or streams, key=lambda each: each.codec_context.width * each.codec_context.height)


def audio_stream(container) -> Any:
    """The default audio stream, else the first; None if there is no audio."""
    streams = list(container.streams.audio)
    default = [each for each in streams if each.disposition & av.stream.Disposition.default]
    return next(iter(default or streams), None)


def open_container(file: Content) -> av.container.InputContainer:
    """Opens a clip, without setting up its decoders."""
    # The file: prefix and the whitelist keep a name like http:a.mp4 or a playlist from opening a connection.
    # The whitelist is not in `options`: PyAV also passes those to the streams, and versions before 18 then
    # crash on .mpg files.
    target = f"file:{os.fspath(file)}" if isinstance(file, str | os.PathLike) else opened(file)
    return av.open(target, container_options={"protocol_whitelist": "file"}, **_METADATA)


class Frame(NamedTuple):
    """A decoded frame and its time."""

    time: float  # seconds by the file's clock; `frames_from` makes it seconds after the first frame
    period: float  # seconds for which the frame is shown if it is the last one
    ratio: float  # pixel aspect ratio: width of a coded pixel / its height
    codec: str
    picture: av.VideoFrame
    gap: bool = False  # whether damaged frames before it are left out


def has_jumps(container) -> bool:
    """Whether the format allows discontinuities of the clock, as MPEG's streams do."""
    return bool(container.format.flags & Flags.ts_discont.value)


def decode(container, stream, packets: Iterable | None = None, offset: float = 0.0) -> Iterator[Frame]:
    """Yields the frames in display order; times that are missing or do not increase are estimated.

    Args:
      container: the open clip.
      stream: its video stream.
      packets: the packets to decode; None decodes the whole stream.
      offset: seconds to add to the file's clock, for discontinuities before the first of `packets`.
    """
    nominal = nominal_period(stream)
    ratio = float(stream.sample_aspect_ratio or 1)
    ratio = ratio if 0.1 < ratio < 10 else 1.0  # a header with a ratio outside this range is wrong
    jumps, last = has_jumps(container), None
    for picture, gap in _pictures(_decoder(stream), container.demux(stream) if packets is None else packets):
        time = None if picture.time is None else picture.time + offset
        if last is not None and time is not None and jumps and abs(time - last) > JUMP:
            offset += last + nominal - time
            time, gap = last + nominal, False
        if time is None or (last is not None and time <= last):
            time = 0.0 if last is None else last + nominal
        last = time
        period = float(picture.duration * picture.time_base) if picture.duration else nominal
        yield Frame(time, period, ratio, stream.codec_context.name, picture, gap)


def nominal_period(stream) -> float:
    """Seconds per frame according to the header; 1/25 if it has no frame rate."""
    return float(1 / (stream.average_rate or Fraction(25)))


def _decoder(stream) -> Any:
    """The decoder of a stream: a new one of libvpx if only this reads the alpha, else PyAV's own."""
    own = stream.codec_context
    name = _ALPHA_DECODERS.get(own.name)
    if stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return own
    codec = av.CodecContext.create(name, "r")
    codec.extradata = own.extradata
    _set_up(codec)
    return codec


def _pictures(decoder, packets: Iterable) -> Iterator[tuple[Any, bool]]:
    """Decodes packets; yields pictures, and whether damaged ones before them are left out.

    Packets that fail before the first picture are skipped: a recording may begin between keyframes. From a
    packet that the demuxer marks as corrupt, all pictures up to the next keyframe are left out. If recordings
    are joined, the end of the first is marked too, because the packet counter jumps along with the clock. It
    is decoded.
    """
    begun, gap, held = False, False, []
    for packet in packets:
        if held and packet.size and not (packet.is_keyframe and not packet.is_corrupt):
            held.append(packet)
            continue
        if held:
            joined = bool(packet.size) and _jumps_between(held[-1], packet)
            if joined:
                for picture in _attempt(decoder, held):
                    yield picture, gap
                    gap = False
            else:
                for picture in decoder.decode(None):
                    picture.time_base = held[0].time_base
                    yield picture, gap
                    gap = False
                decoder.flush_buffers()
                gap = begun
            held = []
            if not packet.size:
                raise _damaged()
        elif packet.size and packet.is_corrupt:
            held = [packet]
            continue
        try:
            pictures = decoder.decode(packet)
        except FFmpegError:
            if begun:
                raise
            continue
        for picture in pictures:
            if begun and picture.is_corrupt:
                raise _damaged()
            if not picture.is_corrupt:
                begun = True
                yield picture, gap
                gap = False


def _attempt(decoder, packets: Iterable) -> Iterator[av.VideoFrame]:
    """Decodes packets up to the first that fails."""
    with contextlib.suppress(FFmpegError):
        for packet in packets:
            yield from (picture for picture in decoder.decode(packet) if not picture.is_corrupt)


def _jumps_between(before, after) -> bool:
    """Whether the clock has a discontinuity between two packets."""
    if before.dts is None or after.dts is None:
        return False
    return abs(float((after.dts - before.dts) * after.time_base)) > JUMP


def _damaged() -> FFmpegError:
    return InvalidDataError(errno.EINVAL, "damaged frames")


def frames_from(file: Content, start: float) -> Generator[Frame]:
    """Yields frames, beginning with a keyframe at or before `start`, or with the first if seeking fails."""
    with open_clip(file) as (container, stream):
        frames = decode(container, stream)
        first = next(frames, None)
        if first is None:
            raise Unreadable("no frame can be decoded")
        jumps = has_jumps(container)
        found = None
        if start <= 0:
            found = chain([first], frames)
        elif not jumps:
            found = _seek(container, stream, first, start)
        if found is not None:
            yield from _since(first.time, cropped(found, file, container, stream))
            return
    with open_clip(file) as (container, stream):
        frames = _skip(container, stream, first.time + start) if jumps else decode(container, stream)
        yield from _since(first.time, cropped(frames, file, container, stream))


def _since(start: float, frames: Iterator[Frame]) -> Iterator[Frame]:
    """The frames at their times after `start`, in seconds."""
    for frame in frames:
        yield frame._replace(time=frame.time - start)


def cropped(frames: Iterator[Frame], file: Any, container, stream) -> Iterator[Frame]:
    """The frames with the crop of a Matroska file applied; those of other files are unchanged."""
    margins, crop = matroska.Margins(), None
    if container.format.name.startswith("matroska"):
        margins = dict(enumerate(matroska.crops(file))).get(stream.index, margins)
    for frame in frames:
        picture = frame.picture
        if any(margins):
            crop = crop or _crop_filter(picture, margins)
            crop.push(picture)
            picture = crop.pull()
        yield frame._replace(picture=picture)


def _crop_filter(picture: Any, margins: matroska.Margins) -> Graph:
    left, top, right, bottom = margins
    width, height = picture.width - left - right, picture.height - top - bottom
    return filter_graph(picture, "crop", f"{width}:{height}:{left}:{top}:exact=1")


def filter_graph(picture: Any, name: str, options: str) -> Graph:
    """A graph with one of FFmpeg's filters, for pictures of this size and format."""
    graph = Graph()
    buffer = graph.add_buffer(
        width=picture.width,
        height=picture.height,
        format=picture.format,
        time_base=picture.time_base or Fraction(1, 1000),
    )
    graph.link_nodes(buffer, graph.add(name, options), graph.add("buffersink")).configure()
    return graph


def _skip(container, stream, until: float) -> Iterator[Frame]:
    """The frames, beginning with the last keyframe at or before a time, on a clock without its jumps.

    Reads all packets before it, but does not decode them: after a jump, a seek would land elsewhere.
    """
    nominal = nominal_period(stream)
    packets, group, offset, group_offset, latest, previous = container.demux(stream), [], 0.0, 0.0, None, None
    for packet in packets:
        if packet.pts is not None and packet.size:
            time = float(packet.pts * packet.time_base)
            if latest is not None and previous is not None and _jumps_between(previous, packet):
                offset = latest + nominal - time
            time += offset
            if packet.is_keyframe and not packet.is_corrupt:
                if group and time > until + TOLERANCE:
                    return decode(container, stream, chain(group, [packet], packets), group_offset)
                group, group_offset = [], offset
            latest = time if latest is None else max(latest, time)
            previous = packet
        group.append(packet)
    return decode(container, stream, group, group_offset)


def _seek(container, stream, first: Frame, start: float) -> Iterator[Frame] | None:
    """The frames, beginning with a keyframe at or before `start`; None if seeking fails or lands later."""
    tick = first.picture.time_base
    if first.picture.pts is None or tick is None or container.format.name in NO_CLOCK_AFTER_SEEK:
        return None
    try:
        container.seek(int((first.time + start) / tick), stream=stream)
        frames = decode(container, stream)
        landed = next(frames, None)
    except FFmpegError:
        return None
    if landed is None or landed.picture.pts is None or landed.time > first.time + start + TOLERANCE:
        return None
    return chain([landed], frames)
