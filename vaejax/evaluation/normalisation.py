"""The statistics of a run's training latents, by which a diffusion user normalises latents; computed once."""

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from vaejax.data import pipeline, sources
from vaejax.data.bucket import Bucket, parse_buckets
from vaejax.data.order import Order
from vaejax.data.rows import Source
from vaejax.errors import InputError
from vaejax.evaluation import latents, run
from vaejax.evaluation.run_codec import RunCodec

SAMPLES = 256  # of each bucket, where the run does not say how many
BATCH, PIXELS = 8, 2**21  # of a device at once, at most, but one sample at least


def of_run(codec: RunCodec, name: str, step: int) -> dict | None:
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
    config = run.config(name)
    try:
        opened = sources.open_sources(config.data)
        buckets = parse_buckets(config.data.buckets, codec.spatial_factor, codec.temporal_factor)
        statistics = of_training_samples(codec, opened, buckets, config) | {"step": step}
    except InputError as error:
        print(f"no statistics of the training latents of {name}: {error}", file=sys.stderr)
        return None
    try:
        latents.store(folder, step, statistics)
    except InputError as error:  # a run that others may only read
        print(f"statistics of latents are not kept: {error}", file=sys.stderr)
    return statistics


def of_training_samples(
    codec: RunCodec, opened: Sequence[Source], buckets: Sequence[Bucket], config: ConfigDict
) -> dict:
    """The statistics of the latents of the first training samples of every bucket.

    Args:
      codec: the run's.
      opened: its sources.
      buckets: its buckets.
      config: its configuration.

    Returns:
      'mean', 'std' and 'buckets', as `of_run`.

    Raises:
      InputError: if they cannot be read.
    """
    found, count = {}, config.eval.latent_samples or SAMPLES
    for bucket in buckets:
        samples = pipeline.train_samples(opened, bucket, config.data, count, config.seed)
        silent = jax.process_index() > 0
        counted = tqdm(
            samples, f"training latents, {bucket.name}", count, leave=False, file=sys.stderr, disable=silent
        )
        each = max(1, min(BATCH, PIXELS // bucket.pixels))
        found[bucket.name] = latents.of(codec, _batched(counted, each * codec.shards))
    mean, std = latents.pooled(list(found.values()))
    return {"mean": mean, "std": std, "buckets": found}


def training_samples(name: str, buckets: Iterable[Bucket]) -> Iterator[np.ndarray]:
    """Training samples (1, T, H, W, 3) uint8 of a run, for buckets that need not be its own.

    Of its own buckets they are those to which the linear codec was fitted whose PSNR its metrics tell.
    """
    config = run.config(name)
    opened, count = sources.open_sources(config.data), config.eval.linear_samples or SAMPLES
    for bucket in buckets:
        if not Order(opened, bucket, "train", config.data).empty:
            yield from pipeline.train_samples(opened, bucket, config.data, count, config.seed)


def _batched(samples: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    samples = iter(samples)
    while batch := list(itertools.islice(samples, size)):
        yield np.concatenate(batch)
