"""The statistics of a run's training latents, by which a diffusion user normalises latents; computed once."""

import itertools
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from tqdm import tqdm

from vaejax.data import pipeline, sources
from vaejax.data.bucket import Bucket, parse_buckets
from vaejax.data.order import Order
from vaejax.errors import InputError
from vaejax.evaluation import latents, run
from vaejax.evaluation.codec import Codec

SAMPLES = 256  # of each bucket, where the run does not say how many fit its linear codec
BATCH = 8


def of_run(codec: Codec, name: str, step: int) -> dict | None:
    """The statistics of the latents of a run's training samples; kept with the checkpoint once computed.

    Args:
      codec: the run's, with a posterior.
      name: 'RUN' or 'RUN/checkpoints/STEP'.
      step: of the checkpoint that the codec has.

    Returns:
      'mean' and 'std', (c,), over all buckets, each counting the same; 'buckets': of each what
      `latents.Moments.statistics` gives; 'step'. None, told on stderr, where the run's training samples
      cannot be read.
    """
    folder = run.folder(name)
    stored = latents.load(folder, step)
    if stored is not None:
        return stored
    try:
        found = {bucket: latents.of(codec, batches) for bucket, batches in _training_batches(name)}
    except InputError as error:
        print(f"no statistics of the training latents of {name}: {error}", file=sys.stderr)
        return None
    mean, std = latents.pooled(list(found.values()))
    statistics = {"mean": mean, "std": std, "buckets": found, "step": step}
    try:
        latents.store(folder, step, statistics)
    except InputError as error:  # a run that others may only read
        print(f"statistics of latents are not kept: {error}", file=sys.stderr)
    return statistics


def _training_batches(name: str) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
    """Batches (B, T, H, W, 3) uint8 of the first training samples of every bucket that the run trains on."""
    config = run.config(name)
    opened = sources.open_sources(config.data)
    factors = config.model.spatial_factor, config.model.temporal_factor
    for bucket in parse_buckets(config.data.buckets, *factors):
        count = config.eval.linear_samples or SAMPLES
        samples = pipeline.train_samples(opened, bucket, config.data, count, config.seed)
        counted = tqdm(samples, f"training latents, {bucket.name}", count, leave=False, file=sys.stderr)
        yield bucket.name, _batched(counted)


def training_samples(name: str, buckets: Iterable[Bucket]) -> Iterator[np.ndarray]:
    """Training samples (1, T, H, W, 3) uint8 of a run, for buckets that need not be its own.

    Of its own buckets they are those to which the linear codec was fitted whose PSNR its metrics tell.
    """
    config = run.config(name)
    opened, count = sources.open_sources(config.data), config.eval.linear_samples or SAMPLES
    for bucket in buckets:
        if not Order(opened, bucket, "train", config.data).empty:
            yield from pipeline.train_samples(opened, bucket, config.data, count, config.seed)


def _batched(samples: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    samples = iter(samples)
    while batch := list(itertools.islice(samples, BATCH)):
        yield np.concatenate(batch)
