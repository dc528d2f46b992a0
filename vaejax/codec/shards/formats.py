"""The files that hold many latents: tars for webdataset, and Parquet files for Hugging Face's datasets.

A tar has KEY.latent.npy, KEY.json and, if the source has a caption, KEY.txt. KEY.json has the labels of the
source, and under `vaejax` the metadata of a latent file. A Parquet file has columns instead; see `schema`.
Sound is left out. Equal samples give equal bytes.
"""

import dataclasses
import io
import json
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vaejax.codec.latent_file import Facts, LatentFile, LatentWriter, header_of
from vaejax.data import index_file
from vaejax.data.kinds.webdataset import CAPTION
from vaejax.errors import InputError, one_line

METADATA = "vaejax"  # the entry of KEY.json, or the column, with the metadata of a latent file
ARRAY = ".latent.npy"
GROUP_BYTES = 8 * 10**6  # of latents in a row group of Parquet, which readers decode as a whole
_OWN = pa.schema(
    {
        "key": pa.string(),
        "latent": pa.binary(),
        "shape": pa.list_(pa.int32()),
        "dtype": pa.string(),
        "kind": pa.string(),
        "frames": pa.int32(),
        "height": pa.int32(),
        "width": pa.int32(),
        "fps": pa.float64(),
        METADATA: pa.string(),
    }
)
_TYPES = {bool: "bool", int: "int64", float: "double", str: "string"}
Columns = tuple[tuple[str, str], ...]  # names of labels, and the types of their columns


class Sample(NamedTuple):
    """Latents and what is known about their source.

    Attributes:
      key: identifies the sample in its file; has no dot after the last '/'.
      latent: (t, h, w, c), float16 or float32.
      metadata: the metadata of a latent file; `path`, the path of the source in its collection; and `time`,
        the seconds of every frame from the first, if the frame rate varies.
      labels: what the collection knows about the source, such as its caption.
    """

    key: str
    latent: np.ndarray
    metadata: dict[str, Any]
    labels: dict[str, Any]


# Samples and latent files -----------------------------------------------------------------------------------


def sample_of(file: LatentFile, key: str, path: str, labels: dict[str, Any]) -> Sample:
    """The sample with the content of a latent file, without its sound."""
    facts = dataclasses.replace(file.facts, audio_tick=None, audio_end=None)
    times = {"time": file.times.tolist()} if facts.variable_rate else {}
    return Sample(key, file.whole(), facts.values() | {"path": path} | times, labels)


def write_latent_file(sample: Sample, path: pathlib.Path) -> Facts:
    """The inverse of `sample_of`; returns the metadata.

    Raises:
      KeyError, ValueError, TypeError, ZeroDivisionError: if the metadata are not those of a latent file.
    """
    facts = Facts.from_header(header_of(sample.metadata))
    times = sample.metadata.get("time") or [i / float(facts.fps or 1) for i in range(facts.frames)]
    with open(path, "w+b") as file:
        writer = LatentWriter(file, sample.latent.shape[-1], sample.latent.dtype.name)
        writer.append(sample.latent)
        writer.end(facts, times)
    return facts


def keys(paths: Iterable[str]) -> list[str]:
    """The key of each file of a shard: its path without the ending, or with it if the key is taken."""
    found: dict[str, None] = {}
    for path in paths:
        folder, name = os.path.split(path)
        stem, whole = (text.replace(".", "_") for text in (os.path.splitext(name)[0], name))
        key = os.path.join(folder, stem)
        while key in found:
            key, whole = os.path.join(folder, whole), f"{whole}_"
        found[key] = None
    return list(found)


# Tars -------------------------------------------------------------------------------------------------------


def write_tar(file: BinaryIO, samples: Iterable[Sample], columns: Columns = ()) -> None:
    """Writes samples as webdataset reads them; `columns` is not needed."""
    with tarfile.open(fileobj=file, mode="w") as tar:
        for sample in samples:
            array = io.BytesIO()
            np.save(array, sample.latent)
            _add(tar, sample.key + ARRAY, array.getvalue())
            described = sample.labels | {METADATA: sample.metadata}
            _add(tar, f"{sample.key}.json", _utf8(json.dumps(described, ensure_ascii=False)))
            if isinstance(caption := sample.labels.get(CAPTION), str):
                _add(tar, f"{sample.key}.txt", _utf8(caption))


def _utf8(text: str) -> bytes:
    """The bytes of a text; half a surrogate pair, which JSON can hold, becomes '?'."""
    return text.encode("utf-8", "replace")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    tar.addfile(header, io.BytesIO(content))


