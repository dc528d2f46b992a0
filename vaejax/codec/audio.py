"""Copies the audio of a clip packet by packet, without decoding it: the audio stays bit for bit the same."""

import array
import contextlib
import io
import itertools
import math
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError

from vaejax.data import frames
from vaejax.errors import InputError, one_line
from vaejax.runtime.content import Content

# Number of channels -> FFmpeg's default layout, for files that give no layout.
LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
REPRODUCIBLE = {"fflags": "+bitexact"}  # otherwise Matroska files get random identifiers
ACCEPTED = "an undamaged audio stream"


class Audio(NamedTuple):
    """The default audio stream of a clip, else the first.

    Attributes:
      file: Matroska file (.mka) with the packets; its own timestamps are rounded to milliseconds.
      times: exact time of every packet, seconds from the clip's first frame; may be negative.
      end: end of the last packet, seconds from the clip's first frame.
      tick: time base of the stream, in seconds; written packet times are multiples of it.
    """

    file: BinaryIO
    times: Sequence[float] | np.ndarray
    end: float
    tick: Fraction


def copy(clip: Content, start: float, end: float | None) -> Audio | None:
    """Copies the packets of a clip's default audio stream, else of its first.

    Args:
      clip: the clip.
      start: time of the clip's first frame, seconds on the file's clock.
      end: time in seconds from the first frame; packets from this time on are dropped. None keeps all.

    Returns:
      The audio, whose `file` the caller must close; None if the clip has no audio before `end`.

    Raises:
      InputError: if the audio cannot be copied.
    """
    try:
        with frames.open_container(clip) as container:
            stream = frames.audio_stream(container)
            if stream is None:
                return None
            if not can_hold("matroska", container):
                name = codec_name(stream)
                accepted = "audio that Matroska can hold, e.g. re-encoded as AAC"
                raise InputError(f"audio codec {name}: cannot be copied; accepted: {accepted}")
        container = frames.open_container(clip)
    except FFmpegError as error:
        raise InputError(f"audio: {one_line(error)}; accepted: {ACCEPTED}") from error
    with container:
        stream = frames.audio_stream(container)
        name = codec_name(stream)
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        try:
            times, last = _copy_packets(container, stream, file, start, end)
        except (FFmpegError, ValueError) as error:
            file.close()
            raise InputError(f"audio codec {name}: {one_line(error)}; accepted: {ACCEPTED}") from error
        if not times:
            file.close()
            return None
        return Audio(file, times, *last)


def _copy_packets(
    container: Any, stream: Any, file: Any, start: float, end: float | None
) -> tuple[array.array, tuple[float, Fraction]]:
    """Copies packets to a Matroska file; returns their times, and the last packet's end and time base."""
    times, last = array.array("d"), (0.0, Fraction(1))
    with av.open(file, "w", format="matroska", options=REPRODUCIBLE) as out:
        copied = _add_stream(out, stream)
        shift = None
        for packet in _packets(container, stream):
            time = float(packet.pts * packet.time_base) - start
            if end is not None and time >= end:
                break
            if shift is None:  # audio before the first frame moves to 0: Matroska has no negative times
                shift = packet.pts if time < 0 else round(start / packet.time_base)
            times.append(time)
            last = time + float((packet.duration or 0) * packet.time_base), packet.time_base
            packet.pts = packet.dts = packet.pts - shift
            packet.stream = copied
            out.mux(packet)
    return times, last


