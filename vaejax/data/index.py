"""The media index: a Parquet table of the photos and clips in a folder, unreadable ones included.

A full scan decodes every file completely, so damage is known before training. A scan of the headers is much
faster, but leaves damage to be found in training.

A later scan reads only files that are new, or whose size or modification time changed. A full scan also
decodes those of which only the headers were read, and a scan with cuts those clips whose cuts are unknown.
Unreadable files are read again if the decoders' versions changed, or if the reason was not the file's
content. Deleted files are dropped.

    python -m vaejax.data.index FOLDER
    python -m vaejax.data.index '{"kind": "webdataset", "path": "gs://BUCKET/TARS"}'
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute

from vaejax import cli
from vaejax.config.schema import DataConfig
from vaejax.data import cuts, index_file, index_row, large, media, order
from vaejax.data.index_file import INDEX_FILE, SCHEMA
from vaejax.data.kinds.collection import Collection, Folder
from vaejax.data.listing import Listing
from vaejax.data.scan import probe_files
from vaejax.data.spans import from_index
from vaejax.data.split import readable, seams, split_files
from vaejax.data.split_rule import LARGE, Rule
from vaejax.data.table import count_of, describe_held_out
from vaejax.errors import InputError
from vaejax.runtime import beam, storage

pc: Any = pyarrow.compute  # its functions are made at import
TRAIN = "python -m vaejax.main --config=demo --workdir=runs/mine"


def load_or_build(
    place: Collection | str | os.PathLike,
    workers: int | None = None,
    progress: bool = True,
    out: str | None = None,
    name: str = "data.media",
    scan: str = "full",
    with_cuts: bool = False,
    listing: Listing | None = None,
) -> pa.Table:
    """Brings the index of a collection up to date and returns it.

    The index is stored in the folder, or in vaejax's cache (`cache.folder`) if the folder is read-only.

    Args:
      place: photos and clips, or the path of a folder tree of them; files of other kinds are counted.
      workers: number of decoding processes; None starts one per core.
      progress: whether to show a progress bar and a summary on stderr.
      out: file in which to store the index instead; None stores it as described above.
      name: setting or argument that named the folder, for error messages.
      scan: 'full' decodes whole files; 'headers' reads headers, and clips' first frames.
      with_cuts: whether to find the cuts in clips; needs PySceneDetect and a full scan, see `cuts.check`.
      listing: takes the files that the collection lists; final if none will be scanned again.

    Returns:
      A table with the columns of `SCHEMA`, one row per photo and clip, in the order of `vaejax.data.order`.

    Raises:
      InputError: if the folder does not exist or has no photos or clips, or `out` cannot be written.
    """
    collection = place if isinstance(place, Collection) else Folder(storage.located(place))
    collection.check(name)
    places = [out] if out else index_file.places(collection)
    stored = [table for table in map(index_file.load, places) if table is not None]
    others: Counter[str] = Counter()
    listing = listing or Listing()
    entries = listing.over(collection.entries(name, others))
    first = stored[0] if stored else SCHEMA.empty_table()
    settled, remaining = index_row.settled(first, entries, scan, with_cuts)
    # Rows are made only of the rest, because an index may have millions.
    unsettled = [first.filter(pa.array(~settled)), *stored[1:]] if remaining else []
    earlier = (row for table in reversed(unsettled) for row in table.to_pylist())
    known = index_row.known(earlier, scan, with_cuts)
    files = collection.files(remaining, name, known.values(), others)
    files = sorted(files, key=lambda file: file["path"])
    if not files and not settled.any():
        raise nothing_found(collection, name, others)
    rows = {file["path"]: index_row.described(file, known.get(index_row.identity(file))) for file in files}
    unknown = [file for file in files if not index_row.suffices(rows[file["path"]], scan, with_cuts)]
    try:
        for row in probe_files(collection, unknown, workers, progress, scan, with_cuts):
            rows[row["path"]] = row
    finally:  # an interrupted scan saves its results, and the next one continues from them
        # A tar is listed anew only if none of its rows are known, so all of them are stored.
        unread = [index_row.unread(file) for file in files if not rows[file["path"]] and file.get("shard")]
        table = first if settled.all() else first.filter(pa.array(settled))
        if files:
            rest = pa.Table.from_pylist([*filter(None, rows.values()), *unread], SCHEMA)
            table = order.ordered(pa.concat_tables([table, rest]))
        if not any(table is other or table.equals(other) for other in stored):
            _save(table, places)
    listing.is_final &= index_row.all_suffice(table, scan, with_cuts)
    if progress:
        described = table.select(["path", "kind", "duration", "error"])
        text = [summary(collection.location, [described]), *media.passed_over(others)]
        print("\n".join(text), file=sys.stderr)
    return table


def summary(folder: str, tables: Iterable[pa.Table]) -> str:
    """Text with the number of photos, clips and unreadable files in an index, and its first five errors.

    Args:
      folder: name of the collection.
      tables: the index, or its pieces; with the columns path, kind, duration and error.
    """
    photos, clips, seconds, broken, errors = 0, 0, 0.0, 0, []
    for table in tables:
        damaged = pc.fill_null(pc.not_equal(table["error"], ""), False)
        named = table.select(["path", "error"]).filter(damaged).sort_by("path").slice(0, 5 - len(errors))
        errors += [f"  {file['path']}: {file['error']}" for file in named.to_pylist()]
        clip = pc.and_(pc.equal(table["kind"], "video"), pc.invert(damaged))
        seconds += pc.sum(table["duration"].filter(clip)).as_py() or 0.0
        count = pc.sum(clip).as_py() or 0
        broken += pc.sum(damaged).as_py() or 0
        clips, photos = clips + count, photos + len(table) - count
    photos -= broken
    duration = f" ({duration_of(seconds)})" if clips else ""
    first = f"{folder}: {count_of(photos, 'photo')}, {count_of(clips, 'clip')}{duration}, {broken} unreadable"
    rest = [f"  and {broken - 5} more, listed in the column 'error' of the index"] * (broken > 5)
    return "\n".join([first, *errors, *rest])


def duration_of(seconds: float) -> str:
    """A duration in words: '9 s', '12 min' or '3.5 h'."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def nothing_found(collection: Collection, name: str, others: Counter[str]) -> InputError:
    """The error that a collection has no photos or clips; see `Collection.files` for the arguments."""
    reasons = ["no photos or clips in it", *media.passed_over(others)]
    return InputError(f"{name} = {collection.location}: {'; '.join(reasons)}; accepted: {collection.NEEDED}")


