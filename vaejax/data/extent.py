"""Measures a clip by its container: it decodes the first frame, and reads packets at the end."""

import contextlib
from itertools import dropwhile
from typing import Any, NamedTuple

from av.error import FFmpegError

from vaejax.data.crop import Unreadable
from vaejax.data.frames import (
    JUMP,
    NO_CLOCK_AFTER_SEEK,
    Frame,
    cropped,
    decode,
    has_jumps,
    nominal_period,
    open_clip,
)
from vaejax.runtime.content import Content


class Extent(NamedTuple):
    """A clip's first frame, and how many follow, as its packets tell; damage among them is not noticed.

    Attributes:
      first: the first frame.
      frames: number of frames.
      last: time of the last frame, in seconds after the first.
      period: seconds for which the last frame is shown.
    """

    first: Frame
    frames: int
    last: float
    period: float


def extent(file: Content) -> Extent:
    """Measures a clip.

    It seeks to the end of the clip. If the format has no index, rate or clock for that, it reads all packets.

    Raises:
      Unreadable: if no frame can be decoded.
    """
    with open_clip(file) as (container, stream):
        first = next(decode(container, stream), None)
        if first is None:
            raise Unreadable("no frame can be decoded")
        shown = next(cropped(iter([first]), file, container, stream))
        packet = None if has_jumps(container) else _last_packet(container, stream)
        if packet is not None and stream.average_rate:
            last = float(packet.pts * packet.time_base) - first.time
            if last >= 0:
                frames = _indexed(stream) or round(last * float(stream.average_rate)) + 1
                return Extent(shown, frames, last, _period(packet, stream))
    with open_clip(file) as (container, stream):
        return _counted(shown, container, stream)


def _indexed(stream) -> int:
    """The number of frames in the container's index; 0 if that lists only keyframes, or there is none."""
    return sum(not entry.is_discard for entry in stream.index_entries) if stream.frames else 0


def _last_packet(container, stream) -> Any:
    """The packet of the last frame, found by seeking; None if that fails."""
    if not container.duration or container.format.name in NO_CLOCK_AFTER_SEEK:
        return None
    try:
        end = (container.start_time or 0) + container.duration  # microseconds
        container.seek(int(end / 1_000_000 / stream.time_base), stream=stream)
        packets = (packet for packet in container.demux(stream) if packet.pts is not None and _shows(packet))
        return max(packets, key=lambda packet: packet.pts, default=None)
    except (FFmpegError, OverflowError):  # damage, or a header with an impossible duration
        return None


def _counted(first: Frame, container, stream) -> Extent:
    """Counts all packets from the first keyframe on; a jump of the clock lasts one frame."""
    packets = dropwhile(lambda packet: not packet.is_keyframe, filter(_shows, container.demux(stream)))
    nominal, count, last, before = nominal_period(stream), 0, 0.0, None
    with contextlib.suppress(FFmpegError):  # damage ends the clip
        for packet in packets:
            if before is not None:
                step = nominal
                if before.dts is not None and packet.dts is not None:
                    step = float((packet.dts - before.dts) * packet.time_base)
                last += step if 0 < step <= JUMP else nominal
            count, before = count + 1, packet
    return Extent(first, max(1, count), last, first.period if before is None else _period(before, stream))


def _shows(packet) -> bool:
    """Whether a packet holds a frame that is shown; a clip that was trimmed keeps others."""
    return bool(packet.size) and not packet.is_discard


def _period(packet, stream) -> float:
    return float(packet.duration * packet.time_base) if packet.duration else nominal_period(stream)
