"""Reads which steps an offline folder of Weights & Biases holds.

The process of W&B keeps up to 15 seconds of data in memory, and loses them if it or the run is killed. So
only its file says what was kept. A .wandb file is a log in LevelDB's format behind a header of seven bytes.
Its records are protocol buffers, whose classes the package wandb contains.
"""

import os
import pathlib
import struct
import zlib
from collections.abc import Iterator

HEADER = b":W&B\xe1\xbe\x00"
BLOCK = 32768  # a fragment of a record never crosses a multiple of this
FRAGMENT = struct.Struct("<IHB")  # checksum, length and kind, in front of each fragment
FULL, LAST = 1, 4  # kinds that end a record; 2 and 3 are its first and middle fragments


def last_step(path: str | os.PathLike) -> int:
    """The step of the last row of numbers in a .wandb file that is whole; -1 if there is none.

    Raises:
      OSError: if the file cannot be read.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined] - made at import

    step = -1
    for data in _records(pathlib.Path(path).read_bytes()):
        record = Record.FromString(data)
        if record.HasField("history"):
            step = max(step, record.history.step.num)
    return step


def _records(log: bytes) -> Iterator[bytes]:
    """The records of a log, up to its end or to the first fragment that is cut or damaged."""
    at, record = len(HEADER), b""
    while log.startswith(HEADER) and at + FRAGMENT.size <= len(log):
        left = BLOCK - at % BLOCK
        if left < FRAGMENT.size:  # zeros fill the end of a block
            at += left
            continue
        checksum, length, kind = FRAGMENT.unpack_from(log, at)
        begin, at = at + FRAGMENT.size, at + FRAGMENT.size + length
        if checksum != zlib.crc32(bytes([kind]) + log[begin:at]):
            return
        record += log[begin:at]
        if kind in (FULL, LAST):
            yield record
            record = b""
