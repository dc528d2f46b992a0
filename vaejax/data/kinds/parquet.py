"""The source parquet: photos and clips as a column of bytes, on disk or in a bucket.

The column holds the bytes, or Hugging Face's structure of bytes and path. A row is read with its row group.
If a row group is too large for that, the column is copied once to an Arrow file in vaejax's cache.
"""

import functools
import hashlib
import io
import json
import os
import pathlib
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from vaejax.data import media
from vaejax.data.crop import Unreadable
from vaejax.data.kinds.collection import Collection
from vaejax.errors import InputError, one_line
from vaejax.files import atomic_file
from vaejax.runtime import cache, storage
from vaejax.runtime.content import Content, Part

EXTENSION = ".parquet"
LARGEST_GROUP = 8 * 10**6  # bytes of the column in a row group that is read for a single row
_KINDS = {"Image": "image", "Video": "video"}  # Hugging Face's features


@dataclass(frozen=True)
class ParquetFiles(Collection):
    """All Parquet files of a folder tree. The path of a row's file is FILE/ROW, its labels the other columns.

    Attributes:
      column: the column with the media; '' takes the only one that can hold them.
      media_kind: 'image' or 'video'; '' takes it from Hugging Face's schema, a row's path or its content.
    """

    column: str = ""
    media_kind: str = ""
    NEEDED: ClassVar[str] = "a folder with .parquet files that have a column of photos or clips"

    @property
    def variant(self) -> str:  # noqa: D102
        return f"parquet{self.column and '-'}{self.column}"

    def takes(self, path):  # noqa: D102
        return path.endswith(EXTENSION)

    def rows(self, entry, name, others):
        """The rows of a file that have media."""
        path, size, version = entry
        place = storage.join(self.location, path)
        try:
            file = pq.ParquetFile(Part(place, 0, size).open())
            schema = file.schema_arrow
        except (OSError, pa.ArrowException) as error:
            reason = f"not a Parquet file: {one_line(error)}"
            row = {"path": path, "shard": path, "kind": "image", "size": size, "mtime_ns": version}
            yield row | {"error": reason}
            return
        column, kind = chosen(schema, self.column, self.media_kind, f"{name} = {place}")
        labels = [
            field.name for field in schema if field.name != column and not pa.types.is_nested(field.type)
        ]
        number = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=[column, *labels])
            described = table.select(labels).to_pylist()
            for value, of_row in zip(table[column], described, strict=True):
                content, inner = _content(value)
                if content is not None:
                    found = kind or (inner and media.kind_of(inner)) or _sniffed(content)
                    yield {
                        "path": f"{path}/{number}",
                        "name": inner or f"{path}/{number}",
                        "kind": found,
                        "size": len(content),
                        "mtime_ns": version,
                        "shard": path,
                        "position": number,
                        "length": len(content),
                        "labels": json.dumps(of_row, default=str) if of_row else None,
                    }
                number += 1

    def content(self, path: str, shard: str, position: int, length: int) -> Content:
        """The bytes of a row's file."""
        return _column_of(shard, self.column).read(position)


class _Column:
    """The media column of one Parquet file, read by row."""

    def __init__(self, place: str, column: str):
        self._file = pq.ParquetFile(_open(place))
        self._lock = threading.Lock()  # samples are read by several threads, and Arrow's reader is for one
        self._column, _ = chosen(self._file.schema_arrow, column, "", place)
        metadata = self._file.metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        self._ends = np.cumsum([group.num_rows for group in groups])
        self._copy = None
        if max(map(functools.partial(_bytes_of, column=self._column), groups), default=0) > LARGEST_GROUP:
            self._copy = pa.ipc.open_file(pa.memory_map(str(_copied(place, self._column)), "rb"))

    def read(self, row: int) -> bytes:
        group = int(np.searchsorted(self._ends, row, side="right"))
        within = row - (int(self._ends[group - 1]) if group else 0)
        if self._copy:
            values = self._copy.get_batch(group).column(0)
        else:
            with self._lock:
                values = self._file.read_row_group(group, columns=[self._column]).column(0)
        content, _ = _content(values[within])
        if content is None:
            raise Unreadable("the row has no bytes")
        return content


def chosen(schema: pa.Schema, column: str, kind: str, place: str) -> tuple[str, str]:
    """The name of the media column, and its kind, '' if that depends on the row.

    Args:
      schema: columns of a Parquet file.
      column: name of the column; '' takes the only one that can hold media.
      kind: 'image', 'video', or '' if unknown.
      place: the setting and its value, for error messages.

    Raises:
      InputError: if there is no such column, or several could be meant.
    """
    features = _features(schema)
    possible = [field.name for field in schema if field.name in features or _holds_bytes(field.type)]
    if column and column not in schema.names:
        accepted = " or ".join(possible or schema.names)
        raise InputError(f"{place}: no column {column!r}; accepted: column = {accepted}")
    if not column and len(possible) != 1:
        found = f"columns {', '.join(possible)} could hold media" if possible else "no column of bytes"
        raise InputError(f"{place}: {found}; accepted: column = one of {', '.join(schema.names)}")
    column = column or possible[0]
    return column, kind or features.get(column, "")


@functools.lru_cache(maxsize=256)  # one open file per shard and process
def _column_of(place: str, column: str) -> _Column:
    return _Column(place, column)


def _copied(place: str, column: str) -> pathlib.Path:
    """The Arrow file with a copy of a column, one batch a row group; writes it if it is missing."""
    identity = f"{place} {column} {storage.entry(place).version}"
    path = cache.folder() / "parquet" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.arrow"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    file = pq.ParquetFile(_open(place))
    schema = pa.schema([file.schema_arrow.field(column)])
    groups = tqdm(range(file.num_row_groups), f"copying {os.path.basename(place)}", unit="row group")
    with atomic_file(path) as out, pa.ipc.new_file(out, schema) as writer:
        for group in groups:
            table = file.read_row_group(group, columns=[column]).cast(schema)
            writer.write_batch(_one_batch(table))
    return path


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    """The rows of a table as one batch; its bytes must be below 2 GiB unless the type is a large one."""
    return table.combine_chunks().to_batches()[0]


def _open(place: str) -> Any:
    return (
        pa.memory_map(place)
        if not storage.is_url(place)
        else Part(place, 0, storage.entry(place).size).open()
    )


def _bytes_of(group: Any, column: str) -> int:
    """The uncompressed size of a column in a row group."""
    chunks = (group.column(i) for i in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)


def _features(schema: pa.Schema) -> dict[str, str]:
    """The columns that Hugging Face's datasets declared as images or videos, with their kinds."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(text)["info"]["features"]
        return {name: _KINDS[f["_type"]] for name, f in features.items() if f.get("_type") in _KINDS}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether a type is bytes, or a structure of bytes and path."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _content(value: pa.Scalar) -> tuple[bytes | None, str]:
    """The bytes of a value, None if it has none, and the file name beside them, or ''."""
    if isinstance(value, pa.StructScalar):
        found = value.as_py() or {}
        return found.get("bytes"), found.get("path") or ""
    return value.as_py(), ""


def _sniffed(content: bytes) -> str:
    """The kind of a file by its first bytes: 'image' if Pillow knows its format, else 'video'."""
    try:
        with Image.open(io.BytesIO(content)) as photo:
            return "image" if photo.format else "video"
    except (OSError, ValueError):
        return "video"
