"""Sources whose files an index describes: folders, tars, Parquet files, manifests, array_record shards."""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import pyarrow as pa

from vaejax.config.accepts import FOLDERS
from vaejax.config.folders import folder_list
from vaejax.data import filter, index, large, mapped
from vaejax.data.kinds.array_record import Shards
from vaejax.data.kinds.collection import Collection, Folder
from vaejax.data.kinds.huggingface import SCHEME, HuggingFaceRows
from vaejax.data.kinds.manifest import Manifest
from vaejax.data.kinds.parquet import ParquetFiles
from vaejax.data.kinds.webdataset import Tars
from vaejax.data.large import Store
from vaejax.data.listing import Listing
from vaejax.data.spans import USED, from_index
from vaejax.data.split import Split, seams
from vaejax.data.split_rule import LARGE
from vaejax.data.table import Record, Source
from vaejax.errors import InputError
from vaejax.runtime import storage
from vaejax.runtime.content import Content

if TYPE_CHECKING:
    from vaejax.config.schema import DataConfig


class _Part(NamedTuple):
    """The table of one collection, its unreadable files, and the file of the table, '' if in memory only."""

    table: pa.Table
    unreadable: Sequence[tuple[str, str]]
    file: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class IndexedSource(Source):
    """The files of one or more collections of the same kind. Photos and spans of clips have equal weights.

    Attributes:
      reader: one of the collections, which reads the files of all.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("path", "filter")
    COLLECTION: ClassVar[type[Collection]] = Folder
    ACCEPTED: ClassVar[str] = f"{FOLDERS.text} of photos and clips"
    reader: Collection = dataclasses.field(kw_only=True)

    @classmethod
    def collections(cls, fields: Mapping[str, Any]) -> list[Collection]:
        """The collections at the paths `fields["path"]`; the other fields are arguments of each."""
        more = {name: value for name, value in fields.items() if name not in IndexedSource.FIELDS}
        make = functools.partial(cls.COLLECTION, **more)
        # Paths stay as they were typed, because a run's records have them.
        return [make(path.rstrip("/") or "/") for path in folder_list(fields.get("path", ""))]

    @classmethod
    def folders(cls, fields: Mapping[str, Any]) -> list[str]:
        """The folders to which the files' paths are relative."""
        return [collection.root for collection in cls.collections(fields)]

    @classmethod
    def open(
        cls, label: str, weight: float, fields: Mapping[str, Any], data: "DataConfig", key: str, split: Split
    ) -> Self:
        """Opens the collections at `fields["path"]`; see vaejax.config.folders."""
        collections = cls.collections(fields)
        if not collections:
            raise InputError(f"{key} = {fields.get('path', '')!r}; accepted: {cls.ACCEPTED}")
        parts = [cls._part(c, fields.get("filter", data.filter), data, key, split) for c in collections]
        unreadable = tuple(file for part in parts for file in part.unreadable)
        if not any(part.file for part in parts):
            table, files = pa.concat_tables([part.table for part in parts]).combine_chunks(), ()
        else:  # a worker process gets the whole table by its files
            files = tuple(part.file or mapped.save(part.table) for part in parts)
            table = mapped.joined(files)
        return cls(label, weight, table, unreadable, reader=collections[0], files=files)

    @classmethod
    def _part(
        cls, collection: Collection, expression: str, data: "DataConfig", key: str, split: Split
    ) -> "_Part":
        """The files of one collection that match a filter, '' for all."""
        root = collection.root
        store = Store(collection, (data.scan, data.cuts, expression))
        facts = None if split.is_by_file(root) else store.facts(key)
        if facts and (file := store.table(split.rule(root, facts, data.holdout))):
            print(facts.summary, end="", file=sys.stderr)
            return _Part(mapped.joined([file]), facts.unreadable, file)
        listing = Listing()
        listed = cls.index(collection, data, key, listing)
        summary = cls.summary(collection, listed)
        if expression:
            listed = listed.take(filter.matching(listed, expression, f"{key} = {collection.location}"))
        listed = listed.select([name for name in USED if name in listed.column_names])  # labels may be long
        files = listed.select(["path", "error"])
        files = files.filter(files["error"].is_valid()).sort_by("path").to_pylist()
        broken = [(storage.join(root, file["path"]), file["error"]) for file in files]
        if len(broken) == len(listed):
            raise InputError(
                f"{key} = {collection.location}: none of its {len(broken)} files can be read; accepted:"
                f" {cls.COLLECTION.NEEDED}"
            )
        if split.is_by_file(root) or (len(listed) < LARGE and not split.has_rule(root)):
            sides = split.divide(root, listed, data.holdout)
            return _Part(from_index(listed, seams(sides, listed), root, data.cuts), broken)
        print(f"{collection.location}: making a table of its files for later starts", file=sys.stderr)
        facts, listed = large.described(collection, listed, summary, broken)
        rule = split.rule(root, facts, data.holdout)
        table = from_index(listed, rule.seams(listed), root, data.cuts)
        del listed
        file = store.keep(listing, facts, rule, table)
        if file:
            table = mapped.joined([file])
        pa.default_memory_pool().release_unused()  # gigabytes
        return _Part(table, broken, file)

    @classmethod
    def index(cls, collection: Collection, data: "DataConfig", key: str, listing: Listing) -> pa.Table:
        """The media index of a collection; adds its files to `listing`."""
        return index.load_or_build(collection, name=key, scan=data.scan, with_cuts=data.cuts, listing=listing)

    @classmethod
    def summary(cls, collection: Collection, listed: pa.Table) -> str:
        """The text that `index` prints."""
        return index.summary(collection.location, [listed]) + "\n"

    def fetch(self, record: Record) -> Content:
        """The content of a record's file."""
        return self.reader.content(record.path, record.shard, record.position, record.length)


class MediaSource(IndexedSource):
    """Folder trees of photos and clips, on disk or in buckets."""


class WebdatasetSource(IndexedSource):
    """Folder trees of tars."""

    COLLECTION = Tars
    ACCEPTED = f"{FOLDERS.text} with tars"


class ParquetSource(IndexedSource):
    """Folder trees of Parquet files."""

    FIELDS = (*IndexedSource.FIELDS, "column", "media_kind")
    COLLECTION = ParquetFiles
    ACCEPTED = f"{FOLDERS.text} with Parquet files"


class ManifestSource(IndexedSource):
    """Files that tables list."""

    COLLECTION = Manifest
    ACCEPTED = Manifest.NEEDED


class HuggingFaceSource(IndexedSource):
    """A split of a data set of the library `datasets`."""

    FIELDS = ("name", "filter", "config", "split", "column")
    COLLECTION = HuggingFaceRows
    ACCEPTED = "name = a data set of Hugging Face, or its folder"

    @classmethod
    def collections(cls, fields: Mapping[str, Any]) -> list[Collection]:
        """The data set `fields["name"]`."""
        more = {name: value for name, value in fields.items() if name not in ("name", "filter")}
        name = fields.get("name", "")
        return [HuggingFaceRows(f"{SCHEME}{name}", **more)] if name else []


class ArrayRecordSource(IndexedSource):
    """Folders of array_record shards, with the same samples and held-out files as the folders packed."""

    COLLECTION = Shards
    ACCEPTED = Shards.NEEDED

    @classmethod
    def index(cls, collection, data, key, listing):  # noqa: D102
        assert isinstance(collection, Shards)
        for _ in listing.over(collection.listed(key)):
            pass
        return collection.packed(key, data.cuts)

    @classmethod
    def summary(cls, collection, listed):  # noqa: D102
        return ""
