"""The statistics of a run's training latents, by which a diffusion user normalises latents; computed once."""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from vaejax.codec import load as trained
from vaejax.data import pipeline, sources
from vaejax.data.bucket import Bucket, parse_buckets
from vaejax.data.sampler import Order
from vaejax.data.table import Source
from vaejax.errors import InputError
from vaejax.evaluate import latent_metrics as latents
from vaejax.evaluate.codecs.vae import RunCodec
from vaejax.rundir.folder import RunFolder
from vaejax.runtime import distributed as multihost

SAMPLES = 256  # of each bucket, where the run does not say how many
BATCH, PIXELS = 8, 2**21  # of a device at once, at most, but one sample at least


def of_run(codec: RunCodec, name: str, step: int) -> dict | None:
    """The statistics of the latents of a run's training samples; kept with the checkpoint once computed.

    Args:
      codec: the run's, with a posterior.
      name: 'RUN', 'RUN/checkpoints/STEP', or the folder of an export, which brings them along.
      step: of the checkpoint that the codec has.

    Returns:
      'mean' and 'std', (c,), over all buckets, each counting the same; 'buckets': of each what
      `latents.Moments.statistics` gives; 'step'. None, told on stderr, where the run's training samples
      cannot be read, or an export has none.
    """
    exported = trained.exported_config(name)
    if exported is not None:
        if exported["latents"]["mean"] is None:
            print(f"{name} was exported without statistics of its training latents", file=sys.stderr)
            return None
        return exported["latents"]
    folder = RunFolder(name).path
    stored = latents.load(folder, step)
    if stored is not None:
        return stored
    config = RunFolder(name).read_config()
    try:
        opened = sources.open_sources(config.data)
        buckets = parse_buckets(config.data.buckets, codec.spatial_factor, codec.temporal_factor)
    except InputError as error:
        print(f"no statistics of the training latents of {name}: {error}", file=sys.stderr)
        return None
    return keep(codec, opened, buckets, config, folder, step)


def keep(
    codec: RunCodec,
    opened: Sequence[Source],
    buckets: Sequence[Bucket],
    config: ConfigDict,
    folder: str | os.PathLike,
    step: int,
) -> dict | None:
    """Computes the statistics, by all processes of the codec's mesh together, and keeps them.

    Args:
      codec: the run's.
      opened: its sources.
      buckets: its buckets.
      config: its configuration.
      folder: its --workdir.
      step: of a completed checkpoint.

    Returns:
      As `of_run`: a run that is done does not fail because of its statistics.
    """
    found, count, is_main = {}, config.eval.latent_samples or SAMPLES, jax.process_index() == 0
    try:
        for bucket in buckets:
            samples = pipeline.train_samples(opened, bucket, config.data, count, config.seed)
            samples = multihost.lockstep(samples)
            doing = f"training latents, {bucket.name}"
            samples = tqdm(samples, doing, count, leave=False, file=sys.stderr, disable=not is_main)
            each = max(1, min(BATCH, PIXELS // bucket.pixels))
            found[bucket.name] = latents.of(codec, _batched(samples, each * codec.shards))
    except InputError as error:
        if is_main:
            print(f"no statistics of the training latents of {folder}: {error}", file=sys.stderr)
        return None
    mean, std = latents.pooled(list(found.values()))
    statistics = {"mean": mean, "std": std, "buckets": found, "step": step}
    try:
        if is_main:
            latents.store(folder, step, statistics)
    except InputError as error:  # a run that others may only read
        print(f"statistics of latents are not kept: {error}", file=sys.stderr)
    return statistics


def training_samples(name: str, buckets: Iterable[Bucket]) -> Iterator[np.ndarray]:
    """Training samples (1, T, H, W, 3) uint8 of a run, for buckets that need not be its own.

    Of its own buckets they are those to which the linear codec was fitted whose PSNR its metrics tell.
    """
    config = RunFolder(name).read_config()
    opened, count = sources.open_sources(config.data), config.eval.linear_samples or SAMPLES
    for bucket in buckets:
        if not Order(opened, bucket, "train", config.data).empty:
            yield from pipeline.train_samples(opened, bucket, config.data, count, config.seed)


def _batched(samples: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    samples = iter(samples)
    while batch := list(itertools.islice(samples, size)):
        yield np.concatenate(batch)
