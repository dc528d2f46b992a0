"""The table of a data source: its photos and spans of clips, and the buckets they fit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute

from vaejax.data import media
from vaejax.data.bucket import Bucket
from vaejax.data.crop import Crop, covers
from vaejax.data.cuts import scenes
from vaejax.data.latent_cache import LatentCache
from vaejax.runtime import storage
from vaejax.runtime.content import Content

if TYPE_CHECKING:
    from vaejax.config.schema import DataConfig
    from vaejax.data.split import Split

# Lowest frame rate of a clip, relative to data.fps: at data.fps = 48, a film at 24 fps is still used. A clip
# with a lower frame rate would repeat its frames too often.
MIN_FPS_RATIO = 0.5
# Seconds. A span must be this much longer than a sample, because timestamps are rounded by up to that much.
TIME_MARGIN = 2e-3

pc: Any = pyarrow.compute  # its functions are made at import
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
_NUMBERS = ("width", "height", "frames", "fps", "quality", "hdr", "start", "stop", "held_out")

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
        "hdr": pa.bool_(),  # missing in array_record shards of earlier versions
        "error": pa.string(),
        "cuts": pa.list_(pa.float64()),  # as is this
    }
)


# Those that it can use besides: indices of loose files, or of earlier versions, lack some of them.
_OPTIONAL = pa.schema(
    {
        "quality": pa.float32(),
        "hdr": pa.bool_(),
        "name": pa.string(),
        "shard": pa.string(),
        "position": pa.int64(),
        "length": pa.int64(),
        "cuts": pa.list_(pa.float64()),
    }
)


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
    """

    label: str
    weight: float
    table: pa.Table
    unreadable: tuple[tuple[str, str], ...] = ()
    cache: LatentCache | None = field(default=None, kw_only=True)
    # Fields of the configuration that this kind of source accepts in addition to kind and weight.
    FIELDS: ClassVar[tuple[str, ...]] = ()

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


def candidates(source: Source, bucket: Bucket, split: str, data: "DataConfig") -> np.ndarray:
    """The table rows of `split` ('train' or 'eval') that fit a bucket, int64 (n,).

    A record fits if covering the bucket's H x W enlarges it by at most data.max_upscale, or if its size is
    unknown. Its quality estimate, if any, must reach data.min_quality. It must not be HDR if data.hdr is
    'skip'. For a video bucket its span must also be long enough and its frame rate at least MIN_FPS_RATIO
    times data.fps. An image bucket takes photos and one-frame videos. It takes no frames of longer clips:
    they have blur and compression artifacts, and a clip would count for both kinds of bucket.
    """
    c = columns([source])
    fits = c["held_out"] == (split == "eval")
    if split == "train" and source.cache:
        fits &= source.cache.fits(c, source.table["path"].to_pylist(), bucket)
    fits &= (c["width"] == 0) | covers(bucket.height, bucket.width, c["height"], c["width"], data.max_upscale)
    fits &= np.isnan(c["quality"]) | (c["quality"] >= data.min_quality)
    if data.hdr == "skip":
        fits &= ~c["hdr"]
    still = c["frames"] == 1
    if bucket.kind == "image":
        fits &= still
    else:
        fits &= ~still & (span_seconds(c) > sample_seconds(bucket, data.fps) + TIME_MARGIN)
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


