"""Opens the data sources of a configuration and checks that their samples fit the buckets."""

import json
import math
import os
import shlex
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from vaejax.data import cuts, mapped
from vaejax.data.bucket import Bucket
from vaejax.data.kinds.collection import Collection, Folder
from vaejax.data.kinds.demo import DemoSource
from vaejax.data.kinds.indexed import (
    ArrayRecordSource,
    HuggingFaceSource,
    IndexedSource,
    ManifestSource,
    MediaSource,
    ParquetSource,
    WebdatasetSource,
)
from vaejax.data.kinds.synthetic import SyntheticSource
from vaejax.data.kinds.tfds import TfdsSource
from vaejax.data.split import Split
from vaejax.data.table import (
    MIN_FPS_RATIO,
    Source,
    candidates,
    columns,
    count_of,
    file_numbers,
    fitting,
    marked,
    sample_seconds,
    span_seconds,
)
from vaejax.errors import InputError
from vaejax.runtime import storage

if TYPE_CHECKING:
    from vaejax.config.schema import DataConfig

FEW_FILES = 10  # scores on fewer held-out files than this are noisy
_NOUNS = {"image": "photo", "video": "clip"}


KINDS: Mapping[str, type[Source]] = {
    "media": MediaSource,
    "webdataset": WebdatasetSource,
    "parquet": ParquetSource,
    "manifest": ManifestSource,
    "huggingface": HuggingFaceSource,
    "array_record": ArrayRecordSource,
    "tfds": TfdsSource,
    "demo": DemoSource,
    "synthetic": SyntheticSource,
}


def is_entry(text: str) -> bool:
    """Whether an argument is an entry of data.sources as JSON, rather than a path."""
    return text.lstrip().startswith("{")


def flag(fields: Mapping[str, Any]) -> str:
    """The flag that makes vaejax.main train on one source, quoted for a shell."""
    return f"--config.data.sources={shlex.quote(json.dumps({'mine': fields}))}"


def collection_at(text: str, name: str) -> Collection:
    """The folder at a path or URL, or the collection of an entry; see `collection_of`."""
    return collection_of(text, name) if is_entry(text) else Folder(storage.located(text))


def collection_of(text: str, name: str) -> Collection:
    """The collection that an entry of data.sources describes.

    Args:
      text: the entry, as JSON.
      name: the argument with this text, and what separates them, for error messages.

    Raises:
      InputError: if it is not one collection.
    """
    accepted = '{"kind": KIND, "path": PATH, ...}, an entry of data.sources without weight and filter'
    try:
        fields = json.loads(text)
        kind = KINDS[fields.pop("kind")]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{name}{text}; accepted: {accepted}") from None
    if not issubclass(kind, IndexedSource) or not {*fields} <= {*kind.FIELDS} - {"filter"}:
        raise InputError(f"{name}{text}; accepted: {accepted}")
    collections = kind.collections(fields)
    if len(collections) != 1:
        raise InputError(f"{name}{text}: {len(collections)} collections; accepted: one")
    return collections[0]


def open_sources(data: "DataConfig", split: Split | None = None) -> tuple[Source, ...]:
    """Opens the sources of a configuration, sorted by label, except those of weight 0.

    data.media, if set, replaces data.sources. If several sources have the same file, the first one keeps it.

    Args:
      data: config.data.
      split: the run's split from `Split.read`, to which new files are added; None splits all files
        by data.holdout.

    Raises:
      InputError: if no source is left, or one is misconfigured or cannot be read.
    """
    if not data.media and not data.sources:
        raise InputError(
            "data.sources is empty; accepted: --config.data.media=FOLDER of photos and clips, or"
            f" {{label: {{kind: {' | '.join(KINDS)}, ...}}}}"
        )
    listed = [_Listed("media", "data.media", MediaSource, 1.0, {"path": data.media})]
    if not data.media:
        listed = [_checked(label, data.sources[label]) for label in sorted(data.sources)]
    listed = [source for source in listed if source.weight]
    if not listed:
        raise InputError("data.sources: every weight is 0 (off); accepted: at least one weight above 0")
    cuts.check(data.cuts, data.scan)
    split = split or Split()
    split.locate([folder for source in listed for folder in source.kind.folders(source.fields)])
    return tuple(s.kind.open(s.label, s.weight, s.fields, data, s.key, split) for s in listed)


