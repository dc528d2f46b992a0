"""Scans a folder of photos and clips once into a Parquet table: what is in each file, and which are broken.

Every file is decoded whole, so that training meets no surprise. A later scan reads only files that are new or
changed (by size and modification time) and drops those that are gone.

    python -m vaejax.data.index FOLDER
"""

import contextlib
import hashlib
import json
import os
import queue
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from vaejax import cli
from vaejax.data import media
from vaejax.errors import InputError
from vaejax.runtime import cache
from vaejax.runtime import host as machine

INDEX_FILE = ".vaejax-index.parquet"
# Columns are null in the rows of unreadable files, all but path, kind, size, mtime_ns and error. The version
# makes an index of older columns or an older scanner count for nothing.
SCHEMA = pa.schema(
    {
        "path": pa.string(),  # relative to the folder, with forward slashes
        "kind": pa.string(),  # 'image' | 'video'
        "width": pa.int32(),  # pixels as displayed: rotated, square
        "height": pa.int32(),
        "frames": pa.int32(),  # really decodable
        "fps": pa.float64(),  # mean; null for images
        "duration": pa.float64(),  # seconds; 0 for images
        "rotation": pa.int32(),  # degrees clockwise, already counted in width and height
        "codec": pa.string(),
        "bits_per_pixel": pa.float64(),  # of the file, per displayed pixel and frame
        "quality": pa.int32(),  # estimated JPEG quality, 1 to 100; null for other formats
        "size": pa.int64(),  # bytes
        "mtime_ns": pa.int64(),
        "error": pa.string(),  # one line, null for files that can be read
    },
    metadata={"vaejax.index": "1"},
)
_CRASHED = "the decoder crashed"
_ACCEPTED = "accepted: a folder with photos or clips"


def load_or_build(
    folder: str | os.PathLike,
    workers: int | None = None,
    progress: bool = True,
    out: str | None = None,
    name: str = "data.media",
) -> pa.Table:
    """Brings the index of a folder up to date and returns it.

    It is kept in the folder, or in the cache (cache.folder) where that cannot be written.

    Args:
      folder: a folder tree; hidden files and files of other kinds are passed over.
      workers: processes that decode; None takes one for each core.
      progress: shows a progress bar and a summary on stderr.
      out: keeps the index in this file instead.
      name: what the person who gave the folder calls it, for the errors.

    Returns:
      A table of `SCHEMA`, one row per photo and clip, sorted by path.

    Raises:
      InputError: no such folder, or nothing in it.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    if not os.path.isdir(folder):
        raise InputError(f"{name} = {folder}: no such folder; {_ACCEPTED}")
    found = sorted(_files(folder), key=lambda row: row["path"])
    if not found:
        raise InputError(f"{name} = {folder}: no photos or clips in it; {_ACCEPTED}")
    places = [out] if out else [os.path.join(folder, INDEX_FILE), _cache_path(folder)]
    stored = [table for table in map(_load, places) if table is not None]
    known = {_identity(row): row for table in reversed(stored) for row in table.to_pylist()}
    # A crash may have been the machine's fault (memory): it is worth another try.
    known = {key: row for key, row in known.items() if not (row["error"] or "").startswith(_CRASHED)}
    rows = {row["path"]: known.get(_identity(row)) for row in found}
    unknown = [row for row in found if rows[row["path"]] is None]
    try:
        for row in _scan(folder, unknown, workers, progress):
            rows[row["path"]] = row
    finally:  # an interrupted scan keeps what it has: the next one goes on from there
        table = pa.Table.from_pylist([row for row in rows.values() if row], SCHEMA)
        if not any(table.equals(other) for other in stored):
            _save(table, places)
    if progress:
        print(summary(folder, table), file=sys.stderr)
    return table


def summary(folder: str, table: pa.Table) -> str:
    """What an index holds, with the first few files that cannot be read and why."""
    rows = table.select(["path", "kind", "duration", "error"]).to_pylist()
    clips = [row for row in rows if row["kind"] == "video" and not row["error"]]
    broken = [row for row in rows if row["error"]]
    photos = len(rows) - len(clips) - len(broken)
    seconds = sum(row["duration"] for row in clips)
    lines = [f"{folder}: {photos} photos, {len(clips)} clips ({seconds:.0f} s), {len(broken)} unreadable"]
    lines += [f"  {row['path']}: {row['error']}" for row in broken[:5]]
    if len(broken) > 5:
        lines.append(f"  and {len(broken) - 5} more: see the column 'error' of the index")
    return "\n".join(lines)


def _files(folder: str) -> Iterator[dict]:
    """Yields the path, kind, size and mtime_ns of every photo and clip; follows each linked folder once."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            kind = media.kind_of(name)
            if kind is None or name.startswith("."):
                continue
            path = os.path.join(root, name)
            try:
                status = os.stat(path)
            except OSError:  # a link to nowhere
                continue
            if stat.S_ISREG(status.st_mode):
                relative = os.path.relpath(path, folder).replace(os.sep, "/")
                relative = os.fsencode(relative).decode("utf-8", "replace")
                yield {"path": relative, "kind": kind, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _identity(row: dict) -> tuple:
    return row["path"], row["size"], row["mtime_ns"]


# Decoding in processes of its own ---------------------------------------------------------------------------


def _scan(folder: str, rows: list[dict], workers: int | None, progress: bool) -> Iterator[dict]:
    """Yields the finished rows as they come, in any order."""
    if not rows:
        return
    count = min(len(rows), max(1, workers or machine.cores()))
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    crew = [_Worker() for _ in range(count)]
    for worker in crew:
        idle.put(worker)

    def probe(row: dict) -> dict:
        worker = idle.get()
        try:
            return row | worker.probe(os.path.join(folder, row["path"]), row["kind"])
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(count)
    try:
        done = as_completed([pool.submit(probe, row) for row in rows])
        for future in tqdm(done, "scanning", len(rows), unit=" files", disable=not progress):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        for worker in crew:
            worker.close()


class _Worker:
    """A process that probes one file at a time.

    Not a multiprocessing pool: that would import the caller's main module (and JAX) again in every worker,
    and one decoder that crashes would break the pool. Here it costs its own file only.
    """

    def __init__(self):
        self._process = None

    def probe(self, path: str, kind: str) -> dict:
        """Returns what `media.probe` found, or an error."""
        if "\ufffd" in path and not os.path.exists(path):
            return {"error": "the file's name is not UTF-8"}
        if self._process is None:
            self._start()
        try:
            print(json.dumps([path, kind]), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return json.loads(answer)
        code = self._process.wait()
        self.close()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return {"error": f"{_CRASHED} ({how})"}

    def _start(self) -> None:
        paths = [os.path.abspath(path) for path in sys.path if not path or os.path.isdir(path)]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", "from vaejax.data import index; index._serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C is for the parent, which closes this process when it has saved
        )

    def close(self) -> None:
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError):  # a question that a crashed process never read
                self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
            self._process = None


