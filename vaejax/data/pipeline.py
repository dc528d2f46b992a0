"""Batches of decoded samples.

Worker processes decode the training stream, unless data.workers is 0. Threads decode everything else.
"""

import bisect
import itertools
import re
import shutil
import signal
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grain
import numpy as np
from absl import flags

from vaejax.data import parent
from vaejax.data.bucket import Bucket, draws, scheduled
from vaejax.data.mixture import Stretch, continued
from vaejax.data.sampler import Sample, Sampler
from vaejax.data.sources import check_buckets
from vaejax.data.table import Source
from vaejax.errors import InputError, TrainingFailed
from vaejax.runtime.host import cores

if TYPE_CHECKING:
    from vaejax.config.schema import DataConfig


@dataclass(frozen=True)
class Batch:
    """Samples of one bucket: this host's part of a global batch, or a batch of `read_batches`.

    Attributes:
      frames: uint8, (B, T, H, W, C), with B the number of samples on this host.
      rows: index of each sample in the global batch, or in the sampler of `read_batches`; increasing.
      names: name of each sample, see `Sample`.
      skipped: (path, reason) of each unreadable file that a sample replaces.
      latents: float32, (b, t, h, w, c), if the source has a cache of latents; else None.
    """

    frames: np.ndarray
    rows: Sequence[int]
    names: list[str]
    skipped: list[tuple[str, str]]
    latents: np.ndarray | None = None


@dataclass(frozen=True)
class StepBatches:
    """The batches of one training step.

    Attributes:
      step: number of the step, counted from 0.
      batches: {bucket name: batch}, for the buckets that are scheduled at this step.
    """

    step: int
    batches: dict[str, Batch]


