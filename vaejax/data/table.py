"""The table of a data source: its photos and spans of clips, and the buckets they fit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute

from vaejax.data import mapped, media
from vaejax.data.bucket import Bucket
from vaejax.data.crop import Crop, covers
from vaejax.data.latent_cache import LatentCache
from vaejax.runtime.content import Content

if TYPE_CHECKING:
    from vaejax.config.schema import DataConfig
    from vaejax.data.split import Split

pc: Any = pyarrow.compute  # its functions are made at import
# Lowest frame rate of a clip, relative to data.fps: at data.fps = 48, a film at 24 fps is still used. A clip
# with a lower frame rate would repeat its frames too often.
MIN_FPS_RATIO = 0.5
# Seconds. A span must be this much longer than a sample, because timestamps are rounded by up to that much.
TIME_MARGIN = 2e-3

SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "relative_path": pa.string(),
        "kind": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "frames": pa.int32(),
        "fps": pa.float64(),
        "quality": pa.float32(),
        "hdr": pa.bool_(),
        "start": pa.float64(),
        "stop": pa.float64(),
        "held_out": pa.bool_(),
        "shard": pa.string(),
        "position": pa.int64(),
        "length": pa.int64(),
    }
)
_PIECE = 2**20  # rows whose numeric columns are compared at a time
_NUMBERS = ("width", "height", "frames", "fps", "quality", "hdr", "start", "stop", "held_out")


@dataclass(frozen=True)
class Record:
    """A photo, or a span of a clip: one row of a source's table.

    Attributes:
      path: path of the file; for a TFDS record, a name for messages.
      relative_path: path relative to a folder of the source, which stays the same if the folder is moved or
        packed into shards; for a TFDS record, its name. Whatever selects or orders records uses this path.
      kind: 'image' or 'video'.
      width: displayed width in pixels; 0 if unknown until the file is read.
      height: displayed height in pixels; 0 if unknown until the file is read.
      frames: number of frames of the whole file; 0 if unknown until it is read.
      fps: frame rate of the file; 0 for a photo, infinite if unknown.
      quality: estimated JPEG quality, 1 to 100; NaN if unknown.
      hdr: whether the file is HDR; False if unknown.
      start: start of the span, in seconds after the file's first frame.
      stop: time of the span's last frame, in seconds after the file's first frame; infinite if unknown.
      held_out: whether the record is held out for evaluation.
      shard: path or URL of the shard that contains the file, or name of the TFDS split; '' for a file in a
        folder.
      position: index of the record in the shard or split, or its first byte; -1 for a file in a folder.
      length: bytes of the file; 0 if unknown.
    """

    path: str
    relative_path: str
    kind: str
    width: int
    height: int
    frames: int
    fps: float
    quality: float
    hdr: bool
    start: float
    stop: float
    held_out: bool
    shard: str
    position: int
    length: int


class Unfit(Exception):
    """A record does not fit the bucket; its size was unknown until it was read."""


@dataclass(frozen=True, eq=False)
class Source:
    """A table of records, and methods that read them; picklable, because worker processes receive it.

    Attributes:
      label: name of the source in the configuration.
      weight: relative share of the samples drawn from this source.
      table: table with the columns of `SCHEMA`; each row is a `Record`.
      unreadable: (path, reason) of each file that could not be read when the source was indexed.
      cache: latents of the files, with which training samples are read; None without latents.
      files: the files of `vaejax.data.mapped` that have the rows of `table`; () if it is in memory only.
    """

    label: str
    weight: float
    table: pa.Table
    unreadable: tuple[tuple[str, str], ...] = ()
    cache: LatentCache | None = field(default=None, kw_only=True)
    files: tuple[str, ...] = field(default=(), kw_only=True)
    # Fields of the configuration that this kind of source accepts in addition to kind and weight.
    FIELDS: ClassVar[tuple[str, ...]] = ()

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the files into memory, and so shares them with all other processes.
        return self.__dict__ | ({"table": None, "unreadable": ()} if self.files else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.files:
            self.__dict__["table"] = mapped.joined(self.files)

    @classmethod
    def folders(cls, fields: Mapping[str, Any]) -> list[str]:
        """The media folders that `fields` name, whose files are split by vaejax.data.split."""
        return []

    @classmethod
    def open(
        cls,
        label: str,
        weight: float,
        fields: Mapping[str, Any],
        data: "DataConfig",
        key: str,
        split: "Split",
    ) -> Self:
        """Opens the source that `fields` describe.

        Args:
          label: name of the source in the configuration.
          weight: relative share of the samples.
          fields: {key: value}, with keys from `FIELDS`.
          data: config.data.
          key: configuration key for error messages, such as data.media or data.sources.LABEL.path.
          split: the split of the run's media, to which this source adds its own files.

        Raises:
          InputError: if the fields are invalid or nothing can be read.
        """
        raise NotImplementedError

    def record(self, index: int) -> Record:
        """The record in row `index` of the table."""
        return Record(*(column[index].as_py() for column in self.table.columns))

    def fetch(self, record: Record) -> Content:
        """The content of a record's file."""
        return record.path

    def read(
        self, record: Record, frames: int, fps: float, crop: Crop, moment: float
    ) -> tuple[np.ndarray, float]:
        """Reads a sample from a record.

        Args:
          record: a photo or a span of a clip.
          frames: number of frames T of the sample; 1 for an image.
          fps: frame rate of the sample.
          crop: size H x W of the sample and its position in the picture.
          moment: position of the sample in the clip's span, from 0 (earliest) to 1 (latest).

        Returns:
          The frames, uint8 (T, H, W, C), and the time of the first one, in seconds after the file's first
          frame.

        Raises:
          media.Unreadable: if the file is missing, cannot be decoded or does not fit the crop.
          Unfit: if the size or length of the record was unknown and turns out too small.
        """
        start = record.start + moment * max(0.0, record.stop - record.start - (frames - 1) / fps)
        pictures = media.read(
            self.fetch(record),
            record.kind,
            frames=frames,
            fps=None if frames == 1 else fps,
            start=start,
            **crop._asdict(),
        )
        return pictures, start


