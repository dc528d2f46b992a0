"""The channel statistics of a run's training latents, with which diffusion models normalize latents.

They are computed once per checkpoint and stored there.
"""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from tqdm import tqdm

from vaejax.codec import load as trained
from vaejax.data import pipeline, sources
from vaejax.data.bucket import Bucket, parse_buckets
from vaejax.data.sampler import Sampler
from vaejax.data.split import Split
from vaejax.data.table import Source
from vaejax.errors import InputError
from vaejax.evaluate import latent_metrics as latents
from vaejax.evaluate.codecs.vae import VaeCodec
from vaejax.rundir import latent_statistics as stored_statistics
from vaejax.rundir.folder import RunFolder
from vaejax.runtime import distributed

if TYPE_CHECKING:
    from vaejax.config.schema import Config

SAMPLES = 256  # samples per bucket by default, or if eval.latent_samples or eval.linear_samples is 0
# A batch has at most BATCH samples and PIXELS pixels per device, but always at least one sample per device.
BATCH, PIXELS = 8, 2**21


def of_run(codec: VaeCodec, name: str, step: int) -> dict | None:
    """The statistics of a run's training latents, loaded from the checkpoint or computed and stored there.

    The statistics of an export or a published VAE are read from it.

    Args:
      codec: codec of the run or export.
      name: 'RUN', 'RUN/checkpoints/STEP', the folder of an export, or a published VAE.
      step: step of the codec's checkpoint.

    Returns:
      A dictionary with 'mean' and 'std' of each channel, (c,), to which all buckets contribute equally;
      'buckets', the `LatentMoments.statistics` of each bucket; and 'step'. If the training samples cannot be
      read or the export has no statistics, prints a message to stderr and returns None.

    Raises:
      InputError: if the stored statistics are damaged.
    """
    exported = trained.read_export_config(name)
    if exported is not None:
        if exported["latents"]["mean"] is None:
            print(
                f"warning: {name}: exported without latent statistics, which encoding needs; run vaejax"
                " evaluate --checkpoint=RUN on its run, then export again",
                file=sys.stderr,
            )
            return None
        return exported["latents"]
    if not trained.is_run(name):
        return codec.latents
    folder = RunFolder(name).path
    stored = stored_statistics.load(folder, step)
    if stored is not None:
        return stored
    config = RunFolder(name).read_config()
    try:
        opened = sources.open_sources(config.data, Split.read(RunFolder(name).splits))
        factors = codec.spatial_factor, codec.temporal_factor
        buckets = parse_buckets(config.data.buckets, *factors, channels=config.model.pixel_channels)
    except InputError as error:
        print(
            f"warning: {name}: cannot compute the latent statistics, which encoding needs ({error})",
            file=sys.stderr,
        )
        return None
    return keep(codec, opened, buckets, config, folder, step)


def keep(
    codec: VaeCodec,
    opened: Sequence[Source],
    buckets: Sequence[Bucket],
    config: "Config",
    folder: str | os.PathLike,
    step: int,
) -> dict | None:
    """Computes the statistics and stores them in a checkpoint.

    All processes of the run call this function together.

    Args:
      codec: codec of the run.
      opened: data sources of the run, opened.
      buckets: buckets of the run.
      config: configuration of the run.
      folder: the run's --workdir.
      step: step of a completed checkpoint.

    Returns:
      A dictionary like that of `of_run`. If samples cannot be read, prints a message to stderr and returns
      None: a finished run must not fail for lack of statistics.
    """
    by_bucket, count = {}, config.eval.latent_samples or SAMPLES
    is_main = jax.process_index() == 0
    try:
        for bucket in buckets:
            samples = pipeline.train_samples(opened, bucket, config.data, count, config.seed)
            samples = distributed.lockstep(samples)
            label = f"statistics of training latents, {bucket.name}"
            quiet = None if is_main else True  # None shows the bar on a terminal only
            samples = tqdm(samples, label, count, leave=False, file=sys.stderr, disable=quiet)
            batch = max(1, min(BATCH, PIXELS // bucket.pixels)) * codec.shards
            by_bucket[bucket.name] = latents.measure(codec, _batched(samples, batch))
    except InputError as error:
        if is_main:
            print(
                f"warning: {folder}: cannot compute the latent statistics, which encoding needs ({error})",
                file=sys.stderr,
            )
        return None
    mean, std = latents.pooled(list(by_bucket.values()))
    statistics = {"mean": mean, "std": std, "buckets": by_bucket, "step": step}
    try:
        if is_main:
            stored_statistics.store(folder, step, statistics)
    except InputError as error:  # the run's folder may be read-only
        print(
            f"warning: cannot store the latent statistics, which encoding needs ({error})",
            file=sys.stderr,
        )
    return statistics


def training_samples(name: str, buckets: Iterable[Bucket]) -> Iterator[np.ndarray]:
    """Training samples of a run, (1, T, H, W, C) uint8, for buckets that may differ from the run's.

    For a bucket of the run, they are the samples to which the linear codec of the run's own evaluation is
    fitted, unless eval.linear_samples is 0. A bucket that no training sample fits is skipped.
    """
    config = RunFolder(name).read_config()
    opened = sources.open_sources(config.data, Split.read(RunFolder(name).splits))
    count = config.eval.linear_samples or SAMPLES
    for bucket in buckets:
        if not Sampler(opened, bucket, "train", config.data).empty:
            yield from pipeline.train_samples(opened, bucket, config.data, count, config.seed)


def _batched(samples: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    samples = iter(samples)
    while batch := list(itertools.islice(samples, size)):
        yield np.concatenate(batch)
