"""Packs the files of a collection into array_record shards, each on its own.

The files are taken in the order of the index. Beside each shard is a record of its files, so that a later
call keeps the shards that an interrupted one completed.
"""

import base64
import contextlib
import functools
import operator
import os
import pathlib
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
from tqdm import tqdm

from vaejax import files
from vaejax.data import index_file
from vaejax.data.crop import Unreadable
from vaejax.data.kinds.array_record import INDEX_FILE
from vaejax.data.kinds.collection import Collection
from vaejax.data.worker import Crashed, Worker, in_parallel
from vaejax.errors import InputError, TrainingFailed, one_line
from vaejax.runtime import storage
from vaejax.runtime.content import opened
from vaejax.runtime.host import cores

RECORDS = ".records"  # folder of the records, within that of the shards
_PLACE = ["shard", "position", "length"]  # columns of the index that packing changes


class Shard(NamedTuple):
    """A shard that is to be written.

    Attributes:
      name: name of its file.
      first: the first of its rows in the index.
      count: number of its rows, among them those of unreadable files, which are not packed.
      size: bytes of the files that are packed.
    """

    name: str
    first: int
    count: int
    size: int


class Packing(NamedTuple):
    """The files to pack and the output folder; picklable, because worker processes receive it.

    Attributes:
      collection: the collection that contains the files.
      index: path or URL of its index; see vaejax.data.index_file.
      out: path or URL of the folder for the shards.
    """

    collection: Collection
    index: str
    out: str

    def place(self, shard: Shard) -> str:
        """Path or URL of a shard."""
        return storage.join(self.out, shard.name)

    def record(self, shard: Shard) -> str:
        """Path or URL of the record of a shard."""
        return storage.join(self.out, f"{RECORDS}/{shard.name}.parquet")


def plan(
    index: str,
    shard_bytes: float,
    name: str = "media-{:05}.array_record",
    columns: Sequence[str] = ("size",),
    bytes_of: Callable[[dict], int] = operator.itemgetter("size"),
) -> Iterator[Shard]:
    """Yields the shards of an index; one ends when it has at least `shard_bytes`.

    Args:
      index: path or URL of the index.
      shard_bytes: size of a shard.
      name: format of the shards' names.
      columns: columns of the index that `bytes_of` needs.
      bytes_of: the bytes that a file, by its row, takes in a shard.
    """
    number = first = count = size = 0
    for piece in index_file.pieces(index, [*columns, "error"]):
        for row in piece.to_pylist():
            if size >= shard_bytes and not row["error"]:
                yield Shard(name.format(number), first, count, size)
                number, first, count, size = number + 1, first + count, 0, 0
            count += 1
            size += 0 if row["error"] else bytes_of(row)
    if count:
        yield Shard(name.format(number), first, count, size)


def write(packing: Packing, shard: Shard) -> None:
    """Writes a shard, and then its record, unless an earlier call did.

    Raises:
      InputError: if a file cannot be read, or the shard cannot be written.
    """
    listed = index_file.rows(packing.index, shard.first, shard.count)
    if _is_written(packing, shard, listed):
        return
    rows = listed.to_pylist()
    packed = [row for row in rows if not row["error"]]
    contents = (_read(packing.collection, row) for row in packed)
    with _naming(packing.out):
        lengths = _write_records(packing.place(shard), contents) if packed else []
        for row in rows:
            row |= dict.fromkeys(_PLACE)
        for position, (row, length) in enumerate(zip(packed, lengths, strict=True)):
            row |= {"shard": shard.name, "position": position, "length": length}
        index_file.save(pa.Table.from_pylist(rows, index_file.SCHEMA), packing.record(shard))


def _is_written(packing: Packing, shard: Shard, listed: pa.Table) -> bool:
    """Whether a shard and its record exist, with the same files as `listed`."""
    record = index_file.load(packing.record(shard))
    if record is None or not record.drop_columns(_PLACE).equals(listed.drop_columns(_PLACE)):
        return False
    return record["shard"].null_count == len(record) or storage.exists(packing.place(shard), "--out")


def _read(collection: Collection, row: dict) -> bytes:
    try:
        with opened(collection.content_of(row)) as file:
            return file.read()
    except (OSError, Unreadable) as error:
        place = storage.join(collection.root, row["path"])
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(
            f"{place}: {reason}; accepted: files that do not change while they are packed; the same command"
            " lists them again, and continues"
        ) from error


def _write_records(place: str, contents: Iterator[bytes]) -> list[int]:
    """Writes an array_record file atomically; returns the bytes of each record."""
    from array_record.python.array_record_module import ArrayRecordWriter

    # One file per group, because training reads single files at random; uncompressed, because the formats of
    # photos and clips are compressed already.
    options, lengths = "group_size:1,uncompressed", []
    with _new_file(place) as path, contextlib.closing(ArrayRecordWriter(str(path), options)) as writer:
        for content in contents:
            writer.write(content)
            lengths.append(len(content))
    return lengths


@contextlib.contextmanager
def _new_file(place: str) -> Iterator[pathlib.Path]:
    """A context for the path of an empty file, which becomes the file at `place` if the block succeeds."""
    if storage.is_url(place):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "shard")
            yield path
            with storage.new_file(place) as target, open(path, "rb") as source:
                shutil.copyfileobj(source, target)
        return
    os.makedirs(os.path.dirname(place), exist_ok=True)
    files.sweep([pathlib.Path(place)])
    with files.scratch(place) as path:
        yield path
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        path.replace(place)


def write_all(
    packing: Packing, planned: Sequence[Shard], workers: int | None = None, progress: bool = True
) -> None:
    """Writes shards in worker processes.

    Args:
      packing: what is packed.
      planned: the shards.
      workers: number of processes; None starts one per core.
      progress: whether to show a progress bar.

    Raises:
      InputError: if a file cannot be read, or a shard cannot be written.
      TrainingFailed: if a process is killed.
    """

    def write_one(worker: Worker, shard: Shard) -> int:
        request = base64.b64encode(pickle.dumps((packing, shard))).decode()
        try:
            reason = worker.ask(request)
        except Crashed as error:
            raise TrainingFailed(
                f"--out={packing.out}: the process that wrote {shard.name} ended ({error}); the same command"
                " continues"
            ) from error
        if reason:
            raise InputError(reason)
        return shard.size

    make = functools.partial(Worker, "vaejax.data.shard_worker")
    count = min(len(planned), max(1, workers or cores()))
    total = sum(shard.size for shard in planned)
    with (
        tqdm(total=total, unit="B", unit_scale=True, desc="packing", disable=not progress) as bar,
        contextlib.closing(in_parallel(make, count, write_one, planned)) as written,
    ):
        for size in written:
            bar.update(size)


def finish(packing: Packing, shards: Sequence[Shard]) -> None:
    """Writes the index of the shards from their records, and removes everything else.

    Raises:
      InputError: if it cannot be written.
    """
    tables = (table for shard in shards if (table := index_file.load(packing.record(shard))))
    records = storage.join(packing.out, RECORDS)
    with _naming(packing.out):
        index_file.save_pieces(tables, storage.join(packing.out, INDEX_FILE))
        storage.remove_folder(records)
        if storage.is_url(records):
            return
        for name in set(os.listdir(packing.out)) - {INDEX_FILE, *(shard.name for shard in shards)}:
            os.remove(os.path.join(packing.out, name))  # of an earlier call with smaller shards


@contextlib.contextmanager
def _naming(out: str) -> Iterator[None]:
    """A context that turns errors of the output folder into an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError) as error:  # array_record raises the latter
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"--out={out}: {reason}; accepted: a writable folder") from error