def fitting(source: Source, bucket: Bucket, split: str, data: "DataConfig") -> np.ndarray:
    """Whether each table row of `split` ('train' or 'eval') fits a bucket, bool (n,).

    A record fits if covering the bucket's H x W enlarges it by at most data.max_upscale, or if its size is
    unknown. Its quality estimate, if any, must reach data.min_quality. It must not be HDR if data.hdr is
    'skip'. For a video bucket its span must also be long enough and its frame rate at least MIN_FPS_RATIO
    times data.fps. An image bucket takes photos and one-frame videos. It takes no frames of longer clips:
    they have blur and compression artifacts, and a clip would count for both kinds of bucket.
    """
    pieces = source.table.to_batches(max_chunksize=_PIECE)  # the table may be larger than the memory
    fits = [_fits(source, piece, bucket, split, data) for piece in pieces]
    return np.concatenate([np.zeros(0, bool), *fits])


def _fits(source: Source, rows: pa.RecordBatch, bucket: Bucket, split: str, data: "DataConfig") -> np.ndarray:
    """See `fitting`; for some rows of the table."""
    c = {name: rows[name].to_numpy(zero_copy_only=False) for name in _NUMBERS}
    fits = c["held_out"] == (split == "eval")
    if split == "train" and source.cache:
        fits &= source.cache.fits(c, rows["path"].to_pylist(), bucket)
    fits &= (c["width"] == 0) | covers(bucket.height, bucket.width, c["height"], c["width"], data.max_upscale)
    fits &= np.isnan(c["quality"]) | (c["quality"] >= data.min_quality)
    if data.hdr == "skip":
        fits &= ~c["hdr"]
    still = c["frames"] == 1
    if bucket.kind == "image":
        return fits & still
    fits &= ~still & (span_seconds(c) > sample_seconds(bucket, data.fps) + TIME_MARGIN)
    return fits & (c["fps"] >= MIN_FPS_RATIO * data.fps)


