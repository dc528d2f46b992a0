"""The samples of the probe: training and held-out samples of one bucket, cropped as in training."""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from vaejax.config.folders import folder_list
from vaejax.config.schema import DataConfig
from vaejax.data.bucket import Bucket, parse_buckets
from vaejax.data.pipeline import read_batches
from vaejax.data.sampler import Sampler
from vaejax.data.sources import nothing_fits, open_sources
from vaejax.data.table import Source
from vaejax.errors import InputError
from vaejax.evaluate.samples import class_of
from vaejax.probe.presets import Preset

BATCH = 16  # samples read or decoded at a time
# The command's flag for each configuration key that an error message may name.
_FLAGS = {
    "--config.data.media": "--data",
    "data.sources.probe.name": "--data",
    "data.buckets.": "--bucket=",
    "data.media": "--data",
    "data.sources.probe": "--data",
    "data.fps": "--fps",
    "data.holdout": "--holdout",
}


class Media:
    """The samples of a probe; every codec and every seed gets the same ones in the same order.

    Args:
      sources: opened data sources; generated samples are compared with their held-out part.
      bucket: the shape of a sample.
      data: data settings, such as config.data of a run.
      folder: folder whose direct subfolders are the classes; '' without classes.

    Attributes:
      bucket, data: the arguments.
      classes: names of the classes, sorted; empty without classes.

    Raises:
      InputError: if no sample fits, or a file is outside the folders of the classes.
    """

    def __init__(self, sources: Sequence[Source], bucket: Bucket, data: DataConfig, folder: str = ""):
        self.bucket, self.data, self._folder = bucket, data, folder
        # middle_first=False: held-out crops then vary like training crops, which generated samples imitate.
        self._samplers = {
            split: Sampler(sources, bucket, split, data, middle_first=False) for split in ("train", "eval")
        }
        for split, sampler in self._samplers.items():
            if sampler.empty:
                raise InputError(nothing_fits(sources, bucket, split, data))
        paths = [path.as_py() for source in sources for path in source.table["path"]] if folder else []
        self.classes = sorted({self._class(path) for path in paths})

    def batches(self, split: str, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the first `count` samples of a split in batches of at most BATCH.

        Each batch is frames (B, T, H, W, C) uint8 and class numbers (B,) int32, which are 0 without classes.

        Args:
          split: 'train', or 'eval' for held-out samples.
          count: number of samples.
        """
        for batch in read_batches(self._samplers[split], count, BATCH):
            labels = [self._label(name.rpartition("@")[0]) for name in batch.names]
            yield batch.frames, np.array(labels, np.int32)

    def _label(self, path: str) -> int:
        return self.classes.index(self._class(path)) if self.classes else 0

    def _class(self, path: str) -> str:
        name = class_of(path, self._folder)
        if name is None:
            raise InputError(f"--labels: {path} has no class; accepted: files inside class folders")
        return name


def open_media(name: str, preset: Preset, labels: bool = False, channels: int = 3) -> Media:
    """Opens the media that --data names, cropped as the preset specifies.

    Args:
      name: FOLDER[,FOLDER] of photos and clips, or 'tfds:NAME'.
      preset: the budget; only bucket, fps, zoom and holdout are used.
      labels: whether the subfolders of FOLDER are classes.
      channels: pixel channels C of the codec.

    Raises:
      InputError: if there is nothing to read, or `labels` is True and `name` is not one folder of classes.
    """
    is_tfds = name.startswith("tfds:")
    if labels and (is_tfds or len(folder_list(name)) != 1):
        raise InputError(f"--labels with --data={name}; accepted: one folder with a subfolder for each class")
    data = DataConfig(
        media="" if is_tfds else name,
        sources={"probe": {"kind": "tfds", "name": name.removeprefix("tfds:")}} if is_tfds else {},
        fps=preset.fps,
        zoom=preset.zoom,
        holdout=preset.holdout,
    )
    folder = os.path.abspath(*folder_list(name)) if labels else ""
    try:
        (bucket,) = parse_buckets({preset.bucket: {"batch": 1}}, 1, 1, channels=channels)
        return Media(open_sources(data), bucket, data, folder)
    except InputError as error:
        message = str(error).replace(f", data.max_upscale above {data.max_upscale:g}", "")
        for key, flag in _FLAGS.items():
            message = message.replace(key, flag)
        raise InputError(message) from None