def _save(table: pa.Table, places: list[str]) -> None:
    """Writes the index atomically to the first of the paths `places` that is writable."""
    reason = OSError()
    for place in places:
        try:
            index_file.save(table, place)
            return
        except OSError as error:
            reason = error
    if len(places) == 1:
        raise InputError(f"--out={places[0]}: {reason.strerror}; accepted: a writable file")
    print(f"warning: the index cannot be saved: {reason}; the next run scans again", file=sys.stderr)


# The command ------------------------------------------------------------------------------------------------


def next_steps(table: pa.Table, flag: str, seconds: float) -> Iterable[str]:
    """Yields the last lines of a command that prepares media: held-out files, duration and next command.

    Args:
      table: a media index.
      flag: flag that makes vaejax.main train on the media.
      seconds: duration of the command so far.
    """
    data = DataConfig()
    if len(table) >= LARGE:
        table = large.hashed(table)
        files = from_index(table, Rule.of(*large.extents(table), data.holdout).seams(table))
    else:
        files = from_index(table, seams(split_files(readable(table), data.holdout), table))
    yield f"held out for evaluation (data.holdout = {data.holdout:g}): {describe_held_out(files)}"
    yield f"done in {duration_of(seconds)}"
    yield f"next: {TRAIN} {flag}"


def add_scan_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose what a scan finds out."""
    parser.add_argument(
        "--scan",
        choices=("full", "headers"),
        default="full",
        help="full decodes whole files; headers is much faster, but does not notice damage (default: full)",
    )
    parser.add_argument(
        "--cuts",
        action="store_true",
        help="find the cuts in clips, for data.cuts = True (default: do not look)",
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.parser(
        "vaejax.data.index",
        "Scans a folder of photos and clips into a Parquet index. A repeated scan reads only new and changed"
        " files. Training scans its folders itself when it starts.",
        "~/Videos --workers 8",
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        help="a folder tree of photos and clips, or another collection: an entry of data.sources as JSON",
    )
    parser.add_argument("--out", metavar="FILE", help=f"the index file (default: FOLDER/{INDEX_FILE})")
    parser.add_argument(
        "--workers", metavar="N", type=cli.at_least(1), help="decoding processes (default: one per core)"
    )
    add_scan_flags(parser)
    beam.add_flag(parser)
    chosen, options = beam.parse(parser, arguments)

    def work():
        start = time.monotonic()
        if chosen.out and os.path.isdir(chosen.out):
            raise InputError(f"--out={chosen.out}: is a folder; accepted: a file to write")
        cuts.check(chosen.cuts, chosen.scan, command=True)
        from vaejax.data import cluster, sources  # they import this module

        collection = sources.collection_at(chosen.folder, "FOLDER = ")
        flag = f"--config.data.media={shlex.quote(chosen.folder)}"
        if sources.is_entry(chosen.folder):
            flag = sources.flag(json.loads(chosen.folder))
        flag += " --config.data.cuts=True" * chosen.cuts
        flag += " --config.data.scan=headers" * (chosen.scan == "headers")
        if options:
            places = [storage.located(chosen.out)] if chosen.out else index_file.places(collection)
            cluster.build_index(options, collection, places, "FOLDER", chosen.scan, chosen.cuts)
            print(f"done in {duration_of(time.monotonic() - start)}\nnext: {TRAIN} {flag}")
            return
        table = load_or_build(
            collection,
            chosen.workers,
            out=chosen.out,
            name="FOLDER",
            scan=chosen.scan,
            with_cuts=chosen.cuts,
        )
        print("\n".join(next_steps(table, flag, time.monotonic() - start)))

    return cli.run(work, "stopped; the results so far are saved; run the same command to continue")


if __name__ == "__main__":
    sys.exit(main())
