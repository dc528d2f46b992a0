"""The samples of an evaluation: a folder, a TFDS data set, or the held-out samples of a run."""

import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from vaejax.data import index, sources
from vaejax.data.bucket import Bucket
from vaejax.data.pipeline import read_batches
from vaejax.data.sampler import Sampler
from vaejax.data.sources import MediaSource
from vaejax.data.table import Source, candidates, from_index
from vaejax.data.tfds import TfdsSource
from vaejax.errors import InputError


class Samples:
    """The samples of an evaluation: always the same ones in the same order, whatever the batch.

    Args:
      opened: sources; their held-out rows are the samples.
      data: config.data.
      folder: whose first level of folders names the classes; '' where there are no classes.
      limit: how many of a bucket, at most; 0 takes every file once.
    """

    def __init__(self, opened: Sequence[Source], data: ConfigDict, folder: str = "", limit: int = 0):
        self._sources, self._data, self._folder, self._limit = tuple(opened), data, folder, limit
        # A run's own few files are cut again elsewhere up to the limit; files that a person names are not.
        self._once = not limit or bool(folder) or any(isinstance(s, TfdsSource) for s in opened)

    @property
    def fps(self) -> float:
        """Frames a second of the clips."""
        return self._data.fps

    @property
    def settings(self) -> dict[str, float]:
        """What decides how a sample is cut out of its file, and which files there are."""
        names = ("fps", "zoom", "max_upscale", "min_quality", "holdout")
        return {name: self._data[name] for name in names}

    def count(self, bucket: Bucket) -> int:
        """How many samples a bucket has; a file that turns out to be unreadable is still counted."""
        fitting = sum(len(candidates(source, bucket, "eval", self._data)) for source in self._sources)
        if self._once:
            return min(fitting, self._limit or fitting)
        return self._limit if fitting else 0

    def nothing_fits(self, bucket: Bucket) -> str:
        """One line that says why a bucket has no samples."""
        return sources.nothing_fits(self._sources, bucket, "eval", self._data).removeprefix("data.buckets.")

    def batches(self, bucket: Bucket, batch: int) -> Iterator[tuple[np.ndarray, list[str], list[int]]]:
        """Streams the samples of a bucket.

        Yields:
          frames (B, T, H, W, 3) uint8, names 'path@start', and the places that `read` takes. Where a file was
          unreadable, the one that stands in for it is left out if it is read elsewhere.
        """
        seen = set()
        for part in read_batches(self._sampler(bucket), self.count(bucket), batch):
            kept = [i for i, name in enumerate(part.names) if not (self._once and name in seen)]
            if self._once:
                seen.update(part.names)
            if kept:
                yield part.frames[kept], [part.names[i] for i in kept], [part.rows[i] for i in kept]

    def read(self, bucket: Bucket, place: int) -> np.ndarray:
        """One sample again, (1, T, H, W, 3) uint8."""
        return self._sampler(bucket)[place].frames[None]

    def _sampler(self, bucket: Bucket) -> Sampler:
        return Sampler(self._sources, bucket, "eval", self._data)

    def label(self, name: str) -> str | None:
        """The class of a sample: the folder of the first level that its file lies in; None if it has none."""
        return class_of(name.rpartition("@")[0], self._folder) if self._folder else None


def class_of(path: str, folder: str) -> str | None:
    """The class of a file: the folder in `folder` that it lies in, however deep; None if it lies in none."""
    parts = pathlib.PurePath(os.path.relpath(path, folder)).parts
    return parts[0] if len(parts) > 1 and parts[0] != os.pardir else None


def open_samples(name: str, data: ConfigDict, limit: int = 0) -> Samples:
    """Opens what `--data` names.

    Args:
      name: FOLDER: every photo and clip in it that fits, once, cut from the middle; 'tfds:NAME': the
        validation or test split of a prepared data set, or else the share that `data` holds out of it.
      data: config.data; of it count fps, holdout (TFDS) and prefetch.
      limit: samples a bucket, at most; 0 takes all.

    Raises:
      InputError: if there is nothing to read.
    """
    data = ConfigDict(data.to_dict() | {"zoom": 1.0, "max_upscale": 1.0, "min_quality": 0})
    if name.startswith("tfds:"):
        source = TfdsSource.open("data", 1.0, {"name": name.removeprefix("tfds:")}, data, "--data")
        return Samples([source], data, limit=limit)
    folder = os.path.abspath(os.path.expanduser(name))
    table = index.load_or_build(folder, name="--data")
    readable = from_index(table, 0.0, folder, everything="eval")
    if not len(readable):
        raise InputError(f"--data = {name}: none of its files can be read; accepted: a folder of media")
    return Samples([MediaSource("data", 1.0, readable)], data, folder, limit)
