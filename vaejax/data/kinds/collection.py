"""Photos and clips in one place: a folder, tars, Parquet files. An index describes their content."""

import abc
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vaejax.data import media
from vaejax.errors import InputError
from vaejax.runtime import storage
from vaejax.runtime.content import Content, Part
from vaejax.runtime.storage import Entry


@dataclass(frozen=True)
class Collection(abc.ABC):
    """Photos and clips in one place; picklable, because worker processes read them.

    Attributes:
      location: path or URL of the folder or file.
    """

    location: str
    NEEDED: ClassVar[str] = "a folder with photos or clips"  # for error messages
    AT_ONCE: ClassVar[int] = 1  # number of entries whose rows a worker of a cluster lists at a time

    is_folder: ClassVar[bool] = True  # whether `location` is a folder, in which an index can be stored

    @property
    def variant(self) -> str:
        """Distinguishes the index from those of other collections in the same folder; '' for loose files."""
        return ""

    @property
    def root(self) -> str:
        """Path or URL of the folder to which the files' paths are relative."""
        return self.location

    def check(self, name: str) -> None:
        """Checks that the folder exists; `name` is the setting or argument that named it.

        Raises:
          InputError: if it does not exist, or cannot be listed.
        """
        if not storage.is_folder(self.location, name):
            raise InputError(f"{name} = {self.location}: no such folder; accepted: {self.NEEDED}")

    def entries(self, name: str, others: Counter[str]) -> Iterator[Entry]:
        """Lists the files that are, or hold, the photos and clips: one by one, without reading them.

        Args:
          name: setting or argument that named the collection, for error messages.
          others: counts the files of other kinds by their endings.
        """
        for entry in storage.walk(self.location, name):
            if self.takes(entry.path):
                yield entry
            else:
                others[os.path.splitext(entry.path)[1].lower()] += 1

    def listed(self, name: str) -> Iterator[Entry]:
        """Lists the files on which the index depends; `name` is the setting that named the collection."""
        yield from self.entries(name, Counter())

    def takes(self, path: str) -> bool:
        """Whether a file, by its name, is or holds photos or clips."""
        return media.kind_of(path) is not None

    @abc.abstractmethod
    def rows(self, entry: Entry, name: str, others: Counter[str]) -> Iterator[dict[str, Any]]:
        """Lists the photos and clips in one of `entries`, which has the same arguments.

        Yields:
          Dictionaries with the columns path, kind, size and mtime_ns of an index; with shard, position and
          length for a file within a file; with labels if the collection has columns of its own; with error
          for what cannot be listed.
        """

    def files(
        self, entries: Iterable[Entry], name: str, known: Iterable[Mapping[str, Any]], others: Counter[str]
    ) -> Iterator[dict[str, Any]]:
        """Lists the photos and clips in some entries.

        Args:
          entries: some of `entries`.
          name: setting or argument that named the collection, for error messages.
          known: rows of an earlier index, from which the files in unchanged entries are taken.
          others: counts the files of other kinds by their endings.
        """
        earlier = _by_shard(known)
        for entry in entries:
            yield from earlier.get((entry.path, entry.version)) or self.rows(entry, name, others)

    def content(self, path: str, shard: str, position: int, length: int) -> Content:
        """The content of a file: its path, its bytes, or a part of a file.

        Args:
          path: path or URL of the file; not used if there is a shard.
          shard: path or URL of the file that holds it, or ''.
          position: its first byte in the shard, or its row.
          length: bytes; not used for a file on disk.
        """
        if shard:
            return Part(shard, position, length)
        return Part(path, 0, length) if storage.is_url(path) else path

    def content_of(self, row: Mapping[str, Any]) -> Content:
        """The content of the file in a row of the index."""
        path, shard = (storage.join(self.root, row.get(key) or "") for key in ("path", "shard"))
        position, length = (row.get(key) or 0 for key in ("position", "length"))
        return self.content(path, shard if row.get("shard") else "", position, length)


def _by_shard(known: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The rows of an earlier index by shard and version, except those of shards that were damaged."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    damaged = set()
    for row in known:
        if row["shard"]:
            rows[row["shard"], row["mtime_ns"]].append(dict(row))
            if row["path"] == row["shard"]:
                damaged.add((row["shard"], row["mtime_ns"]))
    return {key: of_shard for key, of_shard in rows.items() if key not in damaged}


class Folder(Collection):
    """A folder tree of photos and clips, on disk or in a bucket; hidden files are left out."""

    AT_ONCE = 10_000

    def rows(self, entry, name, others):  # noqa: D102
        path, size, version = entry
        yield {"path": path, "kind": media.kind_of(path), "size": size, "mtime_ns": version, "length": size}
