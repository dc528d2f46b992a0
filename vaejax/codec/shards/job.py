"""Encodes a collection in shards: groups of files in the order of the index, each encoded on its own.

A shard is one tar or Parquet file, or many latent files. Beside the shards, the hidden folder `.records` has
a record of each, so that a later call keeps what an interrupted one, or a lost worker, completed.
"""

import functools
import hashlib
import json
import pathlib
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

import vaejax
from vaejax.codec.batch import ALREADY_THERE, DONE, BatchConverter, Outcome, progress_bar
from vaejax.codec.codec import Codec
from vaejax.codec.latent_file import EXTENSION, LatentFile
from vaejax.codec.origin import Record, Settings
from vaejax.codec.shards.formats import FORMATS, Columns, Sample, keys, sample_of
from vaejax.codec.tasks import ENCODE, LATENT, Task
from vaejax.data import index_file
from vaejax.data.kinds.collection import Collection
from vaejax.data.shards import RECORDS, Shard
from vaejax.errors import InputError, Stopped, one_line
from vaejax.files import json_bytes
from vaejax.runtime import beam, cache, storage

_ENCODED = DONE[ENCODE]


class Model(NamedTuple):
    """A VAE as every worker opens it: the arguments of `vaejax.load`, and the fingerprint to expect."""

    path: str
    step: int | None
    compute: str
    tile: int
    overlap: int | None
    fingerprint: str

    def load(self) -> Codec:
        """Opens the VAE.

        Raises:
          InputError: if it is another one here, or cannot encode.
        """
        cache.keep_compiled()
        codec = vaejax.load(
            self.path, step=self.step, dtype=self.compute, tile=self.tile, overlap=self.overlap
        )
        if codec.fingerprint != self.fingerprint:
            raise InputError(
                f"--model={self.path}: model {codec.fingerprint} on this worker, not {self.fingerprint};"
                " accepted: a path or URL of the same model everywhere"
            )
        codec.stream_encoder()  # raises at once if the model has no latent statistics, which every file needs
        return codec


class Job(NamedTuple):
    """The settings of an encoding job; picklable, because workers receive them.

    Attributes:
      collection: photos and clips.
      index: path or URL of its index; see vaejax.data.index_file.
      out: path or URL of the output folder.
      format: 'latent' for a latent file of each photo and clip, or a key of `FORMATS`.
      columns: columns of Parquet files for the labels of the collection.
      model: the VAE.
      settings: settings of the latents.
      encoded: the record of latents, without their source; see vaejax.codec.origin.
      workers: number of files that a process encodes at a time.
    """

    collection: Collection
    index: str
    out: str
    format: str
    columns: Columns
    model: Model
    settings: Settings
    encoded: Record
    workers: int

    def record(self, shard: Shard) -> str:
        """Path or URL of the record of a shard."""
        return storage.join(self.out, f"{RECORDS}/{shard.name}.json")

    def rows(self, shard: Shard) -> list[dict]:
        """The rows of a shard's files in the index."""
        return index_file.rows(self.index, shard.first, shard.count).to_pylist()


def is_complete(job: Job, shard: Shard) -> bool:
    """Whether an earlier call encoded a shard of the same files, and could read all that are readable."""
    record = read_json(job.record(shard))
    if not record or record["files"] != _identity(job, job.rows(shard)) or record["again"]:
        return False
    return (
        not record["counts"].get(_ENCODED)
        or job.format == LATENT
        or storage.exists(_place(job, shard), "OUT")
    )


def _identity(job: Job, rows: Iterable[dict]) -> str:
    """A hash of the files of a shard, and of how they are encoded and packed."""
    facts = ("path", "kind", "size", "mtime_ns", "shard", "position", "length", "labels", "error")
    text = json.dumps([[[row[fact] for fact in facts] for row in rows], job.columns, job.encoded])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _place(job: Job, shard: Shard) -> str:
    return storage.join(job.out, shard.name)


def read_json(place: str) -> dict[str, Any]:
    """A JSON object in a file; {} if there is none."""
    try:
        value = json.loads(storage.read(place))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(place: str, value: dict[str, Any]) -> None:
    """Writes a JSON object to a path or URL.

    Raises:
      OSError: if it cannot be written.
    """
    with storage.new_file(place) as file:
        file.write(json_bytes(value))


# Encoding of one shard --------------------------------------------------------------------------------------


