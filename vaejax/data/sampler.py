"""The order of samples: a pure function of (seed, bucket, sample index), whoever computes it."""

import sys
import zlib
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import grain
import numpy as np

from vaejax.data import media
from vaejax.data.bucket import Bucket
from vaejax.data.table import Crop, Source, Unfit, candidates, share
from vaejax.errors import InputError, one_line

UNREADABLE = 20  # files tried for one sample that may be unreadable
ATTEMPTS = 200  # draws for one sample, files that were tried before and records that do not fit included
FEW = 4096  # rows: below it Grain's shuffle is slow (2.4 ms a sample at 8 rows, 9 µs at 10 000)


class Sample(NamedTuple):
    """One sample; a tree of arrays to Grain, which hands its frames over in shared memory.

    Attributes:
      frames: uint8, (T, H, W, C).
      name: 'path@start', start in seconds.
      bad: (path, reason) of each file that could not be read and that this sample replaces.
    """

    frames: np.ndarray
    name: str
    bad: tuple[tuple[str, str], ...] = ()


class Order:
    """The endless sequence of a bucket's samples: `order[i]` reads sample i.

    Every source is shuffled anew in each of its epochs; sources take turns in proportion to their weights;
    the cut is drawn from (seed, bucket, i). The held-out order is fixed: it has no seed, cuts the middle of
    every file first, and when it runs out of files it cuts them again elsewhere.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        bucket: Bucket,
        split: str,
        data: Any,
        seed: int = 0,
        middle_first: bool = True,
    ):
        """Finds the rows of `split` ('train' or 'eval') that fit; `empty` says that none does.

        Without `middle_first` held-out samples are cut as widely as training samples from the first on.
        """
        self._first_cut = 0 if middle_first else 1
        self.bucket, self.data, self.split = bucket, data, split
        self._key = (seed % 2**64, zlib.crc32(bucket.name.encode()))
        self._sources = tuple(sources)
        self._rows = [candidates(source, bucket, split, data) for source in sources]
        used = [number for number, rows in enumerate(self._rows) if len(rows)]
        self.empty = not used
        if split == "eval":
            for number in used:
                paths = sources[number].table["path"]
                self._rows[number] = np.array(
                    sorted(self._rows[number], key=lambda i, p=paths: share(p[i].as_py()))
                )
        if used:
            weights = [sources[number].weight for number in used]
            self._mixture = grain.MapDataset.mix([self._part(number) for number in used], weights)

    def _part(self, number: int) -> grain.MapDataset:
        """One source as an endless data set of (source, place among its rows, times it was read before)."""
        count = len(self._rows[number])
        if self.split == "eval":
            return grain.MapDataset.range(sys.maxsize).map(partial(_eval_place, number, count))
        seed = zlib.crc32(f"{self._key}/{number}".encode())
        if count < FEW:
            return grain.MapDataset.range(sys.maxsize).map(partial(_few_place, number, count, seed))
        return grain.MapDataset.range(count).seed(seed).shuffle().repeat().map(partial(_train_place, number))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Sample:
        """Reads sample `index`, or a substitute if it cannot be read.

        Raises:
          InputError: if UNREADABLE files cannot be read, or ATTEMPTS draws find none that does.
          RuntimeError: naming the file, if reading it fails in a way that files should not.
        """
        number, place, epoch = self._mixture[index]
        source, rows = self._sources[number], self._rows[number]
        held_out = self.split == "eval"
        crop = _varied(epoch + self._first_cut, self.data.zoom) if held_out else self._drawn(index)
        bad, unfit, reason = {}, set(), ""
        for attempt in range(1, ATTEMPTS + 1):
            row = source.row(int(rows[place]))
            if row.path not in bad and row.path not in unfit:
                try:
                    frames, start = source.read(row, self.bucket, self.data, crop)
                    return Sample(frames, f"{row.path}@{start:.3f}", tuple(bad.items()))
                except (media.Unreadable, OSError) as error:
                    bad[row.path] = one_line(error)
                    reason = f"{row.path}: {bad[row.path]}"
                except Unfit as error:
                    unfit.add(row.path)
                    reason = f"{row.path}: {error}: does not fit"
                except Exception as error:
                    raise RuntimeError(f"{row.path}: {type(error).__name__}: {error}") from error
            if len(bad) == UNREADABLE:
                break
            place = self._random(index, attempt).integers(len(rows))
        tried = len(bad) + len(unfit)
        raise InputError(
            f"data.buckets.{self.bucket.name}: none of {tried} files tried could be read, the last"
            f" {reason}; accepted: sources with more files that can be read and that fit"
        )

    def _drawn(self, index: int) -> Crop:
        random = self._random(index)
        position, zoom, *offset = random.random(4)
        # The zoom is uniform in its logarithm.
        return Crop(position, float(self.data.zoom) ** zoom, tuple(offset))

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng((*self._key, *key))


def _train_place(number: int, place: int) -> tuple[int, int, int]:
    return number, place, 0


def _few_place(number: int, count: int, seed: int, i: int) -> tuple[int, int, int]:
    return number, int(_permutation(count, seed, i // count)[i % count]), 0


@lru_cache(maxsize=64)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def _eval_place(number: int, count: int, i: int) -> tuple[int, int, int]:
    return number, i % count, i // count


def _varied(epoch: int, zoom: float) -> Crop:
    """The middle at first; then cuts that fill the room evenly: a Kronecker sequence of three irrationals."""
    if not epoch:
        return Crop()
    first, second, third = (0.5 + epoch * np.array([0.8191725, 0.6710436, 0.5497005])) % 1
    return Crop(first, float(zoom) ** ((first + second) % 1), (second, third))
