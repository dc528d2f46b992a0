"""The audio of a clip, copied packet by packet: nothing is decoded, so every bit of it stays."""

import array
import contextlib
import io
import itertools
import math
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import BinaryIO, NamedTuple

import av
import numpy as np

from vaejax.data import clip
from vaejax.errors import InputError, one_line

# What channels are where a file only counts them: FFmpeg's own guess.
LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
REPRODUCIBLE = {"fflags": "+bitexact"}  # else Matroska draws random identifiers


class Audio(NamedTuple):
    """The first audio stream of a clip.

    Attributes:
      file: a Matroska file (.mka) of its packets. Its clock is of milliseconds and begins at 0.
      times: of every packet, exact, seconds from the clip's first frame; may be below 0.
      end: of the last packet, likewise.
      tick: seconds, of which times are multiples.
    """

    file: BinaryIO
    times: Sequence[float]
    end: float
    tick: Fraction


def copied(path: str, start: float, end: float | None) -> Audio | None:
    """Copies the packets of a clip's first audio stream.

    Args:
      path: of the clip.
      start: of its first frame, seconds by the file's clock.
      end: of what is kept, seconds from the first frame; None keeps all.

    Returns:
      None if there is none.

    Raises:
      InputError: if it cannot be copied.
    """
    try:
        with clip.open_container(path) as container:
            if not container.streams.audio:
                return None
            if not holds("matroska", container):
                found = codec_name(container.streams.audio[0])
                raise InputError(f"audio of the kind {found}; accepted: what Matroska can hold")
        container = clip.open_container(path)
    except av.error.FFmpegError as error:
        raise InputError(f"audio: {one_line(error)}; accepted: sound audio") from error
    with container:
        stream = container.streams.audio[0]
        found = codec_name(stream)
        file, times = tempfile.TemporaryFile(), array.array("d")  # noqa: SIM115 - given to the caller
        try:
            with av.open(file, "w", format="matroska", options=REPRODUCIBLE) as out:
                copy = _added(out, stream)
                shift = None
                for packet in _packets(container, stream):
                    time = float(packet.pts * packet.time_base) - start
                    if end is not None and time >= end:
                        break
                    if shift is None:  # before 0 Matroska has no time
                        shift = packet.pts if time < 0 else round(start / packet.time_base)
                    times.append(time)
                    last = time + float((packet.duration or 0) * packet.time_base)
                    tick = packet.time_base
                    packet.pts = packet.dts = packet.pts - shift
                    packet.stream = copy
                    out.mux(packet)
        except (av.error.FFmpegError, ValueError) as error:
            file.close()
            raise InputError(
                f"audio of the kind {found}: {one_line(error)}; accepted: sound audio"
            ) from error
        if not times:
            file.close()
            return None
        return Audio(file, times, last, tick)


class Copy:
    """Puts audio into a container that a clip is written to, its packets by time between the clip's.

    Args:
      audio: what `copied` gave.
      out: the container, before anything is written to it.

    Raises:
      InputError: also of `until`, if the audio cannot be read.
    """

    def __init__(self, audio: Audio, out: av.container.OutputContainer):
        audio.file.seek(0)
        self._tick, self._out = audio.tick, out
        with _read():
            self._container = av.open(audio.file, format="matroska")
        stream = self._container.streams.audio[0]
        self._copy = _added(out, stream)
        self._copy.time_base = audio.tick
        ticks = [round(time / audio.tick) for time in (*audio.times, audio.end)]
        self._left = zip(_stored(self._container), audio.times, itertools.pairwise(ticks), strict=True)
        self._next = next(self._left, None)

    def until(self, time: float = math.inf) -> None:
        """Writes the packets up to a time, seconds from the clip's first frame."""
        while self._next is not None and self._next[1] <= time:
            packet, _, (start, end) = self._next
            packet.time_base = self._tick
            packet.pts = packet.dts = start
            packet.duration = max(0, end - start)
            packet.stream = self._copy
            self._out.mux(packet)
            self._next = next(self._left, None)

    def close(self) -> None:
        """Ends reading."""
        self._container.close()


def is_whole(audio: Audio) -> bool:
    """Says whether every packet of stored audio is there, with a time of its own."""
    times, tick = np.asarray([*audio.times, audio.end], np.float64), audio.tick
    if tick <= 0 or not np.isfinite(times).all() or (np.diff(times[:-1]) < 0).any():
        return False
    audio.file.seek(0)
    try:
        with av.open(audio.file, format="matroska") as container:
            return sum(1 for _ in _stored(container)) == len(audio.times) > 0
    except (av.error.FFmpegError, InputError, IndexError):
        return False


def holds(kind: str, container: av.container.InputContainer) -> bool:
    """Says whether a format can hold the first audio stream of a container, of which it reads a packet."""
    stream = container.streams.audio[0]
    try:
        with av.open(io.BytesIO(), "w", format=kind) as out:
            copy = _added(out, stream)
            packet = next(_packets(container, stream), None)
            if packet is None:
                out.start_encoding()
            else:
                packet.pts = packet.dts = 0
                packet.stream = copy
                out.mux(packet)
        return True
    except (av.error.FFmpegError, ValueError, AttributeError):
        return False


def codec_name(stream: av.AudioStream) -> str:
    """What the codec of a stream is called; of one that nobody knows 'unknown'."""
    return stream.codec_context.name if stream.codec_context else "unknown"


def _added(out: av.container.OutputContainer, stream: av.AudioStream) -> av.AudioStream:
    """Adds a stream like another, with a layout where that has none: .mp4 takes no sound without."""
    copy = out.add_stream_from_template(stream)
    codec = copy.codec_context
    if codec and codec.layout.name == f"{codec.channels} channels" and codec.channels in LAYOUTS:
        codec.layout = LAYOUTS[codec.channels]
    return copy


def _stored(container) -> Iterator[av.Packet]:
    """Every packet of audio that `copied` stored."""
    with _read():
        yield from (packet for packet in container.demux(container.streams.audio[0]) if packet.size)


@contextlib.contextmanager
def _read() -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:
        raise InputError(f"its audio: {one_line(error)}; accepted: sound audio") from error


def _packets(container, stream) -> Iterator[av.Packet]:
    """The packets in order, up to damage; one without a time follows the last."""
    least = following = None
    with contextlib.suppress(av.error.FFmpegError):
        for packet in container.demux(stream):
            if packet.pts is None:
                packet.pts = following if packet.dts is None else packet.dts
            if not packet.size or packet.pts is None or (least is not None and packet.pts < least):
                continue  # a clock that jumps back cannot be muxed
            least, following = packet.pts, packet.pts + (packet.duration or 0)
            yield packet
