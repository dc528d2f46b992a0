"""Reads the crop of Matroska's video tracks, which FFmpeg's decoders do not apply."""

import io
from typing import BinaryIO, NamedTuple

from vaejax.runtime.content import Content, opened

# Identifiers of the elements to enter, and of those to read.
_SEGMENT, _TRACKS, _TRACK, _VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0xE0
_CLUSTER = 0x1F43B675
_CROPS = {0x54CC: "left", 0x54BB: "top", 0x54DD: "right", 0x54AA: "bottom"}
_LONGEST = 2**20  # bytes at the start of a file that are searched for the tracks


class Margins(NamedTuple):
    """Pixels to cut off at each side of a frame."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


def crops(file: Content) -> list[Margins]:
    """Returns the crop of every track in the order of FFmpeg's streams; [] if the file is damaged."""
    tracks: list[dict[str, int]] = []
    with opened(file) as stream:
        header = io.BytesIO(stream.read(_LONGEST))
    try:
        _read(header, len(header.getbuffer()), tracks)
    except (EOFError, ValueError):
        return []
    return [Margins(**track) for track in tracks]


def _read(file: BinaryIO, end: int, tracks: list[dict[str, int]]) -> bool:
    """Reads the elements up to a position; False once the first cluster begins."""
    while file.tell() < end:
        name = _number(file, keep_marker=True)
        size = _number(file)
        after = file.tell() + size
        if name == _CLUSTER:
            return False
        if name == _TRACK:
            tracks.append({})
        if name in (_SEGMENT, _TRACKS, _TRACK, _VIDEO) and not _read(file, min(after, end), tracks):
            return False
        if name in _CROPS and tracks:
            tracks[-1][_CROPS[name]] = int.from_bytes(file.read(size), "big")
        file.seek(after)
    return True


def _number(file: BinaryIO, keep_marker: bool = False) -> int:
    """Reads a number of variable length; identifiers keep the bit that marks the length."""
    first = file.read(1)
    if not first or not first[0]:
        raise EOFError
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    value = int.from_bytes(first + rest, "big")
    return value if keep_marker else value & ((1 << 7 * length) - 1)