def from_index(index: pa.Table, seams: np.ndarray, folder: str = "", cuts: bool = False) -> pa.Table:
    """The table of the readable files of a media index that a split contains, sorted by name.

    A clip that is held out from a time after its start has two rows: a training span, and a held-out span
    after a gap of one frame period. If `cuts` is set, each scene of a span has a row of its own.

    Args:
      index: a table with INDEX_COLUMNS; also 'name', 'shard', 'position' and 'length' if the files are in
        shards.
      seams: time in seconds from which each file is held out, float64 (n,); NaN for files that the split does
        not contain. See `vaejax.data.split.seams`.
      folder: the folder to which the paths of `index` are relative.
      cuts: whether to divide clips at the cuts in the index, if they are known.
    """
    for column in _OPTIONAL:
        if column.name not in index.column_names:
            index = index.append_column(column, pa.nulls(len(index), column.type))
    index = index.append_column("seam", pa.array(seams))
    index = index.set_column(
        index.schema.get_field_index("name"), "name", pc.coalesce(index["name"], index["path"])
    )
    kept = pc.and_(pc.is_null(index["error"]), pc.invert(pc.is_nan(index["seam"])))
    files = index.filter(kept).sort_by([("name", "ascending"), ("path", "ascending")])

    rows, start, stop, held_out = _spans(files)
    if cuts:
        rows, start, stop, held_out = _scenes(files, rows, start, stop, held_out)
    files = files.take(pa.array(rows))
    columns = {
        "path": _placed(folder, files["path"]),
        "relative_path": files["name"],
        "kind": files["kind"],
        "width": files["width"],
        "height": files["height"],
        "frames": pc.max_element_wise(files["frames"], 1),
        "fps": pc.fill_null(files["fps"], 0.0),
        "quality": pc.fill_null(files["quality"].cast(pa.float32()), math.nan),
        "hdr": pc.fill_null(files["hdr"], False),
        "start": start,
        "stop": stop,
        "held_out": held_out,
        "shard": _placed(folder, pc.fill_null(files["shard"], "")),
        "position": pc.fill_null(files["position"], -1),
        "length": pc.fill_null(files["length"], 0),
    }
    return pa.table([columns[name] for name in SCHEMA.names], SCHEMA)


def _placed(folder: str, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Paths in a folder as absolute paths or URLs; those that are absolute or empty stay."""
    absolute = pc.match_substring_regex(paths, r"^$|^/|^[a-z0-9]+://")
    return pc.if_else(absolute, paths, pc.binary_join_element_wise(storage.join(folder, "x")[:-1], paths, ""))


def _spans(files: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The spans of files: the file's row, start, stop and whether it is held out, each (n,)."""
    frames, fps, duration, seam = (
        pc.fill_null(files[name], 0).to_numpy() for name in ("frames", "fps", "duration", "seam")
    )
    clip = (frames > 1) & (fps > 0)
    period = 1 / np.where(clip, fps, 1.0)
    last = np.where(clip, np.maximum(0.0, duration - period), 0.0)
    divided = clip & (seam > 0) & np.isfinite(seam)
    rows = np.repeat(np.arange(len(files)), 1 + divided)
    second = np.zeros(len(rows), bool)
    second[1:] = rows[1:] == rows[:-1]
    period, last, divided, seam = period[rows], last[rows], divided[rows], seam[rows]
    # The last frame of a span appears at its `stop` and is shown for one period. Subtracting two periods
    # therefore leaves a gap of one period between the spans. A clip may have become shorter than its seam.
    before = np.minimum(np.maximum(0.0, seam - 2 * period), last)
    start = np.where(second, np.minimum(seam, last), 0.0)
    stop = np.where(divided & ~second, before, last)
    return rows, start, stop, np.where(divided, second, seam <= 0)


def _scenes(files: pa.Table, rows: np.ndarray, *spans: np.ndarray) -> tuple[np.ndarray, ...]:
    """Divides spans, as `_spans` returns them, at the cuts of their clips."""
    cuts = files["cuts"].take(pa.array(rows)).to_pylist()
    fps = files["fps"].to_numpy(zero_copy_only=False)[rows]
    divided = []
    for row, rate, times, start, stop, held_out in zip(rows, fps, cuts, *spans, strict=True):
        if not times:
            divided.append((row, start, stop, held_out))
            continue
        # A sample ends at least TIME_MARGIN before the end of its span, which is the time of the cut.
        period = max(1 / rate, TIME_MARGIN)
        divided += [(row, a, b, held_out) for a, b in scenes(start, stop, times, period)]
    columns = zip(*divided, strict=True) if divided else ((), (), (), ())
    types = (np.int64, np.float64, np.float64, bool)
    return tuple(np.array(column, kind) for column, kind in zip(columns, types, strict=True))


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
