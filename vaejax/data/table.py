"""Rows: what a source holds, which of it is kept for evaluation, and which of it fits a bucket."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vaejax.data import media
from vaejax.data.bucket import Bucket

MANY_CLIPS = 10  # from here on clips are held out by file; fewer are each cut in time
HELD_OUT_TIME = 0.2  # the last part of each of a few clips
SLOWEST = (
    0.5  # of data.fps: 24 fps film may train at 30 or 48, a slide show of 5 fps would only repeat frames
)

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
        "record": pa.int64(),
    }
)

# What `from_index` needs of an index of media files, whoever made it.
INDEX = pa.schema(
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
class Row:
    """A photo, or a span of a clip.

    Attributes:
      path: the name that people are shown.
      kind: 'image' or 'video'.
      width: in pixels, as displayed; 0 where it is unknown until it is read.
      height: likewise.
      frames: of the whole file.
      fps: of the file; 0 for a photo.
      quality: JPEG quality estimate, 1 to 100, or NaN.
      start: of the span, in seconds.
      stop: the time of the span's last frame, in seconds.
      held_out: kept for evaluation.
      shard: file that holds the record, where the source has shards.
      record: its place there.
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
    record: int


class Unfit(Exception):
    """A sample whose size was not known before it was read does not fit the bucket."""


@dataclass(frozen=True)
class Crop:
    """Where a sample is cut, whatever its size: every number is drawn before the file is known.

    Attributes:
      position: of the clip's first frame within the room that the span leaves, from 0 to 1.
      zoom: times the scale that just covers the bucket, from 1.
      offset: (y, x) of the crop within the room that the scaled frame leaves, from 0 to 1.
    """

    position: float = 0.5
    zoom: float = 1.0
    offset: tuple[float, float] = (0.5, 0.5)


@dataclass(frozen=True, eq=False)
class Source:
    """Rows with a weight, and the way to their bytes; picklable, since it goes to worker processes.

    Attributes:
      label: its name in the configuration.
      weight: its share of samples is its weight over the sum of the weights.
      table: of `Row`s, by SCHEMA.
      bad: (path, reason) of each file that could not be read when the source was opened.
    """

    label: str
    weight: float
    table: pa.Table
    bad: tuple[tuple[str, str], ...] = ()
    # Fields that this kind of source takes beside kind and weight.
    FIELDS: ClassVar[tuple[str, ...]] = ()

    def row(self, index: int) -> Row:
        """The row at `index` of the table."""
        return Row(*(column[index].as_py() for column in self.table.columns))

    def fetch(self, row: Row) -> str | bytes:
        """The path of a media file, or its bytes."""
        return row.path

    def read(self, row: Row, bucket: Bucket, data: Any, crop: Crop) -> tuple[np.ndarray, float]:
        """The sample as uint8 (T, H, W, C), and the second at which it starts.

        Raises:
          media.Unreadable: if the file cannot be decoded.
          Unfit: if its size was unknown and does not do.
          OSError: if the file is not there.
        """
        start = row.start + crop.position * max(0.0, row.stop - row.start - length(bucket, data))
        frames = media.read(
            self.fetch(row),
            row.kind,
            frames=bucket.frames,
            height=bucket.height,
            width=bucket.width,
            fps=None if bucket.frames == 1 else data.fps,
            start=start,
            zoom=crop.zoom,
            offset=crop.offset,
            max_upscale=data.max_upscale,
        )
        return frames, start


def length(bucket: Bucket, data: Any) -> float:
    """Seconds from the first frame of a sample to its last."""
    return (bucket.frames - 1) / data.fps


def scale(bucket: Bucket, width, height):
    """The scale at which a frame just covers the bucket."""
    return np.maximum(bucket.height / np.maximum(height, 1), bucket.width / np.maximum(width, 1))


