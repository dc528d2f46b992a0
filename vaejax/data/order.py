"""The order of files in an index and in shards: that of a hash of their paths.

Any run of consecutive files is therefore a random sample, and any machine can find a file's place without a
list of all files.
"""

import hashlib

import numpy as np
import pyarrow as pa

PARTS = 4096  # number of parts of an index on a cluster; each is a range of the hash
# vaejax.data.split hashes paths, too. With the same hash, the first shards would have all held-out files.
_SALT = b"vaejax order"


def place(path: str) -> int:
    """The hash of a path, from 0 to 2^64 - 1."""
    name = path.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8, person=_SALT).digest())


def key(path: str) -> tuple[int, str]:
    """The sort key of a file."""
    return place(path), path


def part(path: str) -> int:
    """The part of an index that has a file, from 0 to PARTS - 1; parts follow each other in the order."""
    return place(path) * PARTS >> 64


def ordered(table: pa.Table) -> pa.Table:
    """The rows of a table with a column `path`, in order."""
    pieces = table.select(["path"]).to_batches(max_chunksize=2**16)
    places = np.fromiter((place(path) for piece in pieces for path in piece["path"].to_pylist()), np.uint64)
    rows = np.argsort(places, kind="stable")
    ties = np.flatnonzero(np.diff(places[rows]) == 0)
    if len(ties):  # paths that differ, but not in their hashes, or equal ones
        paths = table["path"].to_pylist()
        rows = np.array(sorted(rows.tolist(), key=lambda row: key(paths[row])), np.int64)
    return table.take(pa.array(rows, pa.int64()))
