"""Exports a trained VAE: weights, configuration, model card and StableHLO, verified against its source."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from tqdm import tqdm

from vaejax import cli, files
from vaejax.codec.codec import Codec
from vaejax.codec.load import (
    CONFIG,
    DTYPES,
    WEIGHTS,
    TrainedVAE,
    load_export,
    load_vae,
    read_export_config,
)
from vaejax.codec.save import numpy_dtype, save_vae
from vaejax.config import Config
from vaejax.errors import InputError
from vaejax.evaluate.codecs.vae import VaeCodec
from vaejax.evaluate.latent_statistics import of_run
from vaejax.export import model_card, stablehlo, verify
from vaejax.files import atomic_folder, expand_home
from vaejax.models.autoencoder import Autoencoder
from vaejax.rundir import latent_statistics
from vaejax.rundir.folder import RunFolder

CHECKPOINT, CARD = "checkpoint", "README.md"
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


class Exported(NamedTuple):
    """A finished export.

    Attributes:
      name: the folder, as the user named it.
      config: contents of the export's config.json, and 'rounding', the result of `verify.check_codec`.
      size: total size of all files in bytes.
      seconds: duration of the export.
    """

    name: str
    config: dict[str, Any]
    size: int
    seconds: float


def export(
    name: str,
    out: str,
    *,
    step: int | None = None,
    dtype: str = "float32",
    shapes: Sequence[str] = (),
    scores: str = "",
) -> Exported:
    """Exports a trained VAE, reads the export again and compares it with its source.

    Args:
      name: a run, its checkpoints/STEP, or an export.
      out: the output folder: a new or empty one, or an earlier export, which is replaced.
      step: step of a completed checkpoint; default: the one in `name`, else the latest.
      dtype: dtype of the weights, 'float32' or 'bfloat16'.
      shapes: shapes of StableHLO programs, 'TxHxW' each.
      scores: results.json of vaejax.evaluate. '' takes the scores of the source: RUN/results.json if it has
        scores of this step, or those that an export records.

    Raises:
      InputError: if an input cannot be read, or `out` cannot be written.
      TrainingFailed: if the export differs from its source; the export is then deleted.
    """
    begin = time.monotonic()
    if dtype not in DTYPES:
        raise InputError(f"--dtype={dtype}; accepted: {' or '.join(DTYPES)}")
    folder = pathlib.Path(expand_home(out)).resolve()
    _check_replaceable(folder, out, name)
    vae = load_vae(name, step)
    parsed = stablehlo.parse_shapes(shapes, vae.architecture)
    source = _source(name, vae, scores)
    with (
        cli.writing(out, "OUT"),
        tqdm(total=2 + 2 * len(parsed), file=sys.stderr, leave=False) as progress,
        atomic_folder(folder) as unfinished,
    ):
        progress.set_description("weights")
        config = _write(unfinished, source, dtype, parsed, progress)
        exported = load_export(str(unfinished), files.read_json(unfinished / CONFIG))
        config["rounding"] = _verify(unfinished, source.vae, exported, config, progress)
        (unfinished / CARD).write_text(model_card.text(folder.name, config), encoding="utf-8")
        size = sum(path.stat().st_size for path in unfinished.rglob("*") if path.is_file())
    return Exported(out, config, size, time.monotonic() - begin)


def _check_replaceable(folder: pathlib.Path, out: str, name: str) -> None:
    """Raises InputError if `folder` is the folder of the source `name` or has files that no export wrote.

    `out` is `folder` as the user wrote it, for the message.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"OUT={out}: {error.strerror}; accepted: a writable folder") from error
    accepted = "accepted: a new or empty folder, or an earlier export, which is replaced"
    if folder == RunFolder(name).path.resolve():
        raise InputError(f"OUT={out}: the same folder as RUN; {accepted}")
    if names and read_export_config(str(folder)) is None:
        raise InputError(f"OUT={out}: contains other files, such as {names[0]}; {accepted}")
    others = [
        name
        for name in names
        if name not in (CONFIG, WEIGHTS, CARD, CHECKPOINT) and not name.endswith(".stablehlo")
    ]
    if others:
        raise InputError(f"OUT={out}: contains {others[0]}, which no export wrote; {accepted}")


def _source(name: str, vae: TrainedVAE, scores: str) -> Source:
    export_config = read_export_config(name)
    if export_config is not None:
        statistics, training = export_config["latents"], export_config.get("training", {})
        known = export_config.get("scores")
    else:
        statistics, training = _statistics(name, vae), _training(RunFolder(name).read_config())
        known = None
    if statistics["mean"] is not None:
        mean, std = (np.asarray(statistics[key], np.float32) for key in ("mean", "std"))
        vae = vae._replace(mean=mean, std=std)
    if scores:
        known = read_scores(pathlib.Path(expand_home(scores)), vae)
    elif export_config is None and (path := RunFolder(name).path / "results.json").exists():
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


def _write(
    folder: pathlib.Path, source: Source, dtype: str, shapes: Sequence[stablehlo.Shape], progress: tqdm
) -> dict[str, Any]:
    """Writes everything but the model card; returns the contents of config.json."""
    vae, kind = source.vae, numpy_dtype(dtype)
    params = jax.tree.map(lambda leaf: np.array(leaf, kind, order="C"), vae.params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / CHECKPOINT, params)
    rounded = vae._replace(params=jax.tree.map(lambda leaf: leaf.astype(np.float32), params))
    programs = []
    for shape in shapes:
        progress.update()
        progress.set_description(f"StableHLO {stablehlo.shape_name(shape)}")
        programs.append(stablehlo.write(folder, rounded, shape))
    further = {"latents": source.latents, "training": source.training}
    return save_vae(folder, vae, dtype, further | {"scores": source.scores, "stablehlo": programs})


def _verify(
    folder: pathlib.Path, source: TrainedVAE, exported: TrainedVAE, config: dict[str, Any], progress: tqdm
) -> dict[str, float]:
    """Compares the export's weights and codec with the source, and its StableHLO programs with its codec.

    Returns the result of `verify.check_codec`.
    """
    progress.update()
    progress.set_description("verifying")
    dtype, codec = config["weights"]["dtype"], Codec(exported)
    verify.check_weights(source, exported, folder / CHECKPOINT, dtype)
    rounding = verify.check_codec(Codec(source), codec, dtype)
    for programs in config["stablehlo"]:
        progress.update()
        progress.set_description(f"verifying StableHLO {stablehlo.shape_name(programs['shape'])}")
        encode, decode = (stablehlo.read(folder / programs[kind]["file"]) for kind in ("encode", "decode"))
        verify.check_programs(codec, encode, decode, programs)
    progress.update()
    return rounding
