"""What is exported: a trained VAE, its latent statistics, the settings of its training and its scores."""

import dataclasses
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np

from vaejax import files
from vaejax.codec.load import Params, TrainedVAE, is_run, read_export_config
from vaejax.codec.save import describe
from vaejax.config import Config
from vaejax.errors import InputError
from vaejax.evaluate.codecs.vae import VaeCodec
from vaejax.evaluate.latent_statistics import of_run
from vaejax.files import expand_home
from vaejax.models.autoencoder import Autoencoder
from vaejax.rundir import latent_statistics
from vaejax.rundir.folder import RunFolder

HELD_OUT = "held out by the run"  # value of 'data' in results.json of vaejax.evaluate


class Source(NamedTuple):
    """A trained VAE, and what its export records about it.

    Attributes:
      vae: the trained VAE.
      latents: statistics of its training latents; 'mean' and 'std' are None if unknown.
      training: the main settings of its training.
      scores: the scores of an evaluation, see `read_scores`; None without one.
    """

    vae: TrainedVAE
    latents: dict[str, Any]
    training: dict[str, Any]
    scores: dict[str, Any] | None


def record(source: Source, params: Params, dtype: str) -> dict[str, Any]:
    """What every export records: the model, its weights `params` as stored in `dtype`, and its training."""
    further = {"latents": source.latents, "training": source.training, "scores": source.scores}
    return describe(source.vae, params, dtype) | further


def read_source(name: str, vae: TrainedVAE, scores: str) -> Source:
    """Reads what the run or export `name` records about its VAE; for `scores` see `export`."""
    export_config = read_export_config(name)
    if export_config is not None:
        statistics, training = export_config["latents"], export_config.get("training", {})
        known = export_config.get("scores")
    elif is_run(name):
        statistics, training = _statistics(name, vae), _training(RunFolder(name).read_config())
        known = None
    else:
        mean, std = (None if values is None else values.tolist() for values in (vae.mean, vae.std))
        statistics, training, known = {"mean": mean, "std": std}, {}, None
    if statistics["mean"] is not None:
        mean, std = (np.asarray(statistics[key], np.float32) for key in ("mean", "std"))
        vae = vae._replace(mean=mean, std=std)
    if scores:
        known = read_scores(pathlib.Path(expand_home(scores)), vae)
    elif is_run(name) and (path := RunFolder(name).path / "results.json").exists():
        try:
            known = read_scores(path, vae)
        except InputError as error:
            print(f"the model card has no scores: {error}", file=sys.stderr)
    return Source(vae, statistics, training, known)


def _statistics(name: str, vae: TrainedVAE) -> dict[str, Any]:
    """The statistics of a run's training latents, computed if the checkpoint has none.

    If they cannot be computed, 'mean' and 'std' are None.
    """
    stored = latent_statistics.load(RunFolder(name).path, vae.step) if vae.mean is not None else None
    if stored is not None:
        return stored
    codec = VaeCodec(name, Autoencoder(vae.architecture), vae.params)
    computed = of_run(codec, name, vae.step)
    if computed is None:
        print(
            f"warning: {name} is exported without latent statistics; vaejax encode will refuse the export."
            f" Run vaejax evaluate --checkpoint={name}, then export again",
            file=sys.stderr,
        )
        return {"mean": None, "std": None}
    return computed


def _training(config: Config) -> dict[str, Any]:
    """The main settings of a run, without file names, which may be private."""
    loss = config.loss
    weights = {name: weight for name, weight in sorted(dataclasses.asdict(loss.weights).items()) if weight}
    buckets = {name: bucket["batch"] for name, bucket in config.data.buckets.items() if bucket.get("batch")}
    training = {
        "steps": config.steps,
        "seed": config.seed,
        "buckets": buckets,
        "fps": config.data.fps,
        "size": config.model.size,
        "likelihood": loss.likelihood,
        "normalization": loss.normalization,
        "weights": weights,
        "learning_rate": config.optim.learning_rate,
        "agc": config.optim.agc,
        "ema_decay": config.ema.decay,
    }
    if not config.model.family:
        del training["size"]  # the architecture was that of init
    if "perceptual" in weights:
        training["perceptual"] = loss.perceptual.network
    if "adversarial" in weights:
        training["discriminators"] = list(loss.adversarial.discriminators)
    return training


def read_scores(path: pathlib.Path, vae: TrainedVAE) -> dict[str, Any]:
    """Reads the scores of a VAE from results.json of vaejax.evaluate.

    Returns:
      A dictionary with 'buckets': {BUCKET: {NAME: {'value', 'low', 'high', 'samples'}}}, and the 'data',
      'cut' (how samples were cut from it) and 'versions' of the evaluation.

    Raises:
      InputError: if the file cannot be read, or none of its codecs is this VAE at this step.
    """
    accepted = "accepted: results.json of vaejax.evaluate --checkpoint=RUN"
    try:
        results = files.read_json(path)
        settings = results["settings"]
        name = next((codec for codec in settings["codecs"] if _is_same(results, codec, vae)), None)
        if name is None:
            raise InputError(f"{path}: no scores of this model at step {vae.step}; {accepted}")
        data = settings["data"]
        # A published export must not reveal the paths of the machine that made it.
        data = "the held-out part of the training data" if data == HELD_OUT else pathlib.PurePath(data).name
        return {
            "buckets": {bucket: results["results"][bucket][name]["scores"] for bucket in results["buckets"]},
            "data": data,
            "cut": settings["cut"],
            "versions": settings["versions"],
        }
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {accepted}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: contains no scores; {accepted}") from error


def _is_same(results: dict[str, Any], name: str, vae: TrainedVAE) -> bool:
    """Whether a codec of results.json is this VAE: equal steps and, if both are known, equal latent means."""
    codec = results["settings"]["codecs"][name]
    if codec["kind"] != "vaejax" or codec["step"] != vae.step:
        return False
    statistics = results.get("training_latents", {}).get(name)
    if statistics is None or vae.mean is None:
        return True
    return np.array_equal(np.asarray(statistics["mean"], np.float32), vae.mean)
