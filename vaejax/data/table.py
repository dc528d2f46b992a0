"""The table of a data source: its photos and spans of clips, their split, and the buckets they fit."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from vaejax.data import media
from vaejax.data.bucket import Bucket
from vaejax.data.crop import Crop, covers

if TYPE_CHECKING:
    from vaejax.config.schema import DataConfig

MANY_CLIPS = 10  # with at least this many clips, whole clips are held out; with fewer, the end of each
HELD_OUT_TAIL = 0.2  # with fewer than MANY_CLIPS clips, this last fraction of each clip is held out
# Lowest frame rate of a clip, relative to data.fps: at data.fps = 48, a film at 24 fps is still used. A clip
# with a lower frame rate would repeat its frames too often.
MIN_FPS_RATIO = 0.5

SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "kind": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "frames": pa.int32(),
        "fps": pa.float64(),
        "quality": pa.float32(),
        "start": pa.float64(),
        "stop": pa.float64(),
        "held_out": pa.bool_(),
        "shard": pa.string(),
        "position": pa.int64(),
    }
)
_NUMBERS = ("width", "height", "frames", "fps", "quality", "start", "stop", "held_out")

# The columns of a media index that `from_index` needs.
INDEX_COLUMNS = pa.schema(
    {
        "path": pa.string(),
        "kind": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "frames": pa.int32(),
        "fps": pa.float64(),
        "duration": pa.float64(),
        "quality": pa.float32(),
        "error": pa.string(),
    }
)


@dataclass(frozen=True)
class Record:
    """A photo, or a span of a clip: one row of a source's table.

    Attributes:
      path: path of the file; for a TFDS record, a name for messages.
      kind: 'image' or 'video'.
      width: displayed width in pixels; 0 if unknown until the file is read.
      height: displayed height in pixels; 0 if unknown until the file is read.
      frames: number of frames of the whole file; 0 if unknown until it is read.
      fps: frame rate of the file; 0 for a photo, infinite if unknown.
      quality: estimated JPEG quality, 1 to 100; NaN if unknown.
      start: start of the span, in seconds after the file's first frame.
      stop: time of the span's last frame, in seconds after the file's first frame; infinite if unknown.
      held_out: whether the record is held out for evaluation.
      shard: name of the shard that contains the file, or of the TFDS split; '' for a file in a folder.
      position: index of the record in the shard or split; -1 for a file in a folder.
    """

    path: str
    kind: str
    width: int
    height: int
    frames: int
    fps: float
    quality: float
    start: float
    stop: float
    held_out: bool
    shard: str
    position: int


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
    """

    label: str
    weight: float
    table: pa.Table
    unreadable: tuple[tuple[str, str], ...] = ()
    # Fields of the configuration that this kind of source accepts in addition to kind and weight.
    FIELDS: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def open(cls, label: str, weight: float, fields: Mapping[str, Any], data: "DataConfig", key: str) -> Self:
        """Opens the source that `fields` describe.

        Args:
          label: name of the source in the configuration.
          weight: relative share of the samples.
          fields: {key: value}, with keys from `FIELDS`.
          data: config.data.
          key: configuration key for error messages, such as data.media or data.sources.LABEL.path.

        Raises:
          InputError: if the fields are invalid or nothing can be read.
        """
        raise NotImplementedError

    def record(self, index: int) -> Record:
        """The record in row `index` of the table."""
        return Record(*(column[index].as_py() for column in self.table.columns))

    def fetch(self, record: Record) -> str | bytes:
        """The path of a record's file, or its bytes."""
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


def candidates(source: Source, bucket: Bucket, split: str, data: "DataConfig") -> np.ndarray:
    """The table rows of `split` ('train' or 'eval') that fit a bucket, int64 (n,).

    A record fits if covering the bucket's H x W enlarges it by at most data.max_upscale, or if its size is
    unknown. Its quality estimate, if any, must reach data.min_quality. For a video bucket its span must also
    be long enough and its frame rate at least MIN_FPS_RATIO times data.fps. An image bucket takes photos and
    one-frame videos. It takes no frames of longer clips: they have blur and compression artifacts, and a clip
    would count for both kinds of bucket.
    """
    c = columns([source])
    fits = c["held_out"] == (split == "eval")
    fits &= (c["width"] == 0) | covers(bucket.height, bucket.width, c["height"], c["width"], data.max_upscale)
    fits &= np.isnan(c["quality"]) | (c["quality"] >= data.min_quality)
    still = c["frames"] == 1
    if bucket.kind == "image":
        fits &= still
    else:
        # The span must be 2 ms longer than a sample, because timestamps are rounded by up to that much.
        fits &= ~still & (span_seconds(c) > sample_seconds(bucket, data.fps) + 2e-3)
        fits &= c["fps"] >= MIN_FPS_RATIO * data.fps
    return np.flatnonzero(fits)


