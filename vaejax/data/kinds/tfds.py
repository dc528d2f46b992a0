"""The tfds source: a data set of TensorFlow Datasets (TFDS), prepared beforehand, read without TensorFlow."""

import functools
import importlib.util
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from vaejax.data import media
from vaejax.data.crop import Crop, covers
from vaejax.data.split import Split
from vaejax.data.table import Record, Source, Unfit, unmeasured
from vaejax.errors import InputError

if TYPE_CHECKING:
    from vaejax.config.schema import DataConfig


@dataclass(frozen=True, eq=False)
class TfdsSource(Source):
    """Records of a TFDS data set in array_record format. Their sizes are unknown until they are read.

    Attributes:
      name: name of the data set.
      data_dir: folder of prepared data sets; None: the default of TFDS.
      feature: name of the image or video feature to read.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("name", "split", "eval_split", "data_dir", "feature")
    name: str = ""
    data_dir: str | None = None
    feature: str = ""

    @classmethod
    def open(
        cls, label: str, weight: float, fields: Mapping[str, Any], data: "DataConfig", key: str, split: Split
    ) -> Self:
        """Opens the data set `fields["name"]`.

        By default, 'feature' is the first image or video feature, 'split' is 'train', and 'eval_split' is
        'validation', or else 'test'. If the data set has neither, the last records of 'split' are held out
        for evaluation: a fraction data.holdout of all its records.
        """
        name, data_dir = fields.get("name", ""), fields.get("data_dir") or None
        if not name:
            raise InputError(f"{key}.name is missing; accepted: a name from tensorflow.org/datasets/catalog")
        info = _builder(name, data_dir, key).info
        kinds = {f: kind for f, feature in info.features.items() if (kind := _kind(feature))}
        if not kinds:
            raise InputError(
                f"{key}.name = {name!r}: its features are {', '.join(info.features)}; accepted: a data set"
                " with an image or video feature"
            )
        feature = fields.get("feature") or next(iter(kinds))
        if feature not in kinds:
            raise InputError(f"{key}.feature = {feature!r}; accepted: {', '.join(kinds)}")
        if data.cuts and kinds[feature] == "video":
            raise InputError(
                f"data.cuts = True: the clips of {key}.name = {name!r} are not searched for cuts; accepted:"
                " data.cuts = False, or a source of another kind"
            )
        train_split, eval_split = fields.get("split") or "train", fields.get("eval_split")
        if not eval_split:
            eval_split = next(
                (s for s in ("validation", "test") if s in info.splits and s != train_split), None
            )
        parts = [("split", train_split)] + ([("eval_split", eval_split)] if eval_split else [])
        tables = []
        for field, part in parts:
            try:
                count = len(_records(name, part, data_dir))
            except ValueError:
                accepted = ", ".join(info.splits)
                raise InputError(
                    f"{key}.{field} = {part!r}; accepted: {accepted}, or a slice such as train[:90%]"
                ) from None
            held_out = np.full(count, field == "eval_split")
            if not eval_split and data.holdout and count > 1:
                # The last records are a random choice, because TFDS shuffles nearly every data set.
                held_out[-max(1, round(count * data.holdout)) :] = True
            tables.append(unmeasured(f"{name}/{part}", part, kinds[feature], held_out))
        table = pa.concat_tables(tables).combine_chunks()
        return cls(label, weight, table, (), name, data_dir, feature)

    def read(
        self, record: Record, frames: int, fps: float, crop: Crop, moment: float
    ) -> tuple[np.ndarray, float]:
        """Reads a sample. TFDS stores videos without timestamps, so `fps` is taken as their frame rate."""
        from tensorflow_datasets.proto import tf_example_pb2

        # Parsed here and not by TFDS, which would decode every frame of a video.
        content = _records(self.name, record.shard, self.data_dir)[record.position]
        example: Any = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue] - made at import
        features = example.FromString(content).features.feature
        pictures = features[self.feature].bytes_list.value
        spare = len(pictures) - frames
        if spare < 0:
            raise Unfit(f"{len(pictures)} frames, needed: {frames}")
        size = media.probe(pictures[0], "image")
        if not covers(crop.height, crop.width, size["height"], size["width"], crop.max_upscale):
            raise Unfit(f"{size['height']}x{size['width']}, needed: {crop.height}x{crop.width} (HxW)")
        first = round(moment * spare)
        parts = [
            media.read(picture, "image", frames=1, **crop._asdict())
            for picture in pictures[first : first + frames]
        ]
        return np.concatenate(parts), first / fps


def import_tfds() -> Any:
    """Imports tensorflow_datasets, and makes it read videos without TensorFlow."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.features import video_feature

    if importlib.util.find_spec("tensorflow") is None:
        # To read, the Video feature of TFDS 4.9.10 needs only one function of TensorFlow: dtypes.as_dtype.
        video_feature.tf = types.SimpleNamespace(dtypes=types.SimpleNamespace(as_dtype=np.dtype))
    return tfds


def _kind(feature) -> str | None:
    tfds = import_tfds()
    if isinstance(feature, tfds.features.Video):
        return "video"
    return "image" if isinstance(feature, tfds.features.Image) else None


def _builder(name: str, data_dir: str | None, key: str) -> Any:
    tfds = import_tfds()
    out = "" if data_dir is None else f" --out={data_dir}"
    command = f"python -m vaejax.data.prepare --tfds={name}{out}"
    accepted = f"accepted: a data set prepared by {command}, or --config.data.media=FOLDER with your media"
    key = f"{key}.name = {name!r}"
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (ValueError, ImportError, RuntimeError):
        # Without TensorFlow, TFDS knows only part of its catalog, but it finds every prepared data set.
        folder = data_dir or tfds.core.constants.DATA_DIR
        raise InputError(f"{key}: not prepared in {folder}; {accepted}") from None
    if not builder.is_prepared():
        raise InputError(f"{key}: not prepared in {builder.data_dir}; {accepted}")
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise InputError(
            f"{key}: prepared as {file_format} in {builder.data_dir}, not as array_record; {accepted}"
        )
    return builder


@functools.lru_cache(maxsize=64)  # one entry per split, in each process
def _records(name: str, split: str, data_dir: str | None):
    """The serialized records of a split."""
    tfds = import_tfds()
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    return builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
