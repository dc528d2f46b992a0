"""Tables in Arrow files of vaejax's cache, which processes map into memory: they share one copy of the rows.

A file is named by its content and never changes.
"""

import contextlib
import hashlib
import os
import pathlib
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from vaejax import files
from vaejax.runtime import cache

UNUSED = 90 * 24 * 3600  # seconds after which a file that nobody opened is removed
_BATCH = 2**20  # rows
_REPEATING = ("kind", "shard")  # columns with few different values, which take 4 bytes a row


def folder() -> pathlib.Path:
    """The folder of the files."""
    return cache.folder() / "tables"


def save(table: pa.Table) -> str:
    """Writes the table of a source, and returns the path of its file.

    Raises:
      OSError: if it cannot be written.
    """
    folder().mkdir(parents=True, exist_ok=True)
    _remove_unused()
    for name in _REPEATING:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table[name].dictionary_encode())
    table = table.unify_dictionaries()
    with files.scratch(folder() / "table") as unfinished:
        with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=_BATCH)
        with open(unfinished, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        path = folder() / f"{digest}.arrow"
        unfinished.replace(path)
    return str(path)


def joined(paths: Sequence[str]) -> pa.Table:
    """The tables in some files as one. Nothing is read before it is used."""
    return pa.concat_tables(pa.ipc.open_file(pa.memory_map(path)).read_all() for path in paths)


def taken(column: pa.ChunkedArray, rows: np.ndarray) -> pa.ChunkedArray:
    """The values in some rows, which increase. Arrow's own `take` would copy the whole column."""
    first, found = 0, []
    for chunk in column.chunks:
        within = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + len(chunk))] - first
        found.append(chunk.take(pa.array(within)))
        first += len(chunk)
    return pa.chunked_array(found, column.type)


def checksum(path: str) -> str:
    """A checksum of the content of a file."""
    return pathlib.Path(path).stem


def used(path: pathlib.Path) -> bool:
    """Keeps a file for another three months; False if it is gone."""
    with contextlib.suppress(OSError):
        os.utime(path)
        return True
    return False


def _remove_unused() -> None:
    for path in folder().glob("*.arrow"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - UNUSED:
                path.unlink()