def candidates(source: Source, bucket: Bucket, split: str, data: "DataConfig") -> np.ndarray:
    """The table rows of `split` that fit a bucket, int64 (n,); see `fitting`."""
    return np.flatnonzero(fitting(source, bucket, split, data))


def file_numbers(table: pa.Table) -> np.ndarray:
    """The number of the file of each row, counted from 0, int32 (n,). Rows of a file follow each other."""
    # Only the paths of possibly later spans are compared, because paths are most of the table. Such a span
    # starts after the beginning of its clip, unless the clip has become too short.
    later = [np.zeros(0, bool)]
    for piece in table.select(["start", "stop", "frames"]).to_batches(max_chunksize=_PIECE):
        start, stop, frames = (piece[name].to_numpy() for name in ("start", "stop", "frames"))
        later.append((start > 0) | ((stop == 0) & (frames != 1)))
    rows = np.flatnonzero(np.concatenate(later)[1:]) + 1
    path, before = (mapped.taken(table["path"], numbers) for numbers in (rows, rows - 1))
    same = pc.equal(path, before).to_numpy()
    new = np.ones(len(table), bool)
    new[rows[same]] = False
    return np.cumsum(new, dtype=np.int32) - np.int32(1)


def marked(length: int, numbers: np.ndarray) -> np.ndarray:
    """Whether each number below `length` is among `numbers`, bool (length,)."""
    marks = np.zeros(length, bool)
    marks[numbers] = True
    return marks


def columns(sources: Sequence[Source]) -> dict[str, np.ndarray]:
    """The numeric columns of the sources' tables, each concatenated over all sources."""
    return {name: np.concatenate([s.table[name].to_numpy() for s in sources]) for name in _NUMBERS}


def sample_seconds(bucket: Bucket, fps: float) -> float:
    """The seconds from the first frame of a sample to its last."""
    return (bucket.frames - 1) / fps


def span_seconds(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """The durations of spans of clips, in seconds, including the display time of the last frame."""
    return columns["stop"] - columns["start"] + 1 / np.maximum(columns["fps"], 1e-6)


def unmeasured(name: str, shard: str, kind: str, held_out: np.ndarray, seconds: float = math.inf) -> pa.Table:
    """A table of records NAME/0, NAME/1, ... of unknown size, which fit every bucket of their kind.

    Args:
      name: name of the records in messages, and in whatever orders them.
      shard: name of their shard.
      kind: 'image' or 'video'.
      held_out: bool (n,), whether each record is held out.
      seconds: duration of a clip; infinite if unknown.
    """
    image, count = kind == "image", len(held_out)
    constant = {
        "kind": kind,
        "width": 0,
        "height": 0,
        "frames": int(image),
        "fps": 0.0 if image else np.inf,
        "quality": np.nan,
        "hdr": False,
        "start": 0.0,
        "stop": 0.0 if image else seconds,
        "shard": shard,
        "length": 0,
    }
    columns = {
        field: pa.repeat(pa.scalar(value, SCHEMA.field(field).type), count)
        for field, value in constant.items()
    }
    columns |= {"held_out": pa.array(held_out), "position": pa.array(np.arange(count))}
    names = pa.array([f"{name}/{i}" for i in range(count)], pa.string())
    columns |= {"path": names, "relative_path": names}
    return pa.table([columns[field] for field in SCHEMA.names], SCHEMA)


def describe_held_out(table: pa.Table) -> str:
    """The held-out files of a table in words: '2 photos, the last fifth of 3 clips'."""
    files, held_out = file_numbers(table), table["held_out"].to_numpy()
    still = table["frames"].to_numpy() == 1
    photos, clips, trained = (
        marked(len(table), files[rows]) for rows in (held_out & still, held_out & ~still, ~held_out)
    )
    parts = [count_of(int(photos.sum()), "photo")] if photos.any() else []
    if clips.any():
        part = "the last fifth of " if (clips & trained).any() else ""
        parts.append(f"{part}{count_of(int(clips.sum()), 'clip')}")
    return ", ".join(parts) or "nothing"


def count_of(number: int, noun: str) -> str:
    """A number and its noun: '1 photo', '2 photos'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
