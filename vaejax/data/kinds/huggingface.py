"""The source huggingface: a column of photos or clips of a data set of Hugging Face's library `datasets`."""

import functools
import importlib.util
import json
import os
import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

from vaejax.data import media
from vaejax.data.crop import Unreadable
from vaejax.data.kinds.collection import Collection
from vaejax.errors import InputError, one_line
from vaejax.runtime.content import Content
from vaejax.runtime.storage import Entry

SCHEME = "hf://"
_KINDS = {"Image": "image", "Video": "video"}  # features of datasets


@dataclass(frozen=True)
class HuggingFaceRows(Collection):
    """The rows of one split. `location` is hf://NAME, with the name or folder that `load_dataset` takes.

    A folder that `save_to_disk` wrote is opened by `load_from_disk`.

    Attributes:
      config: name of the data set's configuration; '' for the only one.
      split: a split, or a slice of one such as train[:90%].
      column: the column with the media; '' takes the only one of type Image or Video.
    """

    config: str = ""
    split: str = "train"
    column: str = ""
    NEEDED: ClassVar[str] = "a data set with a column of type Image or Video"
    is_folder = False

    @property
    def variant(self) -> str:  # noqa: D102
        return f"{self.config} {self.split} {self.column}"

    def check(self, name: str) -> None:  # noqa: D102
        setting = f"{name} = {self._name}"
        if importlib.util.find_spec("datasets") is None:
            install = "pip install 'vaejax[huggingface]'"
            raise InputError(f"{setting}: the package datasets is missing; accepted: {install}")
        try:
            _, found = self._rows()
        except Exception as error:  # datasets and huggingface_hub raise many types
            raise InputError(f"{setting}: {one_line(error)}; accepted: {self.NEEDED}") from error
        if len(found) != 1:
            accepted = f"column = one of {', '.join(found)}" if found else self.NEEDED
            raise InputError(f"{setting}: {len(found)} columns of photos or clips; accepted: {accepted}")

    @property
    def _name(self) -> str:
        return self.location.removeprefix(SCHEME)

    def _rows(self) -> tuple[Any, dict[str, str]]:
        return _opened(self._name, self.config, self.split, self.column)

    def entries(self, name, others):  # noqa: D102
        rows, _ = self._rows()
        # The library's files have names that change with their content.
        version = zlib.crc32(json.dumps([len(rows), rows.cache_files]).encode())
        yield Entry(self.split, len(rows), version)

    def rows(self, entry, name, others):
        """The rows of the split that have media."""
        rows, found = self._rows()
        ((column, kind),) = found.items()
        scalars = [name for name, feature in rows.features.items() if type(feature).__name__ in _SCALARS]
        described = rows.select_columns([column, *scalars])
        for number, row in enumerate(described):
            value = row.pop(column) or {}
            inner = value.get("path") or ""
            if os.path.isabs(inner):
                inner = os.path.basename(inner)
            if not value.get("bytes") and not value.get("path"):
                continue
            yield {
                "path": f"{self.split}/{number}",
                "name": inner or f"{self.split}/{number}",
                "kind": kind or media.kind_of(inner) or "image",
                "size": len(value.get("bytes") or b""),
                "mtime_ns": entry.version,
                "shard": self.split,
                "position": number,
                "length": 0,
                "labels": json.dumps(row, default=str) if row else None,
            }

    def content(self, path: str, shard: str, position: int, length: int) -> Content:
        """The bytes of a row's file, or its path."""
        rows, found = self._rows()
        value = rows[position][next(iter(found))] or {}
        content = value.get("bytes") or value.get("path")
        if not content:
            raise Unreadable("the row has neither bytes nor a path")
        return content


_SCALARS = ("Value", "ClassLabel")


@functools.lru_cache(maxsize=8)  # once per process
def _opened(name: str, config: str, split: str, column: str) -> tuple[Any, dict[str, str]]:
    """The rows of a split, not decoded, and the kinds of the media columns that could be meant."""
    import datasets

    if os.path.isfile(os.path.join(name, "dataset_info.json")) or os.path.isfile(
        os.path.join(name, "dataset_dict.json")
    ):
        loaded: Any = datasets.load_from_disk(name)
        rows = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
    else:
        rows = datasets.load_dataset(name, config or None, split=split)
    kinds = {name: _KINDS.get(type(feature).__name__) for name, feature in rows.features.items()}
    found = {name: kind for name, kind in kinds.items() if kind and column in ("", name)}
    for name, kind in found.items():
        feature = datasets.Image(decode=False) if kind == "image" else datasets.Video(decode=False)
        rows = rows.cast_column(name, feature)
    return rows, found