def write(job: Job, shard: Shard, batch: BatchConverter, bar: tqdm) -> None:
    """Encodes the files of a shard, and then writes its record.

    Args:
      job: what is encoded.
      shard: the shard.
      batch: encodes the files.
      bar: progress bar, which advances by the files of the shard.

    Raises:
      InputError: if an output cannot be written.
      Stopped: if `batch` was stopped; the shard is then discarded.
    """
    rows = job.rows(shard)
    with tempfile.TemporaryDirectory(prefix="vaejax-") as scratch:
        tasks = list(_tasks(job, rows, scratch))
        batch.run(tasks, bar)
        outcome = batch.take()
        if sum(outcome.counts.values()) < len(tasks):
            raise Stopped
        if outcome.unwritable:
            raise InputError(next(iter(outcome.refused.values())))
        try:
            if job.format != LATENT and outcome.counts[_ENCODED]:
                with storage.new_file(_place(job, shard)) as file:
                    FORMATS[job.format].write(file, _samples(rows, tasks), job.columns)
            write_json(
                job.record(shard),
                {
                    "files": _identity(job, rows),
                    "counts": outcome.counts,
                    "refused": outcome.refused,
                    "other_settings": outcome.other_settings,
                    "again": bool(outcome.unavailable or outcome.other_settings),
                },
            )
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise InputError(f"OUT = {job.out}: {reason}; accepted: a writable folder") from error


def _tasks(job: Job, rows: Sequence[dict], scratch: str) -> Iterator[Task]:
    for number, row in enumerate(rows):
        name = relative(row["path"])
        target = pathlib.Path(scratch, f"{number}{EXTENSION}")
        if job.format == LATENT:
            target = pathlib.Path(job.out, name + EXTENSION)
        refusal = row["error"] or leads_out(name)
        content = functools.partial(job.collection.content_of, row)
        yield Task(content, target, name, row["kind"], EXTENSION, job.format == LATENT, refusal)


def relative(path: str) -> str:
    """The path of a file below an output folder; manifests also list URLs and absolute paths."""
    return (path.partition("://")[2] or path).lstrip("/")


def leads_out(name: str) -> str:
    """The reason to refuse a relative path that leads out of the output folder; '' if it does not."""
    return "its path leads out of OUT; accepted: a path without '..'" * (".." in name.split("/"))


def _samples(rows: Sequence[dict], tasks: Sequence[Task]) -> Iterator[Sample]:
    """The samples of the files that were encoded, in order."""
    done = [(row, task) for row, task in zip(rows, tasks, strict=True) if task.target.exists()]
    for key, (row, task) in zip(keys(task.name for _, task in done), done, strict=True):
        labels = json.loads(row["labels"] or "{}")
        yield sample_of(LatentFile(task.target, task.name), key, task.name, labels)


# All shards -------------------------------------------------------------------------------------------------


def write_all(job: Job, shards: Sequence[Shard], stop: threading.Event) -> None:
    """Encodes shards in this process, one after the other.

    Raises:
      InputError: if an output cannot be written.
      Stopped: if `stop` is set.
    """
    if not shards:
        return
    batch = BatchConverter(ENCODE, job.model.load(), job.settings, job.workers, stop)
    with progress_bar(sum(shard.count for shard in shards)) as bar:
        for shard in shards:
            write(job, shard, batch, bar)


def write_on_cluster(options: Sequence[str], job: Job, shards: Sequence[Shard]) -> None:
    """Encodes shards in the workers of Apache Beam, of which each loads the model once.

    Raises:
      InputError: if the options are wrong.
      TrainingFailed: if the job fails; the next call continues.
    """
    beam.run(options, functools.partial(_add_shards, job, shards))


def _add_shards(job: Job, shards: Sequence[Shard], pipeline: Any) -> None:
    import apache_beam  # pyright: ignore

    listed = pipeline | "shards" >> apache_beam.Create([tuple(shard) for shard in shards])
    _ = listed | "encode" >> apache_beam.Map(functools.partial(_write, job))


def _write(job: Job, shard: tuple) -> None:
    with _loading:  # a worker may have several threads
        codec = _loaded(job.model)
    batch = BatchConverter(ENCODE, codec, job.settings, job.workers, threading.Event())
    write(job, Shard(*shard), batch, tqdm(disable=True))


_loading = threading.Lock()


@functools.lru_cache(maxsize=1)
def _loaded(model: Model) -> Codec:
    return model.load()


def outcome(job: Job, planned: Sequence[Shard], done_before: Sequence[Shard]) -> Outcome:
    """The outcome of all shards, from their records; `done_before` are those that were kept."""
    total, kept = Outcome(), {shard.name for shard in done_before}
    for shard in planned:
        record = read_json(job.record(shard))
        for name, count in record["counts"].items():
            total.counts[ALREADY_THERE if name == _ENCODED and shard.name in kept else name] += count
        total.refused |= record["refused"]
        total.other_settings += record["other_settings"]
    return total


def remove_others(job: Job, planned: Sequence[Shard]) -> None:
    """Removes the shards and records of an earlier call with other files, or another size of shards.

    Raises:
      OSError: if they cannot be removed.
    """
    wanted = {place for shard in planned for place in (shard.name, f"{RECORDS}/{shard.name}.json")}
    extension = FORMATS[job.format].extension
    for folder, prefix in ((job.out, ""), (storage.join(job.out, RECORDS), f"{RECORDS}/")):
        for entry in list(storage.walk(folder, "OUT")):
            name = entry.path.removesuffix(".json")
            is_ours = name.startswith("latents-") and name.endswith(extension)
            if is_ours and prefix + entry.path not in wanted:
                storage.remove_file(storage.join(folder, entry.path))
