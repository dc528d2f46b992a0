"""The tfds source: any prepared TFDS data set with an image or video feature, read without TensorFlow."""

import functools
import importlib.util
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from vaejax.data import media
from vaejax.data import table as rows
from vaejax.data.bucket import Bucket
from vaejax.errors import InputError


@dataclass(frozen=True, eq=False)
class TfdsSource(rows.Source):
    """Records of a TFDS data set in array_record format; their sizes are unknown until they are read."""

    FIELDS: ClassVar[tuple[str, ...]] = ("name", "split", "eval_split", "data_dir", "feature")
    name: str = ""
    data_dir: str | None = None
    feature: str = ""

    @classmethod
    def open(cls, label: str, weight: float, fields: Mapping[str, Any], data: Any, key: str) -> "TfdsSource":
        """Opens the data set `name`, by default its first image or video and its usual splits."""
        name, data_dir = fields.get("name", ""), fields.get("data_dir") or None
        if not name:
            raise InputError(f"{key}.name is missing; accepted: a name of tensorflow.org/datasets/catalog")
        info = _builder(name, data_dir, key).info
        found = {f: kind for f, feature in info.features.items() if (kind := _kind(feature))}
        if not found:
            raise InputError(
                f"{key}.name = {name!r}: features {', '.join(info.features)}; accepted: an image or video"
            )
        feature = fields.get("feature") or next(iter(found))
        if feature not in found:
            raise InputError(f"{key}.feature = {feature!r}; accepted: {', '.join(found)}")
        split, eval_split = fields.get("split") or "train", fields.get("eval_split")
        if not eval_split:
            eval_split = next((s for s in ("validation", "test") if s in info.splits and s != split), None)
        parts = [("split", split)] + ([("eval_split", eval_split)] if eval_split else [])
        tables = []
        for field, part in parts:
            try:
                count = len(_records(name, part, data_dir))
            except ValueError:
                accepted = ", ".join(info.splits)
                raise InputError(
                    f"{key}.{field} = {part!r}; accepted: {accepted}, or a slice of one"
                ) from None
            held_out = np.full(count, field == "eval_split")
            if not eval_split and data.holdout and count > 1:  # TFDS has shuffled its records
                held_out[-max(1, round(count * data.holdout)) :] = True
            tables.append(_table(name, part, held_out, found[feature]))
        table = pa.concat_tables(tables).combine_chunks()
        return cls(label, weight, table, (), name, data_dir, feature)

    def read(self, row: rows.Row, bucket: Bucket, data: Any, crop: rows.Crop) -> tuple[np.ndarray, float]:
        """The sample; TFDS keeps a video as pictures without times, so it is taken to run at data.fps."""
        from tensorflow_datasets.proto import tf_example_pb2

        # The record's own bytes: one encoded picture, or those of a video. TFDS would decode them all.
        example = tf_example_pb2.Example.FromString(_records(self.name, row.shard, self.data_dir)[row.record])
        pictures = example.features.feature[self.feature].bytes_list.value
        room = len(pictures) - bucket.frames
        if room < 0:
            raise rows.Unfit(f"{len(pictures)} frames for {bucket.frames}")
        size = media.probe(pictures[0], "image")
        if rows.scale(bucket, size["width"], size["height"]) > data.max_upscale * (1 + 1e-6):
            raise rows.Unfit(f"{size['height']}x{size['width']} for {bucket.height}x{bucket.width}")
        first = round(crop.position * room)
        cut = dict(zoom=crop.zoom, offset=crop.offset, max_upscale=data.max_upscale)
        cut |= dict(frames=1, height=bucket.height, width=bucket.width)
        frames = [media.read(p, "image", **cut) for p in pictures[first : first + bucket.frames]]
        return np.concatenate(frames), first / data.fps


def import_tfds():
    """The package, able to read videos without TensorFlow as well."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.features import video_feature

    if importlib.util.find_spec("tensorflow") is None:
        # All that its Video feature wants of TensorFlow to be read is the name of a NumPy type (4.9.10).
        video_feature.tf = types.SimpleNamespace(dtypes=types.SimpleNamespace(as_dtype=np.dtype))
    return tfds


def _kind(feature) -> str | None:
    tfds = import_tfds()
    if isinstance(feature, tfds.features.Video):
        return "video"
    return "image" if isinstance(feature, tfds.features.Image) else None


def _builder(name: str, data_dir: str | None, key: str):
    tfds = import_tfds()
    where = "" if data_dir is None else f" --out={data_dir}"
    command = f"python -m vaejax.data.prepare --tfds={name}{where}"
    ways = f"accepted: {command}, or --config.data.media=FOLDER of your own photos and clips"
    key = f"{key}.name = {name!r}"
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (ValueError, ImportError, RuntimeError):
        # Without TensorFlow TFDS knows a part of its catalogue only, but all that is prepared.
        folder = data_dir or tfds.core.constants.DATA_DIR
        raise InputError(f"{key}: no such data set prepared in {folder}; {ways}") from None
    if not builder.is_prepared():
        raise InputError(f"{key}: not prepared in {builder.data_dir}; {ways}")
    found = builder.info.file_format.value
    if found != "array_record":
        raise InputError(f"{key}: prepared as {found}, not array_record, in {builder.data_dir}; {ways}")
    return builder


@functools.lru_cache(maxsize=64)  # one a split and process
def _records(name: str, split: str, data_dir: str | None):
    """The serialised records of a split."""
    tfds = import_tfds()
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    return builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)


def _table(name: str, split: str, held_out: np.ndarray, kind: str) -> pa.Table:
    """Rows that fit every bucket of their kind, since nothing is known of them."""
    image, count = kind == "image", len(held_out)
    same = {
        "kind": kind,
        "width": 0,
        "height": 0,
        "frames": int(image),
        "fps": 0.0 if image else np.inf,
        "quality": np.nan,
        "start": 0.0,
        "stop": 0.0 if image else np.inf,
        "shard": split,
    }
    columns = {
        field: pa.repeat(pa.scalar(value, rows.SCHEMA.field(field).type), count)
        for field, value in same.items()
    }
    columns |= {"held_out": pa.array(held_out), "record": pa.array(np.arange(count))}
    columns["path"] = pa.array([f"{name}/{split}/{i}" for i in range(count)], pa.string())
    return pa.table([columns[field] for field in rows.SCHEMA.names], rows.SCHEMA)