def _serve() -> None:
    """Answers [path, kind] lines on stdin with a JSON object each, until stdin ends."""
    for line in sys.stdin:
        path, kind = json.loads(line)
        try:
            answer = media.probe(path, kind) | {"error": None}
        except media.Unreadable as error:
            answer = {"error": f"{error}"}
        print(json.dumps(answer), flush=True)


# Where the index is kept ------------------------------------------------------------------------------------


def _cache_path(folder: str) -> str:
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]
    return str(cache.folder() / "index" / f"{name}.parquet")


def _load(path: str) -> pa.Table | None:
    """The table in a file, or None: no such file, a damaged one, or one of another version."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        return None
    return table if table.schema.equals(SCHEMA, check_metadata=True) else None


def _save(table: pa.Table, places: list[str]) -> None:
    """Writes the first of `places` that can be written; no reader ever sees half a file."""
    for place in places:
        unfinished = f"{place}.{uuid.uuid4().hex}.tmp"
        try:
            os.makedirs(os.path.dirname(os.path.abspath(place)), exist_ok=True)
            try:
                pq.write_table(table, unfinished)
                os.replace(unfinished, place)
            finally:
                if os.path.exists(unfinished):
                    os.remove(unfinished)
            return
        except OSError as error:
            reason = error
    if len(places) == 1:
        raise InputError(f"--out={places[0]}: {reason.strerror}; accepted: a file that can be written")
    print(f"the index is not kept: {reason}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = cli.parser(
        "vaejax.data.index",
        "Scans a folder of photos and clips, once, into a Parquet index. Run it again after the folder"
        " changed: only new and changed files are read. Training does the same when it starts.",
        "~/Videos --workers 8",
    )
    parser.add_argument("folder", metavar="FOLDER", help="a folder tree of photos and clips")
    parser.add_argument("--out", metavar="FILE", help=f"the index file (default: FOLDER/{INDEX_FILE})")
    parser.add_argument(
        "--workers", metavar="N", type=cli.at_least(1), help="processes (default: one a core)"
    )
    chosen = parser.parse_args(arguments)

    def work():
        if chosen.out and os.path.isdir(chosen.out):
            raise InputError(f"--out={chosen.out}: a folder; accepted: a file to write")
        load_or_build(chosen.folder, chosen.workers, out=chosen.out, name="FOLDER")

    return cli.run(work, "stopped; what was scanned is kept, and the same command goes on from there")


if __name__ == "__main__":
    sys.exit(main())