class _SampleSequence:
    """The training samples of one host, from all buckets, in the order of the steps.

    With a single sequence, one pool of workers serves all buckets, and several workers share one step. The
    step and bucket of a sample are computed from its index, so a resumed run need not replay earlier steps.
    """

    def __init__(
        self,
        samplers: Mapping[str, Sampler],
        buckets: tuple[Bucket, ...],
        seed: int,
        start_step: int,
        positions: Mapping[str, int],
        rows: Mapping[str, Sequence[int]],
    ):
        self._samplers, self._buckets, self._seed = samplers, buckets, seed
        self._start, self._positions, self.rows = start_step, positions, rows
        self.histories: Mapping[str, Sequence[Stretch]] = {}

    def plan(self, step: int) -> list[tuple[Bucket, int]]:
        """The (bucket, index in the host's batch) of each sample of a step, in order.

        Grain assigns samples to its workers round-robin. The list of each step is rotated by a pseudorandom
        amount, because otherwise one worker would always decode the clips and another the photos.
        """
        drawn = scheduled(self._buckets, self._seed, step)
        elements = [(bucket, i) for bucket in drawn for i in range(self._local_batch(bucket))]
        turn = zlib.crc32(f"{self._seed}/{step}".encode()) % len(elements)
        return elements[turn:] + elements[:turn]

    @property
    def most(self) -> int:
        """The largest number of samples that this host reads for a step."""
        return sum(map(self._local_batch, self._buckets))

    def most_bytes(self, steps: int, workers: int) -> int:
        """Bytes of the samples that exist at once if workers decode `steps` steps ahead.

        These are in the workers' queues, in the parent's, and in work.
        """
        sizes = [(self._local_batch(b), b.pixels * b.channels) for b in self._buckets]
        return 2 * steps * sum(n * size for n, size in sizes) + 4 * workers * max(size for _, size in sizes)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Sample:
        # These bound the search: a step draws at most all buckets, and at least those with every = 1.
        least = sum(self._local_batch(bucket) for bucket in self._buckets if bucket.every == 1)
        steps = range(self._start + index // self.most, self._start + index // least + 1)
        step = steps[bisect.bisect_right(steps, index, key=self._before) - 1]
        bucket, i = self.plan(step)[index - self._before(step)]
        first = self._positions[bucket.name] + self._drawn(bucket, step) * bucket.batch
        sample = self._samplers[bucket.name][first + self.rows[bucket.name][i]]
        parent.end_if_dead()  # not later, because Grain then copies the sample to shared memory
        return sample

    def _local_batch(self, bucket: Bucket) -> int:
        """The number of samples of a bucket's batch that this host reads."""
        return len(self.rows[bucket.name])

    def _before(self, step: int) -> int:
        """The number of this host's samples from the start step up to `step`, exclusive."""
        return sum(self._drawn(bucket, step) * self._local_batch(bucket) for bucket in self._buckets)

    def _drawn(self, bucket: Bucket, step: int) -> int:
        """The number of batches that a bucket draws from the start step up to `step`, exclusive."""
        return draws(bucket, self._seed, step) - draws(bucket, self._seed, self._start)


class TrainStream:
    """An endless iterator of `StepBatches`; `close` or the end of its context ends the worker processes.

    Attributes:
      histories: {bucket name: the weights of its sources so far}; see `vaejax.data.mixture`.
    """

    def __init__(self, sequence: _SampleSequence, start_step: int, data: "DataConfig"):
        """Prepares the stream; the workers start when the first step is requested.

        Args:
          sequence: the samples of this host.
          start_step: the first step.
          data: config.data.
        """
        self._sequence, self._step = sequence, start_step
        self.histories = sequence.histories
        dataset: Any = grain.MapDataset.source(sequence)
        if data.workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain requires parsed flags, which only absl.app provides
            parent.announce()
            dataset = dataset.to_iter_dataset(grain.ReadOptions(0, 0))
            # Fewer than an update's samples would leave workers idle while the update is computed.
            ahead = -(-data.prefetch * sequence.most // data.workers)
            dataset = _fit_shared_memory(
                dataset, sequence.most_bytes(data.prefetch, data.workers)
            ).mp_prefetch(
                grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=ahead),
                worker_init_fn=_start_worker,
            )
        else:
            dataset = dataset.to_iter_dataset(_threads(data.prefetch * sequence.most))
        self._samples = iter(dataset)

    def __iter__(self) -> "TrainStream":
        return self

    def __next__(self) -> StepBatches:
        samples: dict[str, dict[int, Sample]] = {}
        for bucket, i in self._sequence.plan(self._step):
            samples.setdefault(bucket.name, {})[i] = self._sample()
        self._step += 1
        batches = {
            name: _stack([part[i] for i in sorted(part)], self._sequence.rows[name])
            for name, part in sorted(samples.items())
        }
        return StepBatches(self._step - 1, batches)

    def _sample(self) -> Sample:
        try:
            return next(self._samples)
        except InputError as error:  # files vanished during the run; wrong settings fail earlier
            raise TrainingFailed(
                f"{error}; the last checkpoint is complete; run the same command to continue from it"
            ) from error
        except RuntimeError as error:
            if match := re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error)):
                raise TrainingFailed(
                    f"a data loading process was killed (exit code {match[1]}"
                    f"{'; out of memory?' if match[1] == '-9' else ''}); the last checkpoint is complete;"
                    " run the same command to continue from it"
                ) from error
            raise

    def close(self) -> None:
        """Ends the worker processes."""
        self._samples.close()

    def __enter__(self) -> "TrainStream":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def train_stream(
    sources: Sequence[Source],
    buckets: Sequence[Bucket],
    data: "DataConfig",
    *,
    seed: int,
    start_step: int = 0,
    positions: Mapping[str, int] | None = None,
    rows: Mapping[str, Sequence[int]] | None = None,
    histories: Mapping[str, Sequence[Stretch]] | None = None,
) -> TrainStream:
    """Creates the stream of training batches; the samples do not depend on the number of workers or hosts.

    Args:
      sources: data sources, from `open_sources`.
      buckets: buckets, from `parse_buckets`; at least one has every = 1.
      data: config.data.
      seed: seed of the schedule, the shuffles and the crops.
      start_step: the first step.
      positions: {bucket name: number of samples already drawn}; default: as many as scheduled before
        `start_step`. After a rollback the number is larger, so that training continues with new samples. The
        number need not be a multiple of the batch size, which may have changed.
      rows: {bucket name: indices, in the global batch, of the samples that this host reads}; default: all.
      histories: {bucket name: the weights of the sources so far}; see `vaejax.data.mixture`.

    Raises:
      InputError: if no training sample fits a bucket.
    """
    check_buckets(sources, buckets, data)
    drawn = {bucket.name: draws(bucket, seed, start_step) * bucket.batch for bucket in buckets}
    drawn |= positions or {}
    samplers = {bucket.name: Sampler(sources, bucket, "train", data, seed) for bucket in buckets}
    mixed = {}
    for name, sampler in samplers.items():
        mixed[name] = continued((histories or {}).get(name, ()), drawn[name], sampler.weights)
        sampler.mix(mixed[name])
    rows = rows or {bucket.name: range(bucket.batch) for bucket in buckets}
    sequence = _SampleSequence(samplers, tuple(buckets), seed, start_step, drawn, rows)
    sequence.histories = mixed
    return TrainStream(sequence, start_step, data)