def read_tar(path: str) -> Iterator[Sample]:
    """Yields the samples of `write_tar`, without labels."""
    with tarfile.open(path) as tar:
        array = None
        for member in tar:
            content: Any = tar.extractfile(member)
            if member.name.endswith(ARRAY):
                array = np.load(io.BytesIO(content.read()))
            elif member.name.endswith(".json") and array is not None:
                yield Sample(member.name.removesuffix(".json"), array, json.load(content)[METADATA], {})
                array = None


# Parquet ----------------------------------------------------------------------------------------------------


def label_columns(index: str) -> Columns:
    """The labels of an index and the types of their columns, in alphabetical order; reads it in pieces."""
    types: dict[str, str] = {}
    for piece in index_file.pieces(index, ["labels"]):
        for text in piece["labels"].to_pylist():
            for name, value in json.loads(text or "{}").items():
                types[name] = _merged(types.get(name, ""), value)
    return tuple((name, kind or "string") for name, kind in sorted(types.items()))


def _merged(kind: str, value: Any) -> str:
    """The type of a column that holds values of type `kind`, '' for none, and another value."""
    if value is None:
        return kind
    found = _TYPES.get(type(value), "string")
    if isinstance(value, int) and abs(value) >= 2**63:
        found = "string"
    if {kind, found} == {"int64", "double"}:
        return "double"
    return found if kind in ("", found) else "string"


def schema(columns: Columns) -> pa.Schema:
    """The columns of a Parquet file: those of vaejax, and the labels; `labels.NAME` if a name is taken."""
    types = {"bool": pa.bool_(), "int64": pa.int64(), "double": pa.float64(), "string": pa.string()}
    return pa.schema([*_OWN, *(pa.field(_column(name), types[kind]) for name, kind in columns)])


def _column(label: str) -> str:
    return f"labels.{label}" if label in _OWN.names else label


def write_parquet(file: BinaryIO, samples: Iterable[Sample], columns: Columns = ()) -> None:
    """Writes samples as rows; `columns` are the labels of the collection, so that all files have them."""
    # Latents are noise to a compressor.
    with pq.ParquetWriter(file, schema(columns), compression="none") as writer:
        rows, size = [], 0
        for sample in samples:
            rows.append(_row(sample, columns))
            size += sample.latent.nbytes
            if size >= GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(rows, writer.schema))
                rows, size = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, writer.schema))


def _row(sample: Sample, columns: Columns) -> dict[str, Any]:
    facts = Facts.from_header(header_of(sample.metadata))
    labels = {_column(name): _converted(sample.labels.get(name), kind) for name, kind in columns}
    return labels | {
        "key": sample.key,
        "latent": np.ascontiguousarray(sample.latent).tobytes(),
        "shape": list(sample.latent.shape),
        "dtype": sample.latent.dtype.name,
        "kind": facts.kind,
        "frames": facts.frames,
        "height": facts.height,
        "width": facts.width,
        "fps": None if facts.fps is None else float(facts.fps),
        METADATA: json.dumps(sample.metadata),
    }


def _converted(value: Any, kind: str) -> Any:
    if kind != "string" or value is None:
        return value
    return _utf8(value).decode() if isinstance(value, str) else json.dumps(value)


def read_parquet(path: str) -> Iterator[Sample]:
    """Yields the samples of `write_parquet`, without labels."""
    file = pq.ParquetFile(path)
    for batch in file.iter_batches(1, columns=["key", "latent", "shape", "dtype", METADATA]):
        for row in batch.to_pylist():
            latent = np.frombuffer(row["latent"], row["dtype"]).reshape(row["shape"])
            yield Sample(row["key"], latent, json.loads(row[METADATA]), {})


# Both -------------------------------------------------------------------------------------------------------


class Format(NamedTuple):
    """A kind of file that holds many latents."""

    extension: str
    write: Callable[[BinaryIO, Iterable[Sample], Columns], None]
    read: Callable[[str], Iterator[Sample]]


FORMATS: Mapping[str, Format] = {
    "webdataset": Format(".tar", write_tar, read_tar),
    "parquet": Format(".parquet", write_parquet, read_parquet),
}


def read(path: str, name: str) -> Iterator[Sample]:
    """Yields the samples of a tar or Parquet file of latents.

    Raises:
      InputError: if it is damaged; the samples before the damage were yielded.
    """
    (reader,) = (form.read for form in FORMATS.values() if path.endswith(form.extension))
    try:
        yield from reader(path)
    except (tarfile.TarError, pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{name}: damaged ({one_line(error)}); accepted: a shard of vaejax encode"
        ) from error


def shard_files(folder: str) -> Sequence[str]:
    """The names of the files of latents in a folder on disk."""
    endings = tuple(form.extension for form in FORMATS.values())
    return sorted(
        name for name in os.listdir(folder) if name.startswith("latents-") and name.endswith(endings)
    )
