"""Collections with too many files to go through one by one at every start.

Their tables are files that processes map into memory, see `vaejax.data.mapped`. A collection is opened from
its table as long as its files, its index and the settings are those from which the table was made. Its files
are split by a rule. Files that several paths reach are found when the table is made.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from vaejax import files
from vaejax.data import index_file, mapped, media
from vaejax.data.kinds.collection import Collection
from vaejax.data.listing import Listing
from vaejax.data.spans import USED
from vaejax.data.split_rule import HASH, Facts, Hashes, Rule, name_hashes
from vaejax.runtime import storage

pc: Any = pyarrow.compute  # its functions are made at import


def described(
    collection: Collection, index: pa.Table, summary: str, unreadable: Sequence[tuple[str, str]]
) -> tuple[Facts, pa.Table]:
    """The facts of a collection; and its readable files without repeats, as `hashed` returns them."""
    index = hashed(index)
    first = _first_paths(collection, index)
    facts = Facts(summary, unreadable, *extents(index.filter(pa.array(first))), len(index) - int(first.sum()))
    return facts, index if first.all() else index.filter(pa.array(first))


def hashed(index: pa.Table) -> pa.Table:
    """The readable files of an index, with the hashes of their names in the column HASH."""
    index = index.select([name for name in USED if name in index.column_names])
    index = index.filter(index["error"].is_null())
    names = pc.coalesce(index["name"], index["path"]) if "name" in index.column_names else index["path"]
    return index.append_column(HASH, pa.array(name_hashes(names)))


def extents(index: pa.Table) -> tuple[Hashes, Hashes]:
    """The hashes of the photos and of the clips in a table from `hashed`."""
    hashes, clip = index[HASH].to_numpy(), index["frames"].to_numpy() > 1
    return Hashes.of(hashes[~clip]), Hashes.of(hashes[clip])


def _first_paths(collection: Collection, index: pa.Table) -> np.ndarray:
    """Whether each path is the first to its file, bool (n,): links and hard links lead to the same file."""
    holder = index["path"]
    if "shard" in index.column_names:
        holder = pc.coalesce(index["shard"], holder)
    holder = holder.combine_chunks().dictionary_encode()
    holders, codes = holder.dictionary, holder.indices.to_numpy()
    seen: dict[tuple[int, int], str] = {}
    first = np.ones(len(holders), bool)
    for number in pc.sort_indices(holders).to_numpy():
        path = storage.join(collection.root, holders[int(number)].as_py())
        if storage.is_url(path):
            continue
        with contextlib.suppress(OSError):
            status = os.stat(path)
            identity = status.st_dev, status.st_ino
            first[number] = seen.setdefault(identity, path) == path or not status.st_ino
    return first[codes]


class Store:
    """The facts of a collection and its tables in vaejax's cache.

    Args:
      collection: the collection.
      options: settings on which its table depends.
    """

    def __init__(self, collection: Collection, options: Sequence[Any]):
        self._collection = collection
        identity = repr((collection, storage.located(collection.location), options, media.reader()))
        self._path = mapped.folder() / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
        self._stored: dict[str, Any] = {}

    def facts(self, name: str) -> Facts | None:
        """The facts, if nothing has changed since they were stored. Lists the collection's files, if any are.

        Args:
          name: setting that named the collection, for error messages.
        """
        try:
            stored = files.read_json(self._path)
            listing = Listing()
            for _ in listing.over(self._collection.listed(name)):
                pass
            if stored["state"] != self._state(listing):
                return None
            summary, unreadable, photos, clips, repeated = stored["facts"]
            broken = [(path, reason) for path, reason in unreadable]
            found = Facts(summary, broken, Hashes(*photos), Hashes(*clips), repeated)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        self._stored = stored
        return found

    def table(self, rule: Rule) -> str:
        """The path of the table that is split by a rule; '' if there is none."""
        path = mapped.folder() / self._stored.get("tables", {}).get(_key(rule), "missing")
        return str(path) if mapped.used(path) else ""

    def keep(self, listing: Listing, facts: Facts, rule: Rule, table: pa.Table) -> str:
        """Stores the facts and a table.

        Args:
          listing: the files that the collection listed when its index was made.
          facts: the facts.
          rule: the rule of the table's split.
          table: the table of a source.

        Returns:
          The path of the table; '' if the cache cannot be written.
        """
        try:
            path = mapped.save(table)
            if state := self._state(listing):
                earlier = self._stored["tables"] if self._stored.get("state") == state else {}
                tables = {**earlier, _key(rule): os.path.basename(path)}
                self._stored = {"state": state, "facts": list(facts), "tables": tables}
                files.write_json(self._path, self._stored)
        except OSError:
            return ""
        return path

    def _state(self, listing: Listing) -> str:
        """A text that changes with the collection's files or its index; '' if that cannot be known."""
        versions = []
        for place in index_file.places(self._collection):
            with contextlib.suppress(OSError):
                versions.append((place, *storage.entry(place)[1:]))
        return listing.digest and repr((listing.digest, versions))


def _key(rule: Rule) -> str:
    return json.dumps(rule)
