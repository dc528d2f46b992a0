"""The programs of a run besides its updates: evaluation, drift and the probe. They need memory too."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding
from jax.stages import Traced

from vaejax.codec.load import TrainedVAE
from vaejax.config import Config
from vaejax.data.bucket import Bucket
from vaejax.evaluate import drift, during_training
from vaejax.networks import lpips
from vaejax.probe import fit, score
from vaejax.probe.presets import PRESETS
from vaejax.runtime import mesh as sharding
from vaejax.train.programs import Programs


def programs_of(
    config: Config, programs: Programs, buckets: Sequence[Bucket], known: TrainedVAE | None
) -> Iterator[tuple[str, Callable[[], Traced]]]:
    """Yields the name of each program, such as 'evaluate image_64x64', and a function that traces it.

    Args:
      config: configuration of the run.
      programs: programs of its updates.
      buckets: buckets of the run.
      known: the model that the run starts from or learns from.
    """
    for bucket in buckets:
        yield f"evaluate {bucket.name}", functools.partial(_scores, config, programs, bucket)
        if known:
            yield f"drift {bucket.name}", functools.partial(_drift, config, programs, bucket, known)
    if config.probe.every:
        bucket = next(b for b in buckets if b.name == (config.probe.bucket or buckets[0].name))
        yield "fit the probe", functools.partial(_probe, config, programs, bucket)


def _scores(config: Config, programs: Programs, bucket: Bucket) -> Traced:
    """The program that scores a batch; see `during_training.score`."""
    program = during_training.scoring(config, programs.model, programs.objective, programs.mesh)
    networks = _replicated(programs, lpips.for_scores(config.loss, programs.networks.get("lpips", {})))
    state = programs.state
    return program.trace(state.whole(state.ema), networks, programs.frames(bucket, bucket.at_once))


def _drift(config: Config, programs: Programs, bucket: Bucket, known: TrainedVAE) -> Traced:
    """The program that compares a model with the one that it started from; see `drift.compare`."""
    program = drift.comparing(programs.model, known, "encoder" in config.optim.train, programs.mesh)
    params = programs.state.whole(programs.state.ema)["autoencoder"]
    start = _replicated(programs, known.params)
    return program.trace(params, start, programs.frames(bucket, bucket.at_once))


def _probe(config: Config, programs: Programs, bucket: Bucket) -> Traced:
    """The program that fits the probe's transformer, on one device; see `probe.fit`."""
    preset = PRESETS[config.probe.preset]
    classes = 1  # each further class adds one row of an embedding
    model = score.transformer(preset, bucket.frames > 1, classes)
    size = bucket.frames, bucket.height, bucket.width
    place = SingleDeviceSharding(programs.mesh.devices.flat[0])
    return fit.traced(model, preset, programs.model.architecture.latent_shape(*size), place)


def _replicated(programs: Programs, tree: Any) -> Any:
    """The shapes of arrays that every device holds whole."""
    shapes, place = jax.eval_shape(lambda: tree), sharding.replicated(programs.mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
