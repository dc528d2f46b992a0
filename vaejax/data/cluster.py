"""The media index and the shards of a collection, made on a cluster by Apache Beam.

No process holds a list of all files. This one lists the collection into files of entries. From these, workers
list the photos and clips, and scan them in parts of the index. A part is stored when it is complete, and the
next call scans none of its files again. At last this process joins the parts, which follow each other in the
order of the index.
"""

import contextlib
import functools
import io
import itertools
import queue
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vaejax.data import index, index_file, index_row, media, order, shards
from vaejax.data.kinds.collection import Collection
from vaejax.data.scan import Decoder
from vaejax.data.shards import Packing, Shard
from vaejax.errors import InputError
from vaejax.runtime import beam, storage
from vaejax.runtime.storage import Entry

_ENTRIES = pa.schema({"path": pa.string(), "size": pa.int64(), "version": pa.int64()})


class Scan(NamedTuple):
    """A scan of a collection; picklable, because workers receive it.

    Attributes:
      collection: photos and clips.
      name: setting or argument that named the collection, for error messages.
      kind: 'full' or 'headers'.
      with_cuts: whether to find the cuts in clips.
      index: path or URL of the index.
      starts: for each part of the index, its first row in the index of an earlier scan, and at last the
        number of rows; () without one.
      number: counts the scans that were interrupted before this one; each stored parts of its own.
    """

    collection: Collection
    name: str
    kind: str
    with_cuts: bool
    index: str
    starts: Sequence[int] = ()
    number: int = 0

    @property
    def folder(self) -> str:
        """Path or URL of the hidden folder with the parts of all scans."""
        folder, _, name = self.index.rpartition("/")
        return f"{folder}/.{name.lstrip('.')}.parts"

    def file(self, name: str, number: int | None = None) -> str:
        """Path or URL of a file of this scan, or of scan `number`."""
        return f"{self.folder}/{self.number if number is None else number}/{name}"


def build_index(
    options: Sequence[str],
    collection: Collection,
    places: Sequence[str],
    name: str,
    scan: str = "full",
    with_cuts: bool = False,
) -> str:
    """Brings the index of a collection up to date; the file is that of `index.load_or_build`.

    Args:
      options: options of Beam; see `beam.run`.
      collection: photos and clips, at a path or URL that is the same on all workers.
      places: paths or URLs for the index; the first that can be written is used.
      name: setting or argument that named the collection, for error messages.
      scan: 'full' or 'headers'.
      with_cuts: whether to find the cuts in clips.

    Returns:
      The path or URL of the index.

    Raises:
      InputError: if the collection does not exist or has no photos or clips, or no place can be written.
      TrainingFailed: if the job fails; the next call continues.
    """
    collection.check(name)
    wanted = Scan(collection, name, scan, with_cuts, _writable(places, f"{name} = {collection.location}"))
    stored = {int(entry.path.split("/")[0]) for entry in storage.walk(wanted.folder, name)}
    wanted = wanted._replace(number=max(stored, default=-1) + 1, starts=_starts(wanted.index))
    others: Counter[str] = Counter()
    lists = list(_listed(wanted, others))
    if lists:
        beam.run(options, functools.partial(_add_scan, wanted, lists))
    parts = [entry.path for entry in storage.walk(wanted.file(""), name) if entry.path.startswith("part-")]
    if not parts:
        raise index.nothing_found(collection, name, others)
    tables = map(index_file.load, (wanted.file(part) for part in sorted(parts)))
    index_file.save_pieces((table for table in tables if table), wanted.index)
    storage.remove_folder(wanted.folder)
    pieces = index_file.pieces(wanted.index, ["path", "kind", "duration", "error"])
    print(
        "\n".join([index.summary(collection.location, pieces), *media.passed_over(others)]), file=sys.stderr
    )
    return wanted.index


def pack(options: Sequence[str], packing: Packing, planned: Sequence[Shard]) -> None:
    """Writes shards on a cluster; see `shards.write`.

    Raises:
      TrainingFailed: if the job fails; the next call continues.
    """
    beam.run(options, functools.partial(_add_packing, packing, planned))


# What this process does -------------------------------------------------------------------------------------


def _writable(places: Sequence[str], label: str) -> str:
    """The first of some places for an index in whose folder files can be written."""
    reason = ""
    for place in places:
        try:
            with storage.new_file(f"{place}.try"):
                pass
            storage.remove_file(f"{place}.try")
            return place
        except OSError as error:
            reason = error.strerror
    raise InputError(f"{label}: no place for its index ({reason}); accepted: --out=FILE that can be written")


