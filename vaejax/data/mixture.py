"""Which source each training sample of a bucket comes from. Weights may change when a run resumes.

RUN/mixture.json has, for each bucket, the weights of its sources and the sample from which they hold. So the
samples that each source has given by then can be counted, and a source goes on with its next one after the
weights have changed.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import grain

from vaejax import files
from vaejax.errors import InputError

ENDLESS = 2**62


class Stretch(NamedTuple):
    """The weights of the samples from one on.

    Attributes:
      start: the first sample of a bucket, counted from 0.
      weights: weights of the sources that fit the bucket, by label.
    """

    start: int
    weights: dict[str, float]


def continued(history: Sequence[Stretch], position: int, weights: Mapping[str, float]) -> list[Stretch]:
    """The history of a bucket whose samples from `position` on have these weights.

    Args:
      history: the history of the run so far; [] for a bucket without samples.
      position: number of samples that the bucket has drawn.
      weights: weights by label, from now on.
    """
    kept = [stretch for stretch in history if stretch.start < position]
    if kept and kept[-1].weights == dict(weights):
        return kept
    return [*kept, Stretch(position if kept else 0, dict(weights))]


class Mixture:
    """The source of each sample of a bucket; sources alternate in proportion to their weights.

    Args:
      history: stretches in order; the first one starts at 0.
    """

    def __init__(self, history: Sequence[Stretch]):
        self._history = list(history)
        self._patterns = [_pattern(stretch.weights) for stretch in history]
        self._given: list[dict[str, int]] = [{}]  # samples that each source gave before each stretch
        for stretch, pattern, after in zip(history, self._patterns, history[1:], strict=False):
            given = dict(self._given[-1])
            for label, count in _counts(pattern, stretch.weights, after.start - stretch.start).items():
                given[label] = given.get(label, 0) + count
            self._given.append(given)

    def __getitem__(self, index: int) -> tuple[str, int]:
        """The label of the source of sample `index`, and the number of samples that it gave before."""
        number = max(n for n, stretch in enumerate(self._history) if stretch.start <= index)
        label, drawn = self._patterns[number][index - self._history[number].start]
        return label, self._given[number].get(label, 0) + drawn


def read(path: str | os.PathLike, saved: Mapping[str, Any] | None) -> dict[str, list[Stretch]]:
    """Reads the histories of all buckets of a run.

    Args:
      path: RUN/mixture.json.
      saved: configuration of the checkpoint from which the run resumes, as nested dictionaries, whose weights
        hold if the file is missing: earlier versions did not write it. None for a new run.

    Raises:
      InputError: if the file is damaged.
    """
    try:
        stored = files.read_json(path)
        return {name: [Stretch(start, weights) for start, weights in rows] for name, rows in stored.items()}
    except FileNotFoundError:
        data = saved["data"] if saved else {"buckets": {}}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged; accepted: the file that the run wrote, or no file") from error
    listed = {"media": {}} if data.get("media") else data.get("sources", {})
    weights = {label: float(fields.get("weight", 1.0)) for label, fields in listed.items()}
    weights = {label: weight for label, weight in weights.items() if weight}
    return {name: [Stretch(0, weights)] for name in data["buckets"]}


def write(path: str | os.PathLike, histories: Mapping[str, Sequence[Stretch]]) -> None:
    """Writes the histories of all buckets of a run."""
    files.write_json(path, {name: [list(stretch) for stretch in rows] for name, rows in histories.items()})


def _pattern(weights: Mapping[str, float]) -> Any:
    """The endless sequence of (label, samples of that source before)."""
    parts = [grain.MapDataset.range(ENDLESS).map(partial(_labelled, label)) for label in weights]
    return grain.MapDataset.mix(parts, list(weights.values()))


def _labelled(label: str, drawn: int) -> tuple[str, int]:
    return label, drawn


def _counts(pattern: Any, weights: Mapping[str, float], length: int) -> dict[str, int]:
    """The number of samples that each source gives among the first `length`."""
    counts: dict[str, int] = {}
    for index in range(length - 1, -1, -1):  # ends after about as many steps as the rarest source is rare
        label, drawn = pattern[index]
        counts.setdefault(label, drawn + 1)
        if len(counts) == len(weights):
            break
    return counts
