"""The pipeline: updates for training and held-out batches, decoded ahead of time by worker processes."""

import bisect
import itertools
import os
import re
import shutil
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from absl import flags

from vaejax.data.bucket import Bucket, draws, scheduled
from vaejax.data.sampler import Order, Sample
from vaejax.data.sources import check_buckets
from vaejax.data.table import Source
from vaejax.errors import InputError, TrainingFailed
from vaejax.runtime import host as machine


@dataclass(frozen=True)
class Batch:
    """This host's part of one bucket's batch.

    Attributes:
      frames: uint8, (B, T, H, W, C), B the samples of the bucket's batch that this host holds.
      rows: the place of each in that batch, in order.
      names: 'path@start' of each sample.
      bad: (path, reason) of files that could not be read and were replaced.
    """

    frames: np.ndarray
    rows: Sequence[int]
    names: list[str]
    bad: list[tuple[str, str]]


@dataclass(frozen=True)
class Update:
    """What one training step learns from: a batch of every bucket scheduled for it, by name."""

    step: int
    batches: dict[str, Batch]


class _Slots:
    """The samples of a host, one after the other, update by update.

    One sequence for all buckets lets one pool of workers serve them, and several workers one update. Any
    element's place follows from its number by the schedule's closed form, so nothing is ever replayed.
    """

    def __init__(self, orders, buckets, seed, start_step, positions, rows):
        self._orders, self._buckets, self._seed = orders, buckets, seed
        self._start, self._positions, self.rows = start_step, positions, rows

    def part(self, bucket: Bucket) -> int:
        """How many samples of a batch are this host's."""
        return len(self.rows[bucket.name])

    def plan(self, step: int) -> list[tuple[Bucket, int]]:
        """The (bucket, place in the batch) of each element of a step, in order.

        Grain deals the elements to its workers in turn. Each step's list is turned by another amount, lest
        one worker always gets the clips, another the photos.
        """
        places = [
            (b, place) for b in scheduled(self._buckets, self._seed, step) for place in range(self.part(b))
        ]
        turn = zlib.crc32(f"{self._seed}/{step}".encode()) % len(places)
        return places[turn:] + places[:turn]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, element: int) -> Sample:
        # A step draws at most every bucket, and at least those of every = 1.
        most = sum(map(self.part, self._buckets))
        least = sum(self.part(bucket) for bucket in self._buckets if bucket.every == 1)
        steps = range(self._start + element // most, self._start + element // least + 1)
        step = steps[bisect.bisect_right(steps, element, key=self._before) - 1]
        bucket, place = self.plan(step)[element - self._before(step)]
        drawn = self._positions[bucket.name] + self._drawn(bucket, step)
        return self._orders[bucket.name][drawn * bucket.batch + self.rows[bucket.name][place]]

    def _before(self, step: int) -> int:
        """Elements of the steps from the start to before `step`."""
        return sum(self._drawn(bucket, step) * self.part(bucket) for bucket in self._buckets)

    def _drawn(self, bucket: Bucket, step: int) -> int:
        return draws(bucket, self._seed, step) - draws(bucket, self._seed, self._start)


class UpdateStream:
    """Endless `Update`s; closing it, or leaving it as a context, ends the worker processes."""

    def __init__(self, slots: _Slots, start_step: int, largest: int, data: Any):
        """Starts nothing yet: the workers start with the first update."""
        self._slots, self._step = slots, start_step
        dataset = grain.MapDataset.source(slots)
        if data.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # which only absl.app does, and Grain asks for
            dataset = _with_room(dataset.to_iter_dataset(grain.ReadOptions(0, 0)), data, largest).mp_prefetch(
                grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=data.prefetch),
                worker_init_fn=_start_worker,
            )
        else:
            dataset = dataset.to_iter_dataset(_threads(data))
        self._samples = iter(dataset)

    def __iter__(self) -> "UpdateStream":
        return self

    def __next__(self) -> Update:
        plan = self._slots.plan(self._step)
        samples = {bucket.name: [None] * self._slots.part(bucket) for bucket, _ in plan}
        for bucket, place in plan:
            samples[bucket.name][place] = self._sample()
        self._step += 1
        rows = self._slots.rows
        return Update(self._step - 1, {name: _stack(samples[name], rows[name]) for name in sorted(samples)})

    def _sample(self) -> Any:
        try:
            return next(self._samples)
        except InputError as error:  # what could be read when the run began: a mount that went, no mistake
            raise TrainingFailed(
                f"{error}; the last checkpoint is whole, run the same command to go on"
            ) from error
        except RuntimeError as error:
            if found := re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error)):
                raise TrainingFailed(
                    f"a process that loads samples was ended from outside (exit code {found[1]}"
                    f"{'; out of memory?' if found[1] == '-9' else ''}); the last checkpoint is whole,"
                    " run the same command to go on"
                ) from error
            raise

    def close(self) -> None:
        """Ends the worker processes."""
        self._samples.close()

    def __enter__(self) -> "UpdateStream":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def train_stream(
    sources: Sequence[Source],
    buckets: Sequence[Bucket],
    data: Any,
    *,
    seed: int,
    start_step: int = 0,
    positions: Mapping[str, int] | None = None,
    rows: Mapping[str, Sequence[int]] | None = None,
) -> UpdateStream:
    """The updates from `start_step` on: the same for every number of workers and hosts.

    Args:
      sources: from `open_sources`.
      buckets: from `parse_buckets`; at least one has every = 1.
      data: config.data.
      seed: of the schedule, the shuffles and the cuts.
      start_step: the step of the first update.
      positions: batches of each bucket, by name, drawn before `start_step`; by default as scheduled.
      rows: the samples of each bucket's batch, by name, that this host reads; by default all.

    Raises:
      InputError: if nothing fits a bucket.
    """
    check_buckets(sources, buckets, data)
    drawn = {bucket.name: draws(bucket, seed, start_step) for bucket in buckets} | dict(positions or {})
    orders = {bucket.name: Order(sources, bucket, "train", data, seed) for bucket in buckets}
    rows = rows or {bucket.name: range(bucket.batch) for bucket in buckets}
    slots = _Slots(orders, tuple(buckets), seed, start_step, drawn, rows)
    return UpdateStream(slots, start_step, 3 * max(bucket.pixels for bucket in buckets), data)


