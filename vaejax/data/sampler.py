"""The order of samples: a pure function of sources, bucket, seed and index, the same in every process."""

import sys
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import grain
import numpy as np

from vaejax.data import mapped
from vaejax.data.bucket import Bucket
from vaejax.data.crop import Crop, Unreadable
from vaejax.data.mixture import Mixture, Stretch
from vaejax.data.row_set import RowSet
from vaejax.data.split_rule import name_hashes
from vaejax.data.table import Source, Unfit, candidates, fitting
from vaejax.errors import InputError, one_line

if TYPE_CHECKING:
    from vaejax.config.schema import DataConfig

MAX_UNREADABLE = 20  # unreadable files tried for one sample before an error is raised
MAX_DRAWS = 200  # records drawn for one sample before an error is raised, counting repeats and unfit ones
# Fewer records than this are shuffled by NumPy, because Grain is slow with few: it takes 2.4 ms per sample
# for 8 records, but 9 µs for 10 000.
FEW = 4096


class Sample(NamedTuple):
    """One decoded sample. Grain treats it as a tree of arrays, and shares `frames` between processes.

    Attributes:
      frames: uint8, (T, H, W, C).
      name: 'path@start'; start is the time of the first frame, in seconds.
      skipped: (path, reason) of each unreadable file that this sample replaces.
      latents: float32, (t, h, w, c), if the source has a cache of latents; else None.
    """

    frames: np.ndarray
    name: str
    skipped: tuple[tuple[str, str], ...] = ()
    latents: np.ndarray | None = None


