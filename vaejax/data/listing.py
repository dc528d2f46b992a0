"""The digest of a collection's files by names, sizes and versions, taken while they are listed."""

import hashlib
from collections.abc import Iterable, Iterator

from vaejax.runtime.storage import Entry


class Listing:
    """The files that a collection lists. Their order does not matter, and none is kept in memory.

    Attributes:
      is_final: whether another scan of the same files would find nothing else.
    """

    def __init__(self) -> None:
        self._sum, self.is_final = 0, True

    def over(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Yields entries, and adds them."""
        for entry in entries:
            text = f"{entry.size} {entry.version} {entry.path}".encode("utf-8", "surrogateescape")
            self._sum += int.from_bytes(hashlib.blake2b(text, digest_size=16).digest())
            self.is_final &= bool(entry.version)  # those of most manifests have none
            yield entry

    @property
    def digest(self) -> str:
        """Changes with any file; '' if the listing is not final."""
        return f"{self._sum % 2**128:032x}" if self.is_final else ""
