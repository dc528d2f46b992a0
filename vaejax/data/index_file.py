"""The file of a media index: its columns, versions and places, and how it is read and written.

Its rows are in the order of vaejax.data.order. It is written and read piece by piece, because the index of a
large collection does not fit into the memory of a worker.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from vaejax.data import order
from vaejax.data.kinds.collection import Collection
from vaejax.runtime import cache, storage
from vaejax.runtime.content import Part

INDEX_FILE = ".vaejax-index.parquet"
# Unreadable files have only path, kind, size, mtime_ns, error and reader; their other columns are null.
# Increase the version in the metadata if the columns, the order or the scan change: `load` converts or drops
# others.
SCHEMA = pa.schema(
    {
        "path": pa.string(),  # relative to the folder, with forward slashes; unique
        "kind": pa.string(),  # 'image' | 'video'
        "width": pa.int32(),  # as displayed: after rotation, in square pixels
        "height": pa.int32(),
        "frames": pa.int32(),  # number of decodable frames
        "fps": pa.float64(),  # mean; null for images
        "duration": pa.float64(),  # seconds; 0 for images
        "rotation": pa.int32(),  # degrees clockwise from the coded to the displayed picture
        "codec": pa.string(),
        "bits_per_pixel": pa.float64(),  # file size in bits, divided by displayed pixels and by frames
        "quality": pa.int32(),  # estimated JPEG quality, 1 to 100; null for other formats
        "hdr": pa.bool_(),  # whether the file is HDR; it is read as SDR
        "size": pa.int64(),  # bytes
        "mtime_ns": pa.int64(),
        "error": pa.string(),  # the reason in one line; null for readable files
        "reader": pa.string(),  # the versions of the decoders; null if `error` is not about the content
        "scan": pa.string(),  # how the file was read: 'full' | 'headers'; null if the collection knows it
        # Times of the first frame after each cut, in seconds after the first frame; null if not looked for.
        "cuts": pa.list_(pa.field("element", pa.float64())),
        # Only for a file within a file, such as a member of a tar:
        "name": pa.string(),  # its path without the shard's, which orders samples; null if it is `path`
        "shard": pa.string(),  # path of the file that holds it
        "position": pa.int64(),  # its first byte, or its row
        "length": pa.int64(),  # bytes, also of an object in a bucket
        "labels": pa.string(),  # JSON object of columns that do not describe the file's content, or null
    },
    metadata={"vaejax.index": "5"},
)
# The columns that earlier versions lack. Their rows are in the order of the paths.
_LATER = ("scan", "cuts", "name", "shard", "position", "length", "labels")
_LATER_COLUMNS = {"2": ("reader", *_LATER), "3": _LATER, "4": ()}
GROUP = 2**14  # rows of a row group, the smallest piece that is read


def places(collection: Collection) -> list[str]:
    """The files in which the index of a collection may be stored: in its folder, and in the cache."""
    folder, variant = collection.location, collection.variant
    real = folder if storage.is_url(folder) else os.path.realpath(folder)
    name = hashlib.sha256(os.fsencode(real) + variant.encode()).hexdigest()[:32]
    of_folder, ending = os.path.splitext(INDEX_FILE)
    beside = storage.join(folder, f"{of_folder}{variant and '-'}{variant}{ending}")
    return [beside] * collection.is_folder + [str(cache.folder() / "index" / f"{name}.parquet")]


def load(path: str) -> pa.Table | None:
    """The table in a file; None if it is missing, damaged or has an unknown version."""
    if not storage.is_url(path) and not os.path.isfile(path):  # a named pipe would wait for a writer
        return None
    try:
        table = pq.read_table(io.BytesIO(storage.read(path)), page_checksum_verification=True)
        table.validate(full=True)
    except (OSError, pa.ArrowException):
        return None
    for version, later in _LATER_COLUMNS.items():
        earlier = pa.schema([field for field in SCHEMA if field.name not in later], {"vaejax.index": version})
        if table.schema.equals(earlier, check_metadata=True):
            rows = [{"scan": None if row["error"] else "full"} | row for row in table.to_pylist()]
            table = order.ordered(pa.Table.from_pylist(rows, SCHEMA))
            break
    return table if table.schema.equals(SCHEMA, check_metadata=True) else None


def save(table: pa.Table, path: str) -> None:
    """Writes a table, whose rows are in order, atomically.

    Raises:
      OSError: if the file cannot be written.
    """
    with storage.new_file(path) as file:
        pq.write_table(table.combine_chunks(), file, row_group_size=GROUP, write_page_checksum=True)


def save_pieces(tables: Iterable[pa.Table], path: str) -> None:
    """Writes tables that follow each other as one, atomically; the bytes are those that `save` writes.

    Raises:
      OSError: if the file cannot be written.
    """
    with storage.new_file(path) as file, pq.ParquetWriter(file, SCHEMA, write_page_checksum=True) as writer:
        waiting = SCHEMA.empty_table()
        for table in tables:
            waiting = pa.concat_tables([waiting, table])
            while len(waiting) >= GROUP:
                writer.write_table(waiting.slice(0, GROUP).combine_chunks())
                waiting = waiting.slice(GROUP)
        if len(waiting):
            writer.write_table(waiting.combine_chunks())


def pieces(path: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yields some columns of a file, a row group at a time.

    Raises:
      OSError: if the file cannot be read.
    """
    with _opened(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=list(columns))


def rows(path: str, first: int, count: int) -> pa.Table:
    """The rows `first` to `first + count - 1` of a file; reads only the row groups that have them.

    Raises:
      OSError: if the file cannot be read.
    """
    with _opened(path) as file:
        groups = range(first // GROUP, -(-(first + count) // GROUP))
        return file.read_row_groups(list(groups)).slice(first % GROUP, count)


def is_current(path: str) -> bool:
    """Whether a file exists and has this version, so that its rows are in order and can be read in pieces."""
    with contextlib.suppress(OSError, pa.ArrowException), _opened(path) as file:
        return file.schema_arrow.equals(SCHEMA, check_metadata=True)
    return False


def _opened(path: str) -> pq.ParquetFile:
    return pq.ParquetFile(Part(path, 0, storage.entry(path).size).open())
