"""The source manifest: photos and clips that a CSV, JSON Lines or Parquet file lists, with further columns.

The column `path` has paths or URLs, relative to the manifest's folder. If the manifest also has the columns
that describe a file's content, the file is not scanned: width and height, and for clips fps and frames or
duration. The files of a large manifest are then not even looked up, so only a change of the manifest is
noticed, and missing files are found in training.
"""

import json
import math
import os
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from vaejax.data import media
from vaejax.data.kinds.collection import Collection
from vaejax.data.split_rule import LARGE
from vaejax.errors import InputError, one_line
from vaejax.runtime import storage
from vaejax.runtime.content import Part
from vaejax.runtime.storage import Entry

PATH = "path"
_READERS = {
    ".csv": pa_csv.read_csv,
    ".jsonl": pa_json.read_json,
    ".json": pa_json.read_json,
    ".parquet": pq.read_table,
}
_FACTS = ("width", "height", "fps", "frames", "duration", "quality", "hdr", "codec", "rotation")


class Manifest(Collection):
    """The files that a table lists. `location` is the table's file."""

    NEEDED: ClassVar[str] = f"a {', '.join(_READERS)} file with a column {PATH}"

    is_folder = False

    @property
    def root(self) -> str:  # noqa: D102
        return self.location.rpartition("/")[0]

    def check(self, name: str) -> None:  # noqa: D102
        if os.path.splitext(self.location)[1].lower() not in _READERS:
            raise InputError(f"{name} = {self.location}; accepted: {self.NEEDED}")
        if not storage.is_url(self.location) and not os.path.isfile(self.location):
            raise InputError(f"{name} = {self.location}: no such file; accepted: {self.NEEDED}")

    def entries(self, name, others):  # noqa: D102
        # With version 0, the index is made from the files themselves at every start.
        entry = self._entry(name)
        yield entry if _is_trusted(self._table(name)) else entry._replace(version=0)

    def listed(self, name):  # noqa: D102
        yield self._entry(name)

    def rows(self, entry, name, others):
        """The files that the table lists."""
        for row in self._table(name).to_pylist():
            path = row.pop(PATH)
            kind = media.kind_of(path or "")
            if kind is None:
                others[os.path.splitext(path or "")[1].lower()] += 1
                continue
            file, facts = {"path": path, "kind": kind}, _described(kind, row)
            if facts and entry.version:
                size = row.get("size") or 0
                file |= {"size": size, "mtime_ns": entry.version, "length": size}
            else:
                file = self._identified(file)
            yield file | facts | {"labels": json.dumps(row, default=str) if row else None}

    def content(self, path, shard, position, length):  # noqa: D102
        if storage.is_url(path) and not length:
            length = storage.entry(path).size
        return super().content(path, shard, position, length)

    def _entry(self, name: str) -> Entry:
        with storage.answering(self.location, name):
            return storage.entry(self.location)._replace(path=self.location)

    def _table(self, name: str) -> pa.Table:
        """The manifest; raises InputError if it cannot be read or has no paths."""
        read = _READERS[os.path.splitext(self.location)[1].lower()]
        with storage.answering(self.location, name):
            size = storage.entry(self.location).size
            try:
                table = read(Part(self.location, 0, size).open())
            except pa.ArrowException as error:
                reason = f"{name} = {self.location}: {one_line(error)}"
                raise InputError(f"{reason}; accepted: {self.NEEDED}") from error
        if PATH not in table.column_names:
            found = ", ".join(table.column_names)
            raise InputError(f"{name} = {self.location}: its columns are {found}; accepted: {self.NEEDED}")
        return table

    def _identified(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Adds the size and version of a file; an error if it does not exist."""
        try:
            _, size, version = storage.entry(storage.join(self.root, entry["path"]))
        except Exception as error:  # a store's own errors
            return entry | {"size": 0, "mtime_ns": 0, "error": one_line(error)}
        return entry | {"size": size, "mtime_ns": version, "length": size}


def _is_trusted(table: pa.Table) -> bool:
    """Whether files that a manifest describes are not looked up."""
    return len(table) >= LARGE and {"width", "height"} <= set(table.column_names)


def _described(kind: str, row: dict[str, Any]) -> dict[str, Any]:
    """The facts about a file that a scan would find, if the manifest has them all; {} otherwise."""
    facts = {key: row[key] for key in _FACTS if row.get(key) is not None}
    if not {"width", "height"} <= facts.keys():
        return {}
    if kind == "image":
        return facts | {"frames": 1, "fps": None, "duration": 0.0}
    fps, frames, seconds = (facts.get(key) for key in ("fps", "frames", "duration"))
    if not fps or not (frames or seconds):
        return {}
    return facts | {
        "frames": int(frames or math.floor(seconds * fps)),
        "duration": float(seconds or frames / fps),
    }