def columns(sources: Sequence[Source]) -> dict[str, np.ndarray]:
    """The numeric columns of the sources' tables, each concatenated over all sources."""
    return {name: np.concatenate([s.table[name].to_numpy() for s in sources]) for name in _NUMBERS}


def sample_seconds(bucket: Bucket, fps: float) -> float:
    """The seconds from the first frame of a sample to its last."""
    return (bucket.frames - 1) / fps


def span_seconds(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """The durations of spans of clips, in seconds, including the display time of the last frame."""
    return columns["stop"] - columns["start"] + 1 / np.maximum(columns["fps"], 1e-6)


def path_hash(path: str) -> float:
    """A hash of a path, as a number in [0, 1)."""
    digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def held_out(paths: Iterable[str], holdout: float) -> set[str]:
    """The held-out paths: those with a hash below `holdout`, but never all paths.

    If `holdout` is above 0 and there are several paths, at least one is held out. Choosing by hash keeps
    files in their split as a folder grows, except while it has very few files.
    """
    ordered = sorted(paths, key=path_hash)
    count = sum(path_hash(path) < holdout for path in ordered)
    count = min(max(count, int(holdout > 0)), max(0, len(ordered) - 1))
    return set(ordered[:count])


def from_index(index: pa.Table, holdout: float, folder: str = "", everything: str = "") -> pa.Table:
    """The table of a media index's readable files, split into training and evaluation.

    If there are at least MANY_CLIPS clips, whole clips are held out. With fewer, the last fifth of each clip
    is held out, and the rest is for training, except for a gap of one frame period.

    Args:
      index: a table with INDEX_COLUMNS; also 'shard' and 'record' if the files are in shards.
      holdout: held-out fraction of the photos, and of at least MANY_CLIPS clips; 0 holds out nothing.
      folder: prefix of the paths in the result.
      everything: 'train' or 'eval' assigns all files to that split; '' splits them by `holdout`.
    """
    index = index.filter(index["error"].is_null()).sort_by("path")
    files = index.to_pylist()
    clips = [f["path"] for f in files if f["frames"] > 1]
    kept = held_out((f["path"] for f in files if f["frames"] <= 1), holdout)
    cut = 0 < len(clips) < MANY_CLIPS and holdout > 0
    if not cut:
        kept |= held_out(clips, holdout)
    if everything:
        cut, kept = False, set() if everything == "train" else {f["path"] for f in files}
    return pa.Table.from_pylist(
        [row for file in files for row in _rows(file, folder, cut, file["path"] in kept)], SCHEMA
    )


def _rows(file: dict[str, Any], folder: str, cut: bool, held_out: bool) -> list[dict[str, Any]]:
    """The table rows of a file: a training span and a held-out span if clips are `cut`, otherwise one row."""
    fps = file["fps"] or 0.0
    quality = file.get("quality")
    row = {
        "path": os.path.join(folder, file["path"]),
        "kind": file["kind"],
        "width": file["width"],
        "height": file["height"],
        "frames": max(1, file["frames"]),
        "fps": fps,
        "quality": float("nan") if quality is None else quality,
        "start": 0.0,
        "stop": 0.0,
        "held_out": held_out,
        "shard": file.get("shard") or "",
        "position": -1 if file.get("record") is None else file["record"],
    }
    if file["frames"] <= 1 or not fps:
        return [row]
    frame = 1 / fps
    row["stop"] = max(0.0, file["duration"] - frame)
    if not cut:
        return [row]
    # The last frame of a span appears at its `stop` and is shown for one period. Subtracting two periods
    # therefore leaves a gap of one period between the spans.
    seam = (1 - HELD_OUT_TAIL) * file["duration"]
    return [
        row | {"stop": max(0.0, seam - 2 * frame), "held_out": False},
        row | {"start": min(seam, row["stop"]), "held_out": True},
    ]


def describe_held_out(table: pa.Table) -> str:
    """The held-out files of a table in words: '2 photos, the last fifth of 3 clips'."""
    rows = table.select(["path", "frames", "held_out"]).to_pylist()
    photos = {row["path"] for row in rows if row["held_out"] and row["frames"] == 1}
    clips = {row["path"] for row in rows if row["held_out"] and row["frames"] != 1}
    trained = {row["path"] for row in rows if not row["held_out"]}
    parts = [count_of(len(photos), "photo")] if photos else []
    if clips:
        parts.append(f"{'the last fifth of ' if clips & trained else ''}{count_of(len(clips), 'clip')}")
    return ", ".join(parts) or "nothing"


def count_of(number: int, noun: str) -> str:
    """A number and its noun: '1 photo', '2 photos'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
