"""Shards in array_record format: the original files, packed by vaejax.data.prepare."""

import functools

import pyarrow as pa
import pyarrow.parquet as pq

from vaejax.data.kinds.collection import Collection
from vaejax.errors import InputError
from vaejax.runtime import storage
from vaejax.runtime.content import Content

INDEX_FILE = "index.parquet"


class Shards(Collection):
    """A folder of shards and their index. Shards in a bucket are copied to the cache."""

    NEEDED = "a folder made by python -m vaejax.data.prepare --media=FOLDER --out=DIR"

    def entries(self, name, others):  # noqa: D102
        yield storage.entry(storage.join(self.location, INDEX_FILE))._replace(path=INDEX_FILE)

    def listed(self, name):  # noqa: D102
        yield from storage.walk(self.location, name)

    def rows(self, entry, name, others):  # noqa: D102
        yield from self.packed(name).to_pylist()

    def packed(self, name: str, with_cuts: bool = False) -> pa.Table:
        """The index of the packed folder.

        Args:
          name: setting that named the folder, for error messages.
          with_cuts: whether the cuts of its clips must be known.

        Raises:
          InputError: if it is missing, or one of its shards, or the cuts of a clip are unknown.
        """
        path = storage.join(self.location, INDEX_FILE)
        if not self.location or not storage.exists(path, name):
            raise InputError(f"{name} = {self.location!r}: contains no {INDEX_FILE}; accepted: {self.NEEDED}")
        index = pq.read_table(pa.BufferReader(storage.read(path)))
        if "record" in index.column_names:  # shards of earlier versions
            names = ["position" if name == "record" else name for name in index.column_names]
            index = index.rename_columns(names)
        present = {entry.path for entry in storage.walk(self.location, name)}
        missing = sorted(set(index["shard"].drop_null().unique().to_pylist()) - present)
        if missing:
            raise InputError(
                f"{name} = {self.location}: {missing[0]} is missing; accepted: a folder with every shard that"
                f" {INDEX_FILE} lists"
            )
        if with_cuts:
            _check_cuts(index, f"{name} = {self.location}")
        return index

    def content(self, path: str, shard: str, position: int, length: int) -> Content:
        """The bytes of the original file."""
        return _reader(shard).read([position])[0]


def _check_cuts(index: pa.Table, name: str) -> None:
    """Raises InputError if the cuts of a clip are unknown."""
    names = [column for column in ("kind", "error", "cuts") if column in index.column_names]
    files = index.select(names).to_pylist()
    if any(f["kind"] == "video" and not f["error"] and f.get("cuts") is None for f in files):
        raise InputError(
            f"{name}: the cuts of its clips are unknown, but data.cuts = True; accepted: shards made by"
            " python -m vaejax.data.prepare --cuts, or data.cuts = False"
        )


@functools.lru_cache(maxsize=256)  # one open file per shard and process
def _reader(path: str):
    from array_record.python.array_record_module import ArrayRecordReader

    # Read-ahead would be wasted on random access.
    return ArrayRecordReader(storage.on_disk(path), options="readahead_buffer_size:0")
