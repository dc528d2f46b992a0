"""The array_record source: original files packed into shards by vaejax.data.prepare."""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow.parquet as pq

from vaejax.data import table as rows
from vaejax.errors import InputError

INDEX_FILE = "index.parquet"


@dataclass(frozen=True, eq=False)
class ArrayRecordSource(rows.Source):
    """The same rows as the media folder it was made of; only the way to the bytes differs."""

    FIELDS: ClassVar[tuple[str, ...]] = ("path",)
    folder: str = ""

    @classmethod
    def open(
        cls, label: str, weight: float, fields: Mapping[str, Any], data: Any, key: str
    ) -> "ArrayRecordSource":
        """Opens the folder `path` that vaejax.data.prepare wrote."""
        folder = os.path.expanduser(str(fields.get("path", "")))
        path = os.path.join(folder, INDEX_FILE)
        if not folder or not os.path.isfile(path):
            raise InputError(
                f"{key} = {folder!r}: no {INDEX_FILE} there; accepted: a folder made by"
                " python -m vaejax.data.prepare --media=FOLDER --out=DIR"
            )
        index = pq.read_table(path)
        missing = sorted(set(index["shard"].drop_null().unique().to_pylist()) - set(os.listdir(folder)))
        if missing:
            raise InputError(
                f"{key} = {folder}: {missing[0]} is missing; accepted: every shard of {INDEX_FILE}"
            )
        bad = [(f["path"], f["error"]) for f in index.select(["path", "error"]).to_pylist() if f["error"]]
        table = rows.from_index(index, data.holdout, folder)
        return cls(
            label, weight, table, tuple((os.path.join(folder, path), reason) for path, reason in bad), folder
        )

    def fetch(self, row: rows.Row) -> bytes:
        """The bytes of the original file."""
        return _reader(os.path.join(self.folder, row.shard)).read([row.record])[0]


@functools.lru_cache(maxsize=256)  # one open file a shard and process
def _reader(path: str):
    from array_record.python.array_record_module import ArrayRecordReader

    # The shards are read at random: no read-ahead.
    return ArrayRecordReader(path, options="readahead_buffer_size:0")