class Sampler:
    """The endless sequence of a bucket's samples; `sampler[i]` reads sample i.

    Sources alternate in proportion to their weights. For training, each source is shuffled anew in every
    epoch, and the crop of sample i is drawn from (seed, bucket, i). For evaluation the order is fixed, by a
    hash of each file's path relative to its folder: the first epoch crops the middle of every held-out file
    (if `middle_first`), and later epochs crop the same files elsewhere in space and time. Of clips divided at
    their cuts, the first scene of every clip comes first, then the second of every clip.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        bucket: Bucket,
        split: str,
        data: "DataConfig",
        seed: int = 0,
        middle_first: bool = True,
    ):
        """Selects the records that fit; `empty` is True if there are none.

        Args:
          sources: data sources, from `open_sources`.
          bucket: the shape of a sample.
          split: 'train' or 'eval'.
          data: config.data.
          seed: seed of the shuffles and crops; for 'eval', only of the substitutes for unusable files.
          middle_first: whether the first 'eval' crop of a file is its middle; False varies this crop too.
        """
        self._first_pass = 0 if middle_first else 1
        self.bucket, self.data, self.split = bucket, data, split
        self._key = (seed % 2**64, zlib.crc32(bucket.name.encode()))
        self._sources = tuple(sources)
        self._candidates = [self._ordered(source) for source in sources]
        used = [number for number, rows in enumerate(self._candidates) if len(rows)]
        self.empty = not used
        self.weights = {sources[number].label: sources[number].weight for number in used}
        self._numbers = {sources[number].label: number for number in used}
        if used:
            self.mix([Stretch(0, self.weights)])

    def _ordered(self, source: Source) -> RowSet | np.ndarray:
        """The rows of a source that fit, in their order before a shuffle."""
        if self.split == "train":
            return RowSet(fitting(source, self.bucket, self.split, self.data))
        return _eval_order(source, candidates(source, self.bucket, self.split, self.data))

    def mix(self, history: Sequence[Stretch]) -> None:
        """Sets the mixture of the sources; without this call their weights hold from the first sample on."""
        self._mixture = Mixture(history)
        # Numbers of sources stay if others come or go; those of the first stretch are as in earlier versions.
        labels = dict.fromkeys(label for stretch in history for label in sorted(stretch.weights))
        self._seeds = {label: zlib.crc32(f"{self._key}/{i}".encode()) for i, label in enumerate(labels)}
        self._shuffled: dict[int, Any] = {}
        for label, number in self._numbers.items() if self.split == "train" else ():
            if (count := len(self._candidates[number])) >= FEW:
                seed = self._seeds[label]
                self._shuffled[number] = grain.MapDataset.range(count).seed(seed).shuffle().repeat()

    def _place(self, number: int, drawn: int) -> tuple[int, int]:
        """The index among the records of a source that fit, for its sample `drawn`, and its epoch.

        For training the epoch is always 0, because crops do not depend on it.
        """
        count = len(self._candidates[number])
        if self.split == "eval":
            return drawn % count, drawn // count
        if number in self._shuffled:
            return int(self._shuffled[number][drawn]), 0
        seed = self._seeds[self._sources[number].label]
        return int(_permutation(count, seed, drawn // count)[drawn % count]), 0

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Sample:
        """Reads sample `index`, or a substitute from the same source if it cannot be read or does not fit.

        Raises:
          InputError: if MAX_UNREADABLE files cannot be read or MAX_DRAWS records give no sample.
          RuntimeError: for any other error while reading; its message names the file.
        """
        label, drawn = self._mixture[index]
        number = self._numbers[label]
        place, passes = self._place(number, drawn)
        source, rows = self._sources[number], self._candidates[number]
        crop, moment = self._drawn(index) if self.split == "train" else self._varied(passes)
        unreadable, unfit, reason = {}, set(), ""
        for attempt in range(1, MAX_DRAWS + 1):
            record = source.record(int(rows[int(place)]))
            if record.path not in unreadable and record.path not in unfit:
                try:
                    if source.cache and self.split == "train":
                        frames, latents = source.cache.read(record.path, record, self.bucket, crop.offset)
                        start = 0.0
                    else:
                        frames, start = source.read(record, self.bucket.frames, self.data.fps, crop, moment)
                        latents = None
                    return Sample(frames, f"{record.path}@{start:.3f}", tuple(unreadable.items()), latents)
                except (Unreadable, OSError) as error:
                    unreadable[record.path] = one_line(error)
                    reason = f"{record.path}: {unreadable[record.path]}"
                except Unfit as error:
                    unfit.add(record.path)
                    reason = f"{record.path}: does not fit: {error}"
                except Exception as error:
                    raise RuntimeError(f"{record.path}: {type(error).__name__}: {error}") from error
            if len(unreadable) == MAX_UNREADABLE:
                break
            place = self._random(index, attempt).integers(len(rows))
        last = reason.partition("; accepted: ")[0]
        raise InputError(
            f"data.buckets.{self.bucket.name}: none of {len(unreadable) + len(unfit)} files tried can be used"
            f" (the last: {last}); accepted: a source whose files can be read and fit the bucket"
        )

    def _drawn(self, index: int) -> tuple[Crop, float]:
        """The random crop of a training sample, and its time in the clip, from 0 (earliest) to 1 (latest).

        The zoom is log-uniform between 1 and data.zoom.
        """
        moment, zoom, y, x = self._random(index).random(4)
        return self._crop(float(self.data.zoom) ** zoom, (y, x)), moment

    def _varied(self, passes: int) -> tuple[Crop, float]:
        """The crop of a held-out sample, and its time in the clip, from 0 to 1, after `passes` epochs.

        The first epoch takes the middle of the file, unless `middle_first` is False. In all other epochs,
        multiples of three irrational numbers modulo 1 (a Kronecker sequence) cover all positions evenly.
        """
        passes += self._first_pass
        if not passes:
            return self._crop(1.0, (0.5, 0.5)), 0.5
        moment, y, x = (0.5 + passes * np.array([0.8191725, 0.6710436, 0.5497005])) % 1
        return self._crop(float(self.data.zoom) ** ((moment + y) % 1), (y, x)), moment

    def _crop(self, zoom: float, offset: tuple[float, float]) -> Crop:
        size = self.bucket.height, self.bucket.width
        return Crop(*size, zoom, offset, self.data.max_upscale, self.bucket.channels)

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((*self._key, *key))


def _eval_order(source: Source, rows: np.ndarray) -> np.ndarray:
    """The rows of a source's table in the order of evaluation."""
    hashes = name_hashes(mapped.taken(source.table["relative_path"], rows))
    by_hash = np.argsort(hashes, kind="stable")
    places = np.arange(len(rows))
    scenes = np.empty(len(rows), np.int64)  # of the rows before, those of the same path
    scenes[by_hash] = places - np.searchsorted(hashes[by_hash], hashes[by_hash])
    return rows[np.lexsort((places, hashes, scenes))]


@lru_cache(maxsize=64)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)
