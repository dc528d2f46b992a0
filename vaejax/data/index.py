"""The media index: a Parquet table of the photos and clips in a folder, unreadable ones included.

A full scan decodes every file completely, so damage is known before training. A scan of the headers is much
faster, but leaves damage to be found in training.

A later scan reads only files that are new, or whose size or modification time changed. A full scan also
decodes those of which only the headers were read, and a scan with cuts those clips whose cuts are unknown.
Unreadable files are read again if the decoders' versions changed, or if the reason was not the file's
content. Deleted files are dropped.

    python -m vaejax.data.index FOLDER
"""

import argparse
import hashlib
import io
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from vaejax import cli
from vaejax.config.schema import DataConfig
from vaejax.data import cuts, media
from vaejax.data.kinds.collection import Collection, Folder
from vaejax.data.scan import probe_files
from vaejax.data.split import readable, seams, split_files
from vaejax.data.table import count_of, describe_held_out, from_index
from vaejax.errors import InputError
from vaejax.runtime import cache, storage

INDEX_FILE = ".vaejax-index.parquet"
# Unreadable files have only path, kind, size, mtime_ns, error and reader; their other columns are null.
# Increase the version in the metadata if the columns or the scan change: `_load` converts or drops others.
SCHEMA = pa.schema(
    {
        "path": pa.string(),  # relative to the folder, with forward slashes; unique
        "kind": pa.string(),  # 'image' | 'video'
        "width": pa.int32(),  # as displayed: after rotation, in square pixels
        "height": pa.int32(),
        "frames": pa.int32(),  # number of decodable frames
        "fps": pa.float64(),  # mean; null for images
        "duration": pa.float64(),  # seconds; 0 for images
        "rotation": pa.int32(),  # degrees clockwise from the coded to the displayed picture
        "codec": pa.string(),
        "bits_per_pixel": pa.float64(),  # file size in bits, divided by displayed pixels and by frames
        "quality": pa.int32(),  # estimated JPEG quality, 1 to 100; null for other formats
        "hdr": pa.bool_(),  # whether the file is HDR; it is read as SDR
        "size": pa.int64(),  # bytes
        "mtime_ns": pa.int64(),
        "error": pa.string(),  # the reason in one line; null for readable files
        "reader": pa.string(),  # the versions of the decoders; null if `error` is not about the content
        "scan": pa.string(),  # how the file was read: 'full' | 'headers'; null if the collection knows it
        # Times of the first frame after each cut, in seconds after the first frame; null if not looked for.
        "cuts": pa.list_(pa.field("element", pa.float64())),
        # Only for a file within a file, such as a member of a tar:
        "name": pa.string(),  # its path without the shard's, which orders samples; null if it is `path`
        "shard": pa.string(),  # path of the file that holds it
        "position": pa.int64(),  # its first byte, or its row
        "length": pa.int64(),  # bytes, also of an object in a bucket
        "labels": pa.string(),  # JSON object of columns that do not describe the file's content, or null
    },
    metadata={"vaejax.index": "4"},
)
# The columns that earlier versions lack.
_LATER = ("scan", "cuts", "name", "shard", "position", "length", "labels")
_LATER_COLUMNS = {"2": ("reader", *_LATER), "3": _LATER}
TRAIN = "python -m vaejax.main --config=demo --workdir=runs/mine"


