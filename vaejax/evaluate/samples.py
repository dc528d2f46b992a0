"""The samples of an evaluation, from a folder, a TFDS data set, or the held-out part of a run's data."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vaejax.data import index, sources
from vaejax.data.bucket import Bucket
from vaejax.data.kinds.collection import Folder
from vaejax.data.kinds.indexed import MediaSource
from vaejax.data.kinds.tfds import TfdsSource
from vaejax.data.pipeline import read_batches
from vaejax.data.sampler import Sampler
from vaejax.data.spans import from_index
from vaejax.data.split import WHOLE, Split
from vaejax.data.table import Source, candidates
from vaejax.errors import InputError
from vaejax.files import expand_home

if TYPE_CHECKING:
    from vaejax.config.schema import DataConfig


class Samples:
    """The samples of an evaluation, the same ones in the same order for every batch size.

    Args:
      opened: data sources, whose held-out rows are the samples.
      data: data settings, such as config.data of a run.
      folder: folder whose direct subfolders are the classes; '' without classes.
      limit: maximum number of samples per bucket; 0 means every file once.
    """

    def __init__(self, opened: Sequence[Source], data: "DataConfig", folder: str = "", limit: int = 0):
        self._sources, self._data, self._folder, self._limit = tuple(opened), data, folder, limit
        # A run holds out few files, so they are cropped repeatedly until the limit is reached. Files in a
        # folder that the user names are read once. So are TFDS records, because a data set has many of them.
        self._once = not limit or bool(folder) or any(isinstance(s, TfdsSource) for s in opened)

    @property
    def fps(self) -> float:
        """Frames per second of the clips."""
        return self._data.fps

    @property
    def settings(self) -> dict[str, float | str]:
        """The settings of config.data that select files and crops, by name."""
        names = ("fps", "zoom", "max_upscale", "min_quality", "hdr", "holdout")
        return {name: getattr(self._data, name) for name in names}

    def count(self, bucket: Bucket) -> int:
        """Number of samples of a bucket, including files that turn out to be unreadable."""
        fitting = sum(len(candidates(source, bucket, "eval", self._data)) for source in self._sources)
        if self._once:
            return min(fitting, self._limit or fitting)
        return self._limit if fitting else 0

    def why_empty(self, bucket: Bucket) -> str:
        """One line that explains why a bucket has no samples."""
        text = sources.nothing_fits(self._sources, bucket, "eval", self._data).removeprefix("data.buckets.")
        text = text.replace(f", data.max_upscale above {self._data.max_upscale:g}", "")
        if self._folder:  # nothing is held out of --data: all of it is scored
            text = text.replace("held-out ", "").replace(" and data.holdout above 0", "")
        return text.replace("data.fps", "--fps")

    def batches(self, bucket: Bucket, batch: int) -> Iterator[tuple[np.ndarray, list[str], list[int]]]:
        """Streams the samples of a bucket.

        An unreadable file is replaced by another file. If every file is used once, repeats are omitted.

        Yields:
          Frames (B, T, H, W, C) uint8, names 'path@start' with the start in seconds, and the indices that
          `read` takes.
        """
        seen = set()
        for part in read_batches(self._sampler(bucket), self.count(bucket), batch):
            kept = []
            for i, name in enumerate(part.names):
                if name not in seen:
                    kept.append(i)
                if self._once:
                    seen.add(name)
            if kept:
                yield part.frames[kept], [part.names[i] for i in kept], [part.rows[i] for i in kept]

    def read(self, bucket: Bucket, place: int) -> np.ndarray:
        """Reads a sample again, (1, T, H, W, 3) uint8; `place` is its index from `batches`."""
        return self._sampler(bucket)[place].frames[None]

    def _sampler(self, bucket: Bucket) -> Sampler:
        return Sampler(self._sources, bucket, "eval", self._data)

    def label(self, name: str) -> str | None:
        """The class of a sample 'path@start', or None; see `class_of`."""
        return class_of(name.rpartition("@")[0], self._folder) if self._folder else None


def class_of(path: str, folder: str) -> str | None:
    """The class of a file: the name of the direct subfolder of `folder` that contains it, or None."""
    parts = pathlib.PurePath(os.path.relpath(path, folder)).parts
    return parts[0] if len(parts) > 1 and parts[0] != os.pardir else None


def open_samples(name: str, data: "DataConfig", limit: int = 0) -> Samples:
    """Opens the samples that `--data` names.

    Args:
      name: FOLDER: every photo and clip that fits is used once, cropped from the middle. Or 'tfds:NAME': the
        validation or test split of a prepared data set; if it has neither, its held-out share.
      data: config.data; only fps and, for TFDS, holdout are used.
      limit: maximum number of samples per bucket; 0 means all.

    Raises:
      InputError: if there is nothing to read.
    """
    data = dataclasses.replace(data, zoom=1.0, max_upscale=1.0, min_quality=0, hdr="convert", cuts=False)
    if name.startswith("tfds:"):
        try:
            source = TfdsSource.open(
                "data", 1.0, {"name": name.removeprefix("tfds:")}, data, "--data", Split()
            )
        except InputError as error:  # it names the settings of a run, not this command's flags
            text = str(error).replace("--data.name", "--data").replace("--config.data.media", "--data")
            raise InputError(text) from error
        return Samples([source], data, limit=limit)
    folder = os.path.abspath(expand_home(name))
    table = index.load_or_build(folder, name="--data")
    readable = from_index(table, np.full(len(table), WHOLE), folder)
    if not len(readable):
        raise InputError(f"--data = {name}: no readable files; accepted: a folder of photos or clips")
    return Samples([MediaSource("data", 1.0, readable, reader=Folder(folder))], data, folder, limit)
