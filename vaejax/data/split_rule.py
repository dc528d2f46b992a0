"""The split of a large collection by a rule: files whose hash is below a threshold are held out.

It is the split that `vaejax.data.split.split_files` makes of new files, without an entry for each of them.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

MANY_CLIPS = 10  # with at least this many clips, whole clips are held out; with fewer, the end of each
HELD_OUT_TAIL = 0.2  # with fewer than MANY_CLIPS clips, this last fraction of each clip is held out
# A split maps the path of each file to the time, in seconds, from which the file is held out.
WHOLE, NOTHING = 0.0, math.inf
LARGE = 100_000  # files of a folder that is split by a rule, at least
HASH = "hash"  # column with the hash of a file's name, from `name_hashes`


class Hashes(NamedTuple):
    """The hashes of a collection's photos or clips.

    Attributes:
      count: number of files.
      least: the lowest hash, in [0, 1); 1 without files.
      most: the highest; 0 without files.
    """

    count: int
    least: float
    most: float

    @classmethod
    def of(cls, hashes: np.ndarray) -> "Hashes":
        """Describes the hashes of files, float64 (n,)."""
        return cls(len(hashes), float(hashes.min(initial=1.0)), float(hashes.max(initial=0.0)))

    def below(self, holdout: float) -> float:
        """The threshold that holds out `holdout` of the files: at least one of several, and never all."""
        if self.count and self.most < holdout:
            return self.most
        if self.count > 1 and self.least >= holdout > 0:
            return math.nextafter(self.least, 1.0)
        return holdout


class Facts(NamedTuple):
    """Facts about a large collection, stored with its table for later starts.

    Attributes:
      summary: lines for the console.
      unreadable: (path, reason) of each unreadable file.
      photos: hashes of the readable photos.
      clips: hashes of the readable clips.
      repeated: number of files that are left out, because other paths reach them.
    """

    summary: str
    unreadable: Sequence[tuple[str, str]]
    photos: Hashes
    clips: Hashes
    repeated: int


class Rule(NamedTuple):
    """Which files of a folder are held out, also of those that are added later.

    Attributes:
      photos: photos with a hash below this one are held out.
      clips: so are clips; None holds out the last fifth of each clip instead.
    """

    photos: float
    clips: float | None

    @classmethod
    def of(cls, photos: Hashes, clips: Hashes, holdout: float) -> "Rule":
        """The rule for the files that a folder has when it is first split."""
        cut = holdout > 0 and clips.count < MANY_CLIPS
        return cls(photos.below(holdout), None if cut else clips.below(holdout))

    def seams(self, index: pa.Table) -> np.ndarray:
        """The time from which each file is held out, in seconds, float64 (n,).

        Args:
          index: a table with the columns frames, duration and HASH.
        """
        hashes = index[HASH].to_numpy()
        clip = index["frames"].fill_null(1).to_numpy() > 1
        if self.clips is None:
            tails = (1 - HELD_OUT_TAIL) * index["duration"].fill_null(0.0).to_numpy()
        else:
            tails = np.where(hashes < self.clips, WHOLE, NOTHING)
        return np.where(clip, tails, np.where(hashes < self.photos, WHOLE, NOTHING))

    def seam(self, file: Mapping[str, Any]) -> float:
        """The time for one file; see `seams`.

        Args:
          file: path, name, frames and duration, as in a media index.
        """
        below = self.clips if file["frames"] > 1 else self.photos
        if below is None:
            return (1 - HELD_OUT_TAIL) * file["duration"]
        return WHOLE if path_hash(file.get("name") or file["path"]) < below else NOTHING


def path_hash(path: str) -> float:
    """A hash of a path, as a number in [0, 1)."""
    digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def name_hashes(names: pa.ChunkedArray) -> np.ndarray:
    """The hash of each file by its name in the collection, float64 (n,)."""
    pieces = pa.table({"name": names}).to_batches(max_chunksize=2**16)
    hashes = (path_hash(name) for piece in pieces for name in piece["name"].to_pylist())
    return np.fromiter(hashes, np.float64)