def load_or_build(
    place: Collection | str | os.PathLike,
    workers: int | None = None,
    progress: bool = True,
    out: str | None = None,
    name: str = "data.media",
    scan: str = "full",
    with_cuts: bool = False,
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

    Returns:
      A table with the columns of `SCHEMA`, one row per photo and clip, sorted by path.

    Raises:
      InputError: if the folder does not exist or has no photos or clips, or `out` cannot be written.
    """
    collection = place if isinstance(place, Collection) else Folder(storage.located(place))
    collection.check(name)
    places = [out] if out else _places(collection)
    stored = [table for table in map(_load, places) if table is not None]
    known: dict[tuple, dict] = {}
    for entry in (entry for table in reversed(stored) for entry in table.to_pylist()):
        if _suffices(entry, scan, with_cuts) or _identity(entry) not in known:
            known[_identity(entry)] = entry
    others: Counter[str] = Counter()
    files = sorted(collection.files(name, known.values(), others), key=lambda file: file["path"])
    if not files:
        reasons = ["no photos or clips in it", *media.passed_over(others)]
        raise InputError(
            f"{name} = {collection.location}: {'; '.join(reasons)}; accepted: {collection.NEEDED}"
        )
    entries = {file["path"]: _described(file, known.get(_identity(file))) for file in files}
    unknown = [file for file in files if not _suffices(entries[file["path"]], scan, with_cuts)]
    try:
        for entry in probe_files(collection, unknown, workers, progress, scan, with_cuts):
            entries[entry["path"]] = entry
    finally:  # an interrupted scan saves its results, and the next one continues from them
        table = pa.Table.from_pylist([entry for entry in entries.values() if entry], SCHEMA)
        if not any(table.equals(other) for other in stored):
            _save(table, places)
    if progress:
        print("\n".join([summary(collection.location, table), *media.passed_over(others)]), file=sys.stderr)
    return table


def summary(folder: str, table: pa.Table) -> str:
    """Text with the number of photos, clips and unreadable files in an index, and its first five errors."""
    files = table.select(["path", "kind", "duration", "error"]).to_pylist()
    clips = [file for file in files if file["kind"] == "video" and not file["error"]]
    broken = [file for file in files if file["error"]]
    photos = len(files) - len(clips) - len(broken)
    duration = f" ({duration_of(sum(file['duration'] for file in clips))})" if clips else ""
    lines = [
        f"{folder}: {count_of(photos, 'photo')}, {count_of(len(clips), 'clip')}{duration},"
        f" {len(broken)} unreadable"
    ]
    lines += [f"  {file['path']}: {file['error']}" for file in broken[:5]]
    if len(broken) > 5:
        lines.append(f"  and {len(broken) - 5} more, listed in the column 'error' of the index")
    return "\n".join(lines)


def duration_of(seconds: float) -> str:
    """A duration in words: '9 s', '12 min' or '3.5 h'."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _described(file: dict, known: dict | None) -> dict | None:
    """The row of a file: what its collection knows about it, or else an earlier index; None if unknown."""
    if file.get("width") or file.get("error"):
        return {"error": None, "reader": media.reader(), "scan": "full", "cuts": None} | file
    return known and known | file


def _identity(entry: dict) -> tuple:
    return entry["path"], entry["size"], entry["mtime_ns"]


def _suffices(entry: dict | None, scan: str, with_cuts: bool) -> bool:
    """Whether an entry of an earlier scan, or None, holds what a scan would find."""
    if entry is None:
        return False
    if entry["error"]:
        return entry["reader"] == media.reader()
    if with_cuts and entry["kind"] == "video" and entry["cuts"] is None:
        return False
    return entry["scan"] in ("full", scan)


# Storage of the index ---------------------------------------------------------------------------------------


def _places(collection: Collection) -> list[str]:
    """The files in which the index of a collection may be stored: in its folder, and in the cache."""
    folder, variant = collection.location, collection.variant
    real = folder if storage.is_url(folder) else os.path.realpath(folder)
    name = hashlib.sha256(os.fsencode(real) + variant.encode()).hexdigest()[:32]
    of_folder, ending = os.path.splitext(INDEX_FILE)
    beside = storage.join(folder, f"{of_folder}{variant and '-'}{variant}{ending}")
    return [beside] * collection.is_folder + [str(cache.folder() / "index" / f"{name}.parquet")]


def _load(path: str) -> pa.Table | None:
    """The table in a file; None if it is missing, damaged or has a different version."""
    if not storage.is_url(path) and not os.path.isfile(path):  # a named pipe would wait for a writer
        return None
    try:
        table = pq.read_table(io.BytesIO(storage.read(path)), page_checksum_verification=True)
        table.validate(full=True)
    except (OSError, pa.ArrowException):
        return None
    for version, later in _LATER_COLUMNS.items():
        earlier = pa.schema([field for field in SCHEMA if field.name not in later], {"vaejax.index": version})
        if table.schema.equals(earlier, check_metadata=True):
            rows = [row | {"scan": None if row["error"] else "full"} for row in table.to_pylist()]
            table = pa.Table.from_pylist(rows, SCHEMA)
            break
    return table if table.schema.equals(SCHEMA, check_metadata=True) else None


def _save(table: pa.Table, places: list[str]) -> None:
    """Writes the index atomically to the first of the paths `places` that is writable."""
    reason = OSError()
    for place in places:
        try:
            with storage.new_file(place) as file:
                pq.write_table(table, file, write_page_checksum=True)
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
    parser.add_argument("folder", metavar="FOLDER", help="a folder tree of photos and clips")
    parser.add_argument("--out", metavar="FILE", help=f"the index file (default: FOLDER/{INDEX_FILE})")
    parser.add_argument(
        "--workers", metavar="N", type=cli.at_least(1), help="decoding processes (default: one per core)"
    )
    add_scan_flags(parser)
    chosen = parser.parse_args(arguments)

    def work():
        start = time.monotonic()
        if chosen.out and os.path.isdir(chosen.out):
            raise InputError(f"--out={chosen.out}: is a folder; accepted: a file to write")
        cuts.check(chosen.cuts, chosen.scan, command=True)
        table = load_or_build(
            chosen.folder,
            chosen.workers,
            out=chosen.out,
            name="FOLDER",
            scan=chosen.scan,
            with_cuts=chosen.cuts,
        )
        flag = f"--config.data.media={shlex.quote(chosen.folder)}"
        flag += " --config.data.cuts=True" * chosen.cuts
        flag += " --config.data.scan=headers" * (chosen.scan == "headers")
        print("\n".join(next_steps(table, flag, time.monotonic() - start)))

    return cli.run(work, "stopped; the results so far are saved; run the same command to continue")


if __name__ == "__main__":
    sys.exit(main())