class _Listed(NamedTuple):
    """A source of the configuration, with the arguments of `Source.open`."""

    label: str
    key: str
    kind: type[Source]
    weight: float
    fields: dict[str, Any]


def _checked(label: str, fields: Any) -> _Listed:
    """The source `data.sources.LABEL`; raises InputError if its fields are invalid."""
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
        raise InputError(f"{key}.weight = {weight!r}; accepted: a finite number, 0 (off) or more")
    if "path" in KINDS[kind].FIELDS:
        key += ".path"
    return _Listed(label, key, KINDS[kind], float(weight), fields)


def digest(sources: Sequence[Source]) -> int:
    """A checksum of the sources' tables, to compare them between processes."""
    checksum = 0
    for source in sources:
        if source.files:
            checksum = zlib.crc32(repr([*map(mapped.checksum, source.files)]).encode(), checksum)
            continue
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, source.table.schema) as stream:
            stream.write_table(source.table.combine_chunks())
        checksum = zlib.crc32(sink.getvalue(), checksum)
    return checksum


def check_buckets(sources: Sequence[Source], buckets: Sequence[Bucket], data: "DataConfig") -> None:
    """Checks that every bucket has training samples.

    Raises:
      InputError: if no training sample fits a bucket. The message names all such buckets and the flags that
        turn them off.
    """
    unfit = [bucket for bucket in buckets if not _fits(sources, bucket, "train", data)]
    if unfit:
        findings, changes = zip(*(_misfit(sources, b, "train", data) for b in unfit), strict=True)
        accepted = list(dict.fromkeys(change for of_bucket in changes for change in of_bucket))
        off = " ".join(f"--config.data.buckets.{bucket.name}.batch=0" for bucket in unfit)
        raise InputError(f"{'; '.join(findings)}; accepted: {', '.join(accepted)}, or {off}")


def nothing_fits(sources: Sequence[Source], bucket: Bucket, split: str, data: "DataConfig") -> str:
    """One line for a bucket without samples: what it needs, what the sources have, and what to change."""
    finding, changes = _misfit(sources, bucket, split, data)
    return f"{finding}; accepted: {', '.join(changes)}"


def held_out_report(sources: Sequence[Source], buckets: Sequence[Bucket], data: "DataConfig") -> list[str]:
    """Lists, in one line, the held-out files that fit a bucket; then names buckets with few files or none.

    Args:
      sources: from `open_sources`.
      buckets: from `parse_buckets`.
      data: config.data.

    Returns:
      Lines to print when a run starts. Buckets with few files get a note, buckets without files a warning.
    """
    # By kind, and by whether only the end of a clip is held out, as if there are too few for whole ones.
    counts = {(kind, cut): 0 for kind in _NOUNS for cut in (False, True)}
    names: dict[tuple[str, bool], list[str]] = {key: [] for key in counts}
    few, none = [], []
    files_of = [file_numbers(source.table) for source in sources]
    trained_of = [
        marked(len(source.table), files[~source.table["held_out"].to_numpy()])
        for source, files in zip(sources, files_of, strict=True)
    ]
    counted_of = [np.zeros(len(source.table), bool) for source in sources]
    for bucket in buckets:
        count = 0
        for source, files, trained, counted in zip(sources, files_of, trained_of, counted_of, strict=True):
            rows = candidates(source, bucket, "eval", data)
            rows = rows[np.unique(files[rows], return_index=True)[1]]  # the first of each file
            count += len(rows)
            rows = rows[~counted[files[rows]]]
            counted[files[rows]] = True
            for cut in (False, True):
                new = rows[trained[files[rows]] == cut]
                counts[bucket.kind, cut] += len(new)
                first = mapped.taken(source.table["path"], new[: 3 - len(names[bucket.kind, cut])])
                names[bucket.kind, cut] += map(os.path.basename, first.to_pylist())
        if not count:
            reason = nothing_fits(sources, bucket, "eval", data)
            none.append(f"warning: {bucket.name} is not evaluated: {reason}")
        elif count < FEW_FILES:
            few.append(f"{bucket.name} on {count_of(count, _NOUNS[bucket.kind])}")
    held = [
        f"{'the last fifth of ' * cut}{count_of(count, _NOUNS[kind])} that"
        f" fit{'s' * (count == 1)} ({', '.join(names[kind, cut])}{', ...' * (count > 3)})"
        for (kind, cut), count in counts.items()
        if count
    ]
    lines = [f"held out: {', '.join(held)}"] if held else []
    if few:
        lines.append(
            f"note: evaluating {', '.join(few)}: scores on fewer than {FEW_FILES} files are noisy;"
            " more files or a larger data.holdout make them reliable"
        )
    return lines + none


