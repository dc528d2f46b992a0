"""The content of a file: its path, its bytes, or a part of a larger file, on disk or in a bucket."""

import io
import os
from typing import Any, BinaryIO, NamedTuple

from vaejax.runtime import storage


class Part(NamedTuple):
    """A file within a file, such as a member of a tar; or an object in a bucket.

    Attributes:
      path: path or URL of the whole file.
      start: position of the part's first byte.
      length: bytes of the part.
    """

    path: str
    start: int
    length: int

    def open(self) -> BinaryIO:
        """Opens the part; seeking reads nothing, so a span of a long clip costs few bytes."""
        ahead = 2**20 if storage.is_url(self.path) else 2**17
        return io.BufferedReader(_Window(self), ahead)

    def read(self) -> bytes:
        """Reads the whole part."""
        return storage.read(self.path, self.start, self.length)


Content = str | os.PathLike | bytes | Part  # a file that is read: its path, its bytes, or a part


def opened(content: Content) -> BinaryIO:
    """Opens a file of any kind for reading."""
    if isinstance(content, bytes):
        return io.BytesIO(content)
    return content.open() if isinstance(content, Part) else open(content, "rb")


def size_of(content: Content) -> int:
    """The size of a file in bytes."""
    if isinstance(content, bytes):
        return len(content)
    return content.length if isinstance(content, Part) else os.stat(content).st_size


class _Window(io.RawIOBase):
    """The bytes of a part, read when they are asked for."""

    def __init__(self, part: Part):
        self._part, self._at = part, 0
        # The file stays open, because a clip is read in many pieces.
        self._file = None if storage.is_url(part.path) else open(part.path, "rb", buffering=0)  # noqa: SIM115

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._part.length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._part.length - self._at)
        if count <= 0:
            return 0
        start = self._part.start + self._at
        if self._file:
            self._file.seek(start)
            content = self._file.read(count)
        else:
            content = storage.read(self._part.path, start, count)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        if self._file:
            self._file.close()
        super().close()
