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

from vaejax.data import clip
from vaejax.errors import InputError, one_line

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
    with clip.opened(path) as container:
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            return None
        found = codec_name(stream)
        if not holds("matroska", stream):
            raise InputError(f"audio of the kind {found}; accepted: what Matroska can hold")
        file, times = tempfile.TemporaryFile(), array.array("d")  # noqa: SIM115 - given to the caller
        try:
            with av.open(file, "w", format="matroska", options=REPRODUCIBLE) as out:
                copy = out.add_stream_from_template(stream)
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
    """

    def __init__(self, audio: Audio, out: av.container.OutputContainer):
        audio.file.seek(0)
        self._tick, self._out = audio.tick, out
        self._container = av.open(audio.file, format="matroska")
        stream = self._container.streams.audio[0]
        self._copy = out.add_stream_from_template(stream)
        self._copy.time_base = audio.tick
        found = (packet for packet in self._container.demux(stream) if packet.size)
        ticks = [round(time / audio.tick) for time in (*audio.times, audio.end)]
        self._left = zip(found, audio.times, itertools.pairwise(ticks), strict=True)
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


def holds(container: str, stream: av.AudioStream) -> bool:
    """Says whether a container's format can hold a stream as it is."""
    try:
        with av.open(io.BytesIO(), "w", format=container) as out:
            out.add_stream_from_template(stream)
            out.start_encoding()
        return True
    except (av.error.FFmpegError, ValueError, AttributeError):
        return False


def codec_name(stream: av.AudioStream) -> str:
    """What the codec of a stream is called; of one that nobody knows 'unknown'."""
    return stream.codec_context.name if stream.codec_context else "unknown"


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