def _starts(place: str) -> list[int]:
    """The first row of each part of an index, and the number of rows; [] without an index."""
    if not index_file.is_current(place):
        earlier = index_file.load(place)
        if earlier is None:
            return []
        index_file.save(earlier, place)  # of an earlier version, which is read as a whole
    counts = Counter(
        order.part(path) for piece in index_file.pieces(place, ["path"]) for path in piece["path"].to_pylist()
    )
    return list(itertools.accumulate((counts[part] for part in range(order.PARTS)), initial=0))


def _listed(scan: Scan, others: Counter[str]) -> Iterator[str]:
    """Writes the entries of a collection to files, and yields their paths."""
    entries = scan.collection.entries(scan.name, others)
    for number in itertools.count():
        some = list(itertools.islice(entries, scan.collection.AT_ONCE))
        if not some:
            return
        place = scan.file(f"entries-{number:06}.parquet")
        with storage.new_file(place) as file:
            pq.write_table(pa.Table.from_pylist([entry._asdict() for entry in some], _ENTRIES), file)
        yield place


# What the workers do ----------------------------------------------------------------------------------------


def _add_scan(scan: Scan, lists: list[str], pipeline: Any) -> None:
    import apache_beam  # pyright: ignore

    rows = (
        pipeline
        | "lists" >> apache_beam.Create(lists)
        | "rows" >> apache_beam.FlatMap(functools.partial(_rows, scan))
    )
    parts = rows | "parts" >> apache_beam.GroupByKey()
    _ = parts | "scan" >> apache_beam.Map(functools.partial(_scan_part, scan))


def _add_packing(packing: Packing, planned: Sequence[Shard], pipeline: Any) -> None:
    import apache_beam  # pyright: ignore

    listed = pipeline | "shards" >> apache_beam.Create([tuple(shard) for shard in planned])
    _ = listed | "write" >> apache_beam.Map(functools.partial(_write, packing))


def _rows(scan: Scan, place: str) -> Iterator[tuple[int, dict]]:
    """The photos and clips in the entries that a file lists, with the part of each."""
    for entry in pq.read_table(io.BytesIO(storage.read(place))).to_pylist():
        for row in scan.collection.rows(Entry(**entry), scan.name, Counter()):
            yield order.part(row["path"]), row


def _scan_part(scan: Scan, keyed: tuple[int, Iterable[dict]]) -> None:
    """Scans the files of one part, except those that an earlier scan knows, and stores their rows."""
    part, listed = keyed
    # Of two members of a tar with the same name, the last counts.
    files = {file["path"]: file for file in sorted(listed, key=lambda f: (f["path"], f.get("position") or 0))}
    known = index_row.known(_earlier(scan, part), scan.kind, scan.with_cuts)
    rows = []
    with _decoder() as decoder:
        for file in files.values():
            row = index_row.described(file, known.get(index_row.identity(file)))
            if not index_row.suffices(row, scan.kind, scan.with_cuts):
                content = scan.collection.content_of(file)
                row = file | decoder.probe(content, file["kind"], scan.kind, scan.with_cuts)
            rows.append(row)
    table = order.ordered(pa.Table.from_pylist(rows, index_file.SCHEMA))
    index_file.save(table, scan.file(_part_name(part)))


def _part_name(part: int) -> str:
    return f"part-{part:04}.parquet"


def _earlier(scan: Scan, part: int) -> Iterator[dict]:
    """The rows of a part in the earlier index, and in interrupted scans."""
    if scan.starts and (count := scan.starts[part + 1] - scan.starts[part]):
        yield from index_file.rows(scan.index, scan.starts[part], count).to_pylist()
    for number in range(scan.number + 1):
        if table := index_file.load(scan.file(_part_name(part), number)):
            yield from table.to_pylist()


_idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()


@contextlib.contextmanager
def _decoder() -> Iterator[Decoder]:
    """A process that decodes, started once for each thread of a worker; it ends with the worker."""
    try:
        decoder = _idle.get_nowait()
    except queue.Empty:
        decoder = Decoder()
    yield decoder
    _idle.put(decoder)


def _write(packing: Packing, shard: tuple) -> None:
    shards.write(packing, Shard(*shard))