def training_files(
    sources: Sequence[Source], buckets: Sequence[Bucket], data: "DataConfig"
) -> dict[str, int]:
    """The number of distinct files with training samples, by noun: {'photo': n, 'clip': n}."""
    counts = dict.fromkeys(_NOUNS.values(), 0)
    for source in sources:
        files = file_numbers(source.table)
        for kind, noun in _NOUNS.items():
            fits = np.zeros(len(files), bool)
            for bucket in buckets:
                if bucket.kind == kind:
                    fits |= fitting(source, bucket, "train", data)
            counts[noun] += int(marked(len(files), files[fits]).sum())
    return counts


def _fits(sources: Sequence[Source], bucket: Bucket, split: str, data: "DataConfig") -> bool:
    return any(fitting(source, bucket, split, data).any() for source in sources)


def _misfit(
    sources: Sequence[Source], bucket: Bucket, split: str, data: "DataConfig"
) -> tuple[str, list[str]]:
    """Why no record of a split fits a bucket, and which settings to change."""
    noun, held_out = _NOUNS[bucket.kind], split == "eval"
    adjective = "held-out " * held_out
    name = f"data.buckets.{bucket.name}: no {adjective or 'training '}sample fits; "
    c = columns(sources)
    kept = (c["held_out"] == held_out) & ((c["frames"] == 1) == (bucket.kind == "image"))
    if not kept.any():
        source = f"a source with {noun}s{' and data.holdout above 0' * held_out}"
        return f"{name}there are no {adjective}{noun}s", [source]
    largest = np.flatnonzero(kept)[np.argmax((c["width"] * c["height"])[kept])]
    finding = (
        f"{name}of {count_of(kept.sum(), adjective + noun)} the largest is"
        f" {c['height'][largest]}x{c['width'][largest]} (HxW)"
    )
    changes = ["a smaller bucket", f"data.max_upscale above {data.max_upscale:g}"]
    if bucket.kind == "video":
        finding += (
            f", the longest {span_seconds(c)[kept].max():.2f} s"
            f" ({sample_seconds(bucket, data.fps):.2f} s are needed), the fastest"
            f" {c['fps'][kept].max():.4g} fps ({MIN_FPS_RATIO * data.fps:.4g} are needed)"
        )
        changes += ["fewer frames", "a different data.fps"]
    if data.hdr == "skip" and (left_out := np.count_nonzero(c["hdr"] & kept)):
        finding += f", {left_out} left out as HDR"
        changes.append("data.hdr = convert")
    if data.min_quality:
        graded = kept & ~np.isnan(c["quality"])
        finding += f", the best JPEG quality {c['quality'][graded].max():.0f}" if graded.any() else ""
        changes.append(f"data.min_quality below {data.min_quality}")
    return finding, changes
