"""Sources: where samples come from, opened from the configuration."""

import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from vaejax.data import index
from vaejax.data import table as rows
from vaejax.data.array_record import ArrayRecordSource
from vaejax.data.bucket import Bucket
from vaejax.data.demo import DemoSource
from vaejax.data.table import SCHEMA, Source, candidates, length
from vaejax.data.tfds import TfdsSource
from vaejax.errors import InputError


class MediaSource(Source):
    """Folder trees of photos and clips, read through their indices; see vaejax.data.index."""

    FIELDS: ClassVar[tuple[str, ...]] = ("path",)

    @classmethod
    def open(cls, label: str, weight: float, fields: Mapping[str, Any], data: Any, key: str) -> "MediaSource":
        """Opens `path`, FOLDER[,FOLDER], as one source: every file counts once, whatever its folder."""
        folders = [folder.strip() for folder in str(fields.get("path", "")).split(",") if folder.strip()]
        if not folders:
            raise InputError(
                f"{key} = {fields.get('path', '')!r}; accepted: FOLDER[,FOLDER] of photos and clips"
            )
        tables, bad = [], []
        for folder in map(os.path.expanduser, folders):
            if not os.path.isdir(folder):
                raise InputError(f"{key} = {folder}: no such folder; accepted: a folder of photos and clips")
            try:
                table = index.load_or_build(folder)
            except InputError as error:  # which speaks of data.media
                raise InputError(str(error).replace("data.media", key, 1)) from None
            broken = [
                (f["path"], f["error"]) for f in table.select(["path", "error"]).to_pylist() if f["error"]
            ]
            bad += [(os.path.join(folder, path), reason) for path, reason in broken]
            tables.append(rows.from_index(table, data.holdout, folder))
            if not len(tables[-1]):
                found = (
                    f"none of its {len(broken)} photos and clips can be read" if broken else "it holds none"
                )
                raise InputError(f"{key} = {folder}: {found}; accepted: a folder of photos and clips")
        return cls(label, weight, pa.concat_tables(tables).combine_chunks(), tuple(bad))


KINDS: Mapping[str, type[Source]] = {
    "media": MediaSource,
    "tfds": TfdsSource,
    "array_record": ArrayRecordSource,
    "demo": DemoSource,
}


def open_sources(data: Any) -> tuple[Source, ...]:
    """The sources of config.data in the order of their labels; data.media takes the place of data.sources.

    Args:
      data: config.data.

    Raises:
      InputError: naming the key, its value and what is accepted.
    """
    if data.media:
        return (MediaSource.open("media", 1.0, {"path": data.media}, data, "data.media"),)
    if not data.sources:
        raise InputError(
            "data.sources is empty; accepted: --config.data.media=FOLDER of photos and clips, or"
            f" {{label: {{kind: {' | '.join(KINDS)}, ...}}}}"
        )
    sources = tuple(_open(label, data.sources[label], data) for label in sorted(data.sources))
    sources = tuple(source for source in sources if source)
    if not sources:
        raise InputError("data.sources: every weight is 0 (off); accepted: at least one weight above 0")
    return sources


def _open(label: str, fields: Any, data: Any) -> Source | None:
    key = f"data.sources.{label}"
    if not hasattr(fields, "items"):
        raise InputError(f"{key} = {fields!r}; accepted: {{kind: {' | '.join(KINDS)}, ...}}")
    fields = dict(fields.items())
    kind, weight = fields.pop("kind", None), fields.pop("weight", 1.0)
    if kind not in KINDS:
        raise InputError(f"{key}.kind = {kind!r}; accepted: {', '.join(KINDS)}")
    for field in fields:
        if field not in KINDS[kind].FIELDS:
            accepted = ", ".join(("kind", "weight", *KINDS[kind].FIELDS))
            raise InputError(f"{key}.{field}: no such field of a {kind} source; accepted: {accepted}")
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight < 0:
        raise InputError(f"{key}.weight = {weight!r}; accepted: a finite number from 0 (off)")
    if not weight:
        return None
    if "path" in KINDS[kind].FIELDS:
        key += ".path"
    return KINDS[kind].open(label, float(weight), fields, data, key)


def digest(sources: Sequence[Source]) -> int:
    """A number that is another where the rows are others."""
    found = 0
    for source in sources:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, source.table.schema) as stream:
            stream.write_table(source.table.combine_chunks())
        found = zlib.crc32(sink.getvalue(), found)
    return found


def check_buckets(sources: Sequence[Source], buckets: Sequence[Bucket], data: Any) -> None:
    """Raises InputError at a bucket that no training sample fits."""
    for bucket in buckets:
        if not _fits(sources, bucket, "train", data):
            raise InputError(nothing_fits(sources, bucket, "train", data))


def not_evaluated(sources: Sequence[Source], buckets: Sequence[Bucket], data: Any) -> Iterator[str]:
    """A line for every bucket that no held-out sample fits."""
    for bucket in buckets:
        if not _fits(sources, bucket, "eval", data):
            yield nothing_fits(sources, bucket, "eval", data) + "; it is not evaluated"


def _fits(sources: Sequence[Source], bucket: Bucket, split: str, data: Any) -> bool:
    return any(len(candidates(source, bucket, split, data)) for source in sources)


def nothing_fits(sources: Sequence[Source], bucket: Bucket, split: str, data: Any) -> str:
    """One line that says what a bucket needs, what there is, and what to change."""
    c = {
        name: np.concatenate([s.table[name].to_numpy() for s in sources])
        for name in SCHEMA.names
        if name not in ("path", "shard", "record")
    }
    noun = {"image": "photos", "video": "clips"}[bucket.kind]
    kept = (c["held_out"] == (split == "eval")) & ((c["frames"] == 1) == (bucket.kind == "image"))
    start = f"data.buckets.{bucket.name}: no {'held-out' if split == 'eval' else 'training'} sample fits; "
    if not kept.any():
        more = " (and data.holdout above 0)" if split == "eval" else ", or a batch of 0"
        return f"{start}there are no {noun}; accepted: a source with {noun}{more}"
    large = np.flatnonzero(kept)[np.argmax((c["width"] * c["height"])[kept])]
    found = f"of {kept.sum()} {'held-out parts of ' * (split == 'eval')}{noun}"
    found += f" the largest is {c['height'][large]}x{c['width'][large]} (HxW)"
    change = f"a smaller size, data.max_upscale above {data.max_upscale:g}"
    if bucket.kind == "video":
        seconds = rows.shown(c)[kept].max()
        found += f", the longest {seconds:.2f} s ({length(bucket, data):.2f} s are needed)"
        found += f", the fastest {c['fps'][kept].max():.4g} fps (accepted from {rows.SLOWEST * data.fps:.4g})"
        change += ", fewer frames, another data.fps"
    if data.min_quality:
        graded = kept & ~np.isnan(c["quality"])
        found += f", the best JPEG quality {c['quality'][graded].max():.0f}" if graded.any() else ""
        change += f", data.min_quality below {data.min_quality}"
    return f"{start}{found}; accepted: {change}"
