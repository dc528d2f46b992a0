"""What the probe learns from: training and held-out samples of one shape, read as training reads them."""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from vaejax.config import defaults
from vaejax.data import bucket as buckets
from vaejax.data.bucket import Bucket
from vaejax.data.pipeline import read_batches
from vaejax.data.sampler import Sampler
from vaejax.data.sources import nothing_fits, open_sources
from vaejax.data.table import Source
from vaejax.errors import InputError
from vaejax.evaluate.samples import class_of
from vaejax.probe.presets import Preset

BATCH = 16  # samples
# What the command calls the keys that errors speak of.
_FLAGS = {
    "data.buckets.": "--bucket=",
    "data.media": "--data",
    "data.sources.probe": "--data",
    "data.fps": "--fps",
    "data.holdout": "--holdout",
}


class Media:
    """The samples of a probe, the same ones in the same order for every codec and seed.

    Args:
      sources: opened; generated samples are compared with their held-out rows.
      bucket: the shape of a sample.
      data: config.data.
      folder: whose first level of folders names the classes; '' where there are none.

    Raises:
      InputError: if no sample fits, or files lie outside the folders that name classes.
    """

    def __init__(self, sources: Sequence[Source], bucket: Bucket, data, folder: str = ""):
        self.bucket, self.data, self._folder = bucket, data, folder
        # What is generated is like training samples, so what it is compared with is cut as they are.
        self._samplers = {
            split: Sampler(sources, bucket, split, data, middle_first=False) for split in ("train", "eval")
        }
        for split, sampler in self._samplers.items():
            if sampler.empty:
                raise InputError(nothing_fits(sources, bucket, split, data))
        paths = [path.as_py() for source in sources for path in source.table["path"]] if folder else []
        self.classes = sorted({self._class(path) for path in paths})

    def batches(self, split: str, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The first samples of 'train' or 'eval': frames (B, T, H, W, 3) uint8 and classes (B,) int32."""
        for batch in read_batches(self._samplers[split], count, BATCH):
            labels = [self._label(name.rpartition("@")[0]) for name in batch.names]
            yield batch.frames, np.array(labels, np.int32)

    def _label(self, path: str) -> int:
        return self.classes.index(self._class(path)) if self.classes else 0

    def _class(self, path: str) -> str:
        found = class_of(path, self._folder)
        if found is None:
            raise InputError(
                f"--labels: {path} has no class; accepted: every file in the folder of its class"
            )
        return found


def open_media(name: str, preset: Preset, labels: bool = False) -> Media:
    """Opens what --data names, cut as the preset says.

    Args:
      name: FOLDER[,FOLDER] of photos and clips, or 'tfds:NAME'.
      preset: of its fields count bucket, fps, zoom and holdout.
      labels: the folders in FOLDER are classes.

    Raises:
      InputError: in one line, if nothing of it can be used.
    """
    data = defaults().data
    data.fps, data.zoom, data.holdout = preset.fps, preset.zoom, preset.holdout
    if name.startswith("tfds:"):
        data.sources = {"probe": {"kind": "tfds", "name": name.removeprefix("tfds:")}}
    else:
        data.media = name
    if labels and (data.sources or "," in name):
        raise InputError(f"--labels with --data={name}; accepted: one folder, with a folder for every class")
    folder = os.path.abspath(os.path.expanduser(name)) if labels else ""
    try:
        (bucket,) = buckets.parse_buckets({preset.bucket: {"batch": 1}}, 1, 1)
        return Media(open_sources(data), bucket, data, folder)
    except InputError as error:
        told = str(error).replace(f", data.max_upscale above {data.max_upscale:g}", "")
        for key, flag in _FLAGS.items():
            told = told.replace(key, flag)
        raise InputError(told) from None
