"""A row of a media index: whether an earlier scan already found what the next one would."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from vaejax.data import media
from vaejax.runtime.storage import Entry

_ENTRIES = pa.schema({"path": pa.string(), "size": pa.int64(), "version": pa.int64()})

pc: Any = pyarrow.compute  # its functions are made at import


def identity(row: Mapping[str, Any]) -> tuple:
    """The identity of a file's content: path, size and modification time."""
    return row["path"], row["size"], row["mtime_ns"]


def suffices(row: Mapping[str, Any] | None, scan: str, with_cuts: bool) -> bool:
    """Whether a row of an earlier scan, or None, holds what a scan would find."""
    if row is None:
        return False
    if row["error"]:
        return row["reader"] == media.reader()
    if with_cuts and row["kind"] == "video" and row["cuts"] is None:
        return False
    return row["scan"] in ("full", scan)


def known(rows: Iterable[dict], scan: str, with_cuts: bool) -> dict[tuple, dict]:
    """The rows of earlier scans by identity: of several, the last that suffices, or else the first."""
    found: dict[tuple, dict] = {}
    for row in rows:
        if suffices(row, scan, with_cuts) or identity(row) not in found:
            found[identity(row)] = row
    return found


def described(file: dict, earlier: dict | None) -> dict | None:
    """The row of a file: what its collection knows about it, or else an earlier row; None if unknown."""
    if file.get("width") or file.get("error"):
        return {"error": None, "reader": media.reader(), "scan": "full", "cuts": None} | file
    return earlier and earlier | file


def unread(file: dict) -> dict:
    """The row of a file that was not scanned; the next scan reads it."""
    return file | {"error": "not scanned yet", "reader": None}


def settled(
    index: pa.Table, entries: Iterable[Entry], scan: str, with_cuts: bool
) -> tuple[np.ndarray, list[Entry]]:
    """Finds the entries of a collection that need no scan, because an index describes all their files.

    Args:
      index: an index of the collection.
      entries: its entries now; see `Collection.entries`.
      scan: 'full' or 'headers'.
      with_cuts: whether the scan finds cuts.

    Returns:
      Whether each row of the index describes a file of such an entry, bool (n,); and the other entries.
    """
    listed = _table(entries)
    place = pc.index_in(pc.coalesce(index["shard"], index["path"]), listed["path"].combine_chunks())
    size, version = (listed[name].take(place) for name in ("size", "version"))
    loose = index["shard"].is_null()
    same_size = pc.and_(pc.equal(index["size"], size), pc.equal(index["length"], size))
    sound = pc.and_(pc.equal(index["mtime_ns"], version), pc.or_kleene(pc.invert(loose), same_size))
    sound = pc.and_(sound, _suffice(index, scan, with_cuts))
    undamaged = pc.or_kleene(loose, pc.not_equal(index["path"], index["shard"]))
    sound = pc.and_(sound, undamaged)
    sound = sound.fill_null(False).to_numpy()
    place = place.fill_null(len(listed)).to_numpy()
    known = np.bincount(place[sound], minlength=len(listed) + 1) > 0
    known &= np.bincount(place[~sound], minlength=len(listed) + 1) == 0
    if len(listed["path"].unique()) < len(listed):  # names that are not UTF-8 may become equal
        known[:] = False
    known[-1] = False
    others = listed.filter(pa.array(~known[:-1]))
    return known[place], [Entry(**entry) for entry in others.to_pylist()]


def all_suffice(index: pa.Table, scan: str, with_cuts: bool) -> bool:
    """Whether every row of an index suffices; see `suffices`."""
    return bool(pc.all(_suffice(index, scan, with_cuts)).as_py())


def _suffice(index: pa.Table, scan: str, with_cuts: bool) -> pa.ChunkedArray:
    """Whether each row of an index suffices; see `suffices`."""
    scanned = pc.is_in(index["scan"], pa.array(["full", scan]))
    if with_cuts:
        missing = pc.and_(pc.equal(index["kind"], "video"), index["cuts"].is_null())
        scanned = pc.and_(scanned, pc.invert(missing))
    read = pc.equal(index["reader"], media.reader()).fill_null(False)
    return pc.if_else(pc.fill_null(pc.not_equal(index["error"], ""), False), read, scanned)


def _table(entries: Iterable[Entry]) -> pa.Table:
    """Entries as a table, which takes less memory than a list."""
    entries, pieces = iter(entries), [_ENTRIES.empty_table()]
    while part := list(islice(entries, 2**16)):
        paths, sizes, versions = zip(*part, strict=True)
        pieces.append(pa.table([list(paths), list(sizes), list(versions)], schema=_ENTRIES))
    return pa.concat_tables(pieces)