class Muxer:
    """Writes copied audio into the container of a clip, interleaved with the clip's packets by time.

    Args:
      audio: the result of `copy`.
      out: the container, before anything is written to it.

    Raises:
      InputError: if the audio cannot be read; `write_until` raises it too.
    """

    def __init__(self, audio: Audio, out: OutputContainer):
        audio.file.seek(0)
        self._tick, self._out = audio.tick, out
        with _reading():
            self._container = av.open(audio.file, format="matroska")
        stream = self._container.streams.audio[0]
        self._stream = _add_stream(out, stream)
        self._stream.time_base = audio.tick
        ticks = [round(time / audio.tick) for time in (*audio.times, audio.end)]
        packets = _stored_packets(self._container)
        self._left = zip(packets, audio.times, itertools.pairwise(ticks), strict=True)
        self._next = next(self._left, None)

    def write_until(self, time: float = math.inf) -> None:
        """Writes the packets up to a time, in seconds from the clip's first frame."""
        while self._next is not None and self._next[1] <= time:
            packet, _, (start, end) = self._next
            packet.time_base = self._tick
            packet.pts = packet.dts = start
            packet.duration = max(0, end - start)
            packet.stream = self._stream
            self._out.mux(packet)
            self._next = next(self._left, None)

    def close(self) -> None:
        """Closes the source of the audio."""
        self._container.close()


def is_undamaged(audio: Audio) -> bool:
    """Whether every packet of stored audio is present and has a valid time."""
    times, tick = np.asarray([*audio.times, audio.end], np.float64), audio.tick
    if tick <= 0 or not np.isfinite(times).all() or (np.diff(times[:-1]) < 0).any():
        return False
    audio.file.seek(0)
    try:
        with av.open(audio.file, "r", format="matroska") as container:
            return sum(1 for _ in _stored_packets(container)) == len(audio.times) > 0
    except (FFmpegError, InputError, IndexError):
        return False


def can_hold(container_format: str, container: InputContainer) -> bool:
    """Whether a container format can hold the audio of an open container; reads one packet."""
    stream = frames.audio_stream(container)
    try:
        with av.open(io.BytesIO(), "w", format=container_format) as out:
            copied = _add_stream(out, stream)
            packet = next(_packets(container, stream), None)
            if packet is None:
                out.start_encoding()
            else:
                packet.pts = packet.dts = 0
                packet.stream = copied
                out.mux(packet)
        return True
    except (FFmpegError, ValueError, AttributeError):
        return False


def codec_name(stream: av.AudioStream) -> str:
    """Name of the codec of a stream; 'unknown' if FFmpeg does not know it."""
    return stream.codec_context.name if stream.codec_context else "unknown"


def _add_stream(out: OutputContainer, stream: av.AudioStream) -> Any:
    """Adds a stream with the settings of `stream`; sets a missing channel layout, because .mp4 needs one."""
    copied: Any = out.add_stream_from_template(stream)
    codec = copied.codec_context
    if codec and codec.layout.name == f"{codec.channels} channels" and codec.channels in LAYOUTS:
        codec.layout = LAYOUTS[codec.channels]
    return copied


def _stored_packets(container: Any) -> Iterator[Any]:
    """Yields every audio packet that `copy` stored."""
    with _reading():
        yield from (packet for packet in container.demux(container.streams.audio[0]) if packet.size)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turns errors of FFmpeg into an InputError."""
    try:
        yield
    except FFmpegError as error:
        raise InputError(f"its audio cannot be read: {one_line(error)}; accepted: {ACCEPTED}") from error


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yields the packets up to the first damage.

    A packet without a timestamp starts at its decoding time. If that is missing too, or after a discontinuity
    of the clock, the packet starts where the previous packet ended.
    """
    least = following = None
    offset, jumps = 0, frames.has_jumps(container)
    with contextlib.suppress(FFmpegError):
        for packet in container.demux(stream):
            if packet.pts is None:
                packet.pts = following if packet.dts is None else packet.dts
            if packet.size and packet.pts is not None:
                packet.pts += offset
                if (
                    jumps
                    and following is not None
                    and abs(packet.pts - following) * packet.time_base > frames.JUMP
                ):
                    offset += following - packet.pts
                    packet.pts = following
            if not packet.size or packet.pts is None or (least is not None and packet.pts < least):
                continue  # packets whose time runs backwards cannot be muxed
            least, following = packet.pts, packet.pts + (packet.duration or 0)
            yield packet
