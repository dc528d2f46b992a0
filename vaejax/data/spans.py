"""The table of a source from the rows of a media index: photos, spans of clips, and scenes."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from vaejax.data.cuts import scenes
from vaejax.data.table import SCHEMA, TIME_MARGIN
from vaejax.runtime import storage

pc: Any = pyarrow.compute  # its functions are made at import

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
USED = tuple(dict.fromkeys([*INDEX_COLUMNS.names, *_OPTIONAL.names]))


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
    if len(rows) > len(files) or cuts:
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
