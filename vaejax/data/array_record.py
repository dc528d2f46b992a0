"""The array_record source: the original files, packed into shards by vaejax.data.prepare."""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pyarrow as pa
import pyarrow.parquet as pq

from vaejax.data.split import Split
from vaejax.data.table import Record, Source, from_index
from vaejax.errors import InputError
from vaejax.files import expand_home

if TYPE_CHECKING:
    from vaejax.config.schema import DataConfig

INDEX_FILE = "index.parquet"


@dataclass(frozen=True, eq=False)
class ArrayRecordSource(Source):
    """Files packed from a media folder, with the same samples and held-out files as the folder.

    Attributes:
      folder: folder of the shards.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("path",)
    folder: str = ""

    @classmethod
    def folders(cls, fields: Mapping[str, Any]) -> list[str]:
        """The folder of the shards."""
        return [expand_home(str(fields.get("path", "")))]

    @classmethod
    def open(
        cls, label: str, weight: float, fields: Mapping[str, Any], data: "DataConfig", key: str, split: Split
    ) -> Self:
        """Opens the folder of shards `fields["path"]`, written by vaejax.data.prepare."""
        (folder,) = cls.folders(fields)
        path = os.path.join(folder, INDEX_FILE)
        if not folder or not os.path.isfile(path):
            raise InputError(
                f"{key} = {folder!r}: contains no {INDEX_FILE}; accepted: a folder made by"
                " python -m vaejax.data.prepare --media=FOLDER --out=DIR"
            )
        index = pq.read_table(path)
        missing = sorted(set(index["shard"].drop_null().unique().to_pylist()) - set(os.listdir(folder)))
        if missing:
            raise InputError(
                f"{key} = {folder}: {missing[0]} is missing; accepted: a folder with every shard that"
                f" {INDEX_FILE} lists"
            )
        files = index.select(["path", "error"]).to_pylist()
        unreadable = tuple((os.path.join(folder, f["path"]), f["error"]) for f in files if f["error"])
        if data.cuts:
            _check_cuts(index, f"{key} = {folder}")
        table = from_index(index, split.divide(folder, index, data.holdout), folder, data.cuts)
        return cls(label, weight, table, unreadable, folder)

    def fetch(self, record: Record) -> bytes:
        """The bytes of the original file."""
        return _reader(os.path.join(self.folder, record.shard)).read([record.position])[0]


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
    return ArrayRecordReader(path, options="readahead_buffer_size:0")