def candidates(source: Source, bucket: Bucket, split: str, data: Any) -> np.ndarray:
    """Indices of the rows of `split` ('train' or 'eval') that fit the bucket, int64.

    A row fits if covering the bucket enlarges it by at most data.max_upscale, its quality estimate (where
    there is one) reaches data.min_quality, and for a video bucket its span is long enough and the clip has
    at least half of data.fps. Images are photos or videos of one frame, never frames of clips: those would
    teach the image path blur and compression, and count a clip twice.
    """
    c = {
        name: source.table[name].to_numpy()
        for name in SCHEMA.names
        if name not in ("path", "shard", "record")
    }
    fits = c["held_out"] == (split == "eval")
    fits &= (c["width"] == 0) | (scale(bucket, c["width"], c["height"]) <= data.max_upscale * (1 + 1e-6))
    fits &= np.isnan(c["quality"]) | (c["quality"] >= data.min_quality)
    still = c["frames"] == 1
    if bucket.kind == "image":
        fits &= still
    else:
        fits &= ~still & (shown(c) > length(bucket, data) + 2e-3)  # 2 ms cover the rounding of timestamps
        fits &= c["fps"] >= SLOWEST * data.fps
    return np.flatnonzero(fits)


def shown(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Seconds of the clips' spans: the last frame is shown for its own time."""
    return columns["stop"] - columns["start"] + 1 / np.maximum(columns["fps"], 1e-6)


def share(path: str) -> float:
    """A number in [0, 1) that depends on nothing but the path."""
    return (
        int.from_bytes(hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest())
        / 2**64
    )


def held_out(paths: Iterable[str], holdout: float) -> set[str]:
    """The paths kept for evaluation: those whose `share` is below `holdout`, at least one of two, never all.

    By hash, so that a growing folder moves no file from one side to the other.
    """
    paths = sorted(paths, key=share)
    count = sum(share(path) < holdout for path in paths)
    count = min(max(count, int(holdout > 0)), max(0, len(paths) - 1))
    return set(paths[:count])


def from_index(index: pa.Table, holdout: float, folder: str = "", everything: str = "") -> pa.Table:
    """The rows of an index of media files: photos and clips, split into training and evaluation.

    With MANY_CLIPS clips or more some are held out whole; of fewer, the last fifth of each is held out and
    the rest trains.

    Args:
      index: the columns of INDEX, paths relative; and shard and record where there are shards.
      holdout: share of the files; 0 holds out nothing.
      folder: joined to the paths that people are shown.
      everything: 'train' or 'eval' puts all rows on one side; '' splits them.
    """
    index = index.filter(pc.is_null(index["error"])).sort_by("path")
    files = index.to_pylist()
    clips = [f["path"] for f in files if f["frames"] > 1]
    out = held_out((f["path"] for f in files if f["frames"] <= 1), holdout)
    cut = 0 < len(clips) < MANY_CLIPS and holdout > 0
    if not cut:
        out |= held_out(clips, holdout)
    if everything:
        cut, out = False, set() if everything == "train" else {f["path"] for f in files}
    return pa.Table.from_pylist(
        [row for file in files for row in _rows(file, folder, cut, file["path"] in out)], SCHEMA
    )


def _rows(file: dict[str, Any], folder: str, cut: bool, out: bool) -> list[dict[str, Any]]:
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
        "held_out": out,
        "shard": file.get("shard") or "",
        "record": -1 if file.get("record") is None else file["record"],
    }
    if file["frames"] <= 1 or not fps:
        return [row]
    frame = 1 / fps
    row["stop"] = max(0.0, file["duration"] - frame)
    if not cut:
        return [row]
    # A frame is shown until the next: training ends a whole frame before evaluation begins.
    seam = (1 - HELD_OUT_TIME) * file["duration"]
    return [
        row | {"stop": max(0.0, seam - 2 * frame), "held_out": False},
        row | {"start": min(seam, row["stop"]), "held_out": True},
    ]