def eval_batches(
    sources: Sequence[Source], bucket: Bucket, data: Any, samples: int, batch: int | None = None
) -> Iterator[Batch]:
    """The first `samples` held-out samples of a bucket, always the same; none if nothing is held out for it.

    They take the files in turn; when those run out, other moments, zooms and places of the same files follow.

    Args:
      sources: from `open_sources`.
      bucket: the shape.
      data: config.data.
      samples: how many.
      batch: samples of a batch, the bucket's by default; the last may have fewer.
    """
    order = Order(sources, bucket, "eval", data)
    if order.empty:
        return
    decoded = in_threads(order, samples, data)
    while part := list(itertools.islice(decoded, batch or bucket.batch)):
        yield _stack(part, range(len(part)))


def train_samples(
    sources: Sequence[Source], bucket: Bucket, data: Any, n: int, seed: int
) -> Iterator[np.ndarray]:
    """The first `n` training samples of a bucket, uint8 (1, T, H, W, C) each."""
    for sample in in_threads(Order(sources, bucket, "train", data, seed), n, data):
        yield sample.frames[None]


def in_threads(order: Order, count: int, data: Any) -> Iterator[Sample]:
    """The first `count` samples of an order, decoded ahead of time by threads."""
    return iter(grain.MapDataset.source(order)[:count].to_iter_dataset(_threads(data)))


def _threads(data: Any) -> grain.ReadOptions:
    threads = min(4, machine.cores())  # decoders release the interpreter's lock most of the time
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads * data.prefetch)


def _stack(samples: Sequence[Sample], rows: Sequence[int]) -> Batch:
    frames, names = np.stack([sample.frames for sample in samples]), [sample.name for sample in samples]
    return Batch(frames, rows, names, [tuple(one) for sample in samples for one in sample.bad])


def _with_room(dataset: grain.IterDataset, data: Any, largest: int) -> grain.IterDataset:
    """Hands samples over in pipes where shared memory has no room: containers often have but 64 MB of it.

    `largest` is the size of the largest sample in bytes.
    """
    ahead = data.workers * (2 * data.prefetch + 2)  # ready in a worker's queue, in the parent's, and in hand
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:  # not Linux
        return dataset
    if free >= ahead * largest:
        return dataset
    options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    return grain.experimental.WithOptionsIterDataset(dataset, options)


def _start_worker(index: int, count: int) -> None:
    """Leaves Ctrl-C and SIGTERM to the parent, which saves first; ends with it, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