def read_batches(sampler: Sampler, count: int, batch: int) -> Iterator[Batch]:
    """Reads the first `count` samples of a sampler in order; threads decode them ahead of time.

    Args:
      sampler: the samples; an empty sampler gives no batches.
      count: number of samples.
      batch: samples per batch; the last batch may have fewer.

    Yields:
      Batches whose `rows` are sample indices: `sampler[row]` reads the same sample again.

    Raises:
      InputError: if the files can no longer be read.
    """
    if sampler.empty:
        return
    samples = iter(grain.MapDataset.source(sampler)[:count].to_iter_dataset(_threads(batch)))
    first = 0
    while part := list(itertools.islice(samples, batch)):
        yield _stack(part, range(first, first + len(part)))
        first += len(part)


def eval_batches(
    sources: Sequence[Source], bucket: Bucket, data: "DataConfig", samples: int, batch: int | None = None
) -> Iterator[Batch]:
    """Batches of the first `samples` held-out samples of a bucket, always the same.

    If no held-out sample fits the bucket, there are no batches.

    Args:
      sources: data sources, from `open_sources`.
      bucket: the shape of a sample.
      data: config.data.
      samples: number of samples; if there are fewer files, a file gives several crops.
      batch: samples per batch; default: that of the bucket. The last batch may have fewer.
    """
    return read_batches(Sampler(sources, bucket, "eval", data), samples, batch or bucket.batch)


def train_samples(
    sources: Sequence[Source], bucket: Bucket, data: "DataConfig", n: int, seed: int
) -> Iterator[np.ndarray]:
    """The first `n` training samples of a bucket, uint8 (1, T, H, W, C) each."""
    for batch in read_batches(Sampler(sources, bucket, "train", data, seed), n, 1):
        yield batch.frames


def _threads(ahead: int) -> grain.ReadOptions:
    """Threads that decode `ahead` samples in advance, at least one each."""
    threads = min(4, cores())  # threads suffice, because decoders release the GIL most of the time
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead))


def _stack(samples: Sequence[Sample], rows: Sequence[int]) -> Batch:
    frames, names = np.stack([sample.frames for sample in samples]), [sample.name for sample in samples]
    skipped = [(path, reason) for sample in samples for path, reason in sample.skipped]
    latents = [sample.latents for sample in samples if sample.latents is not None]
    return Batch(frames, rows, names, skipped, np.stack(latents) if latents else None)


def _fit_shared_memory(dataset: Any, size: int) -> Any:
    """Passes samples through pipes if /dev/shm has less than `size` bytes; containers often have 64 MB."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:  # not Linux
        return dataset
    if free >= size:
        return dataset
    options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    return grain.experimental.WithOptionsIterDataset(dataset, options)


def _start_worker(index: int, count: int) -> None:
    """Makes a worker end with its parent, and ignore Ctrl-C and SIGTERM, so that the parent can save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent.watch()
