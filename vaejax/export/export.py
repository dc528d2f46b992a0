"""What vaejax.export writes: a trained VAE as others read it, compared with what it was made of."""

import dataclasses
import math
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from tqdm import tqdm

from vaejax import __version__, cli, files
from vaejax.codec.codec import Codec
from vaejax.codec.load import (
    CONFIG,
    DTYPES,
    FORMAT,
    WEIGHTS,
    TrainedVAE,
    fingerprint,
    flatten,
    load_export,
    load_vae,
    read_export_config,
)
from vaejax.errors import InputError
from vaejax.evaluate import latent_statistics as normalisation
from vaejax.evaluate.codecs.vae import VaeCodec
from vaejax.export import model_card, stablehlo
from vaejax.export import verify as compared
from vaejax.files import atomic_folder
from vaejax.models.autoencoder import Autoencoder
from vaejax.rundir import latent_statistics
from vaejax.rundir.folder import RunFolder

CHECKPOINT, CARD = "checkpoint", "README.md"
LATENTS = ("mean", "std")
HELD_OUT = "held out by the run"  # as vaejax.evaluate says


class Source(NamedTuple):
    """What is exported.

    Attributes:
      trained: the autoencoder.
      latents: statistics of its training latents, at least 'mean' and 'std', which may be None.
      training: how it was trained, in short.
      scores: what an evaluation found, see `scores_of`; None without one.
    """

    trained: TrainedVAE
    latents: dict[str, Any]
    training: dict[str, Any]
    scores: dict[str, Any] | None


def export(
    name: str,
    out: str,
    *,
    step: int | None = None,
    dtype: str = "float32",
    shapes: Sequence[str] = (),
    scores: str = "",
) -> str:
    """Exports a trained VAE, reads everything again and compares it.

    Args:
      name: a run, its checkpoints/STEP, or an export.
      out: the folder to write, a new one or an earlier export, which it replaces.
      step: of a completed checkpoint; None takes the name's, or the last.
      dtype: of the weights, 'float32' or 'bfloat16'.
      shapes: 'TxHxW', of StableHLO programs.
      scores: results.json of vaejax.evaluate; '' takes RUN/results.json where it is of this step.

    Returns:
      One line: what was written, and how it was compared.

    Raises:
      InputError: for what cannot be read or written, before anything is computed where that can be known.
      TrainingFailed: if what was written is not what was meant; nothing is left of it.
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype={dtype}; accepted: {' or '.join(DTYPES)}")
    folder = pathlib.Path(out).expanduser().resolve()
    _check_free(folder, out, name)
    trained = load_vae(name, step)
    wanted = stablehlo.parsed(shapes, trained.architecture)
    source = _source(name, trained, scores)
    with (
        cli.writing(out, "OUT"),
        tqdm(total=2 + 2 * len(wanted), file=sys.stderr, leave=False) as progress,
        atomic_folder(folder) as unfinished,
    ):
        progress.set_description("weights")
        told = _write(unfinished, source, dtype, wanted, progress)
        exported = load_export(str(unfinished), read_export_config(str(unfinished)))
        told["rounding"] = _compare(unfinished, source.trained, exported, told, progress)
        (unfinished / CARD).write_text(model_card.text(folder.name, told), encoding="utf-8")
        size = sum(path.stat().st_size for path in unfinished.rglob("*") if path.is_file())
    programs = f", StableHLO of {' and '.join(map(_named, wanted))}" if wanted else ""
    return (
        f"{out}: {size / 1e6:.1f} MB, step {trained.step}, {dtype}{programs}; read again and compared with"
        f" {name}: {_how_alike(told)}"
    )


def _check_free(folder: pathlib.Path, out: str, name: str) -> None:
    """Raises InputError for a folder that holds what no export wrote, and for the source itself."""
    try:
        there = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"OUT={out}: {error.strerror}; accepted: a folder to write") from error
    accepted = "accepted: a new or empty folder, or an earlier export, which it replaces"
    if folder == RunFolder(name).path.resolve():
        raise InputError(f"OUT={out}: that is what is exported; {accepted}")
    if there and read_export_config(str(folder)) is None:
        raise InputError(f"OUT={out}: holds files, such as {there[0]}; {accepted}")
    others = [one for one in there if one not in (CONFIG, WEIGHTS, CARD, CHECKPOINT)]
    others = [one for one in others if not one.endswith(".stablehlo")]
    if others:
        raise InputError(f"OUT={out}: holds {others[0]}, which no export wrote; {accepted}")


def _source(name: str, trained: TrainedVAE, scores: str) -> Source:
    found = read_export_config(name)
    if found:
        statistics, training = found["latents"], found.get("training", {})
        known = found.get("scores")
    else:
        statistics, training = _statistics(name, trained), _training(RunFolder(name).read_config())
        known = None
    if statistics["mean"] is not None:
        mean, std = (np.asarray(statistics[key], np.float32) for key in LATENTS)
        trained = trained._replace(mean=mean, std=std)
    if scores:
        known = scores_of(pathlib.Path(scores).expanduser(), trained)
    elif not found and (beside := RunFolder(name).path / "results.json").exists():
        try:
            known = scores_of(beside, trained)
        except InputError as error:
            print(f"the model card has no scores: {error}", file=sys.stderr)
    return Source(trained, statistics, training, known)


def _statistics(name: str, trained: TrainedVAE) -> dict[str, Any]:
    if trained.mean is not None:
        return latent_statistics.load(RunFolder(name).path, trained.step)
    codec = VaeCodec(name, Autoencoder(trained.architecture), trained.params)
    found = normalisation.of_run(codec, name, trained.step)
    if found is None:
        print(f"{name} is exported without statistics of its latents", file=sys.stderr)
    return found or dict.fromkeys(LATENTS)


def _training(config: ConfigDict) -> dict[str, Any]:
    """How a run was trained, without the names of its files."""
    loss = config.loss
    weights = {name: weight for name, weight in loss.weights.items() if weight}
    told = {
        "steps": config.steps,
        "seed": config.seed,
        "buckets": {name: one.batch for name, one in config.data.buckets.items() if one.get("batch")},
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
        told["perceptual"] = loss.perceptual.network
    if "adversarial" in weights:
        told["discriminators"] = list(loss.adversarial.discriminators)
    return told


def scores_of(path: pathlib.Path, trained: TrainedVAE) -> dict[str, Any]:
    """The scores of a model that vaejax.evaluate wrote.

    Returns:
      'buckets': {BUCKET: {NAME: {'value', 'low', 'high', 'samples'}}}; 'data', 'cut' and 'versions': what
      they depend on.

    Raises:
      InputError: if it cannot be read, or tells of no model of this step with these latents.
    """
    accepted = "accepted: results.json of vaejax.evaluate --checkpoint=RUN"
    try:
        found = files.read_json(path)
        name = next((one for one in found["settings"]["codecs"] if _is_of(found, one, trained)), None)
        if name is None:
            raise InputError(f"{path}: no scores of this model at step {trained.step}; {accepted}")
        data = found["settings"]["data"]
        return {
            "buckets": {bucket: found["results"][bucket][name]["scores"] for bucket in found["buckets"]},
            # Where a set of media lies is nobody's business who reads the export.
            "data": "what training held out" if data == HELD_OUT else pathlib.PurePath(data).name,
            "cut": found["settings"]["cut"],
            "versions": found["settings"]["versions"],
        }
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {accepted}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: tells of no scores; {accepted}") from error


def _is_of(found: dict, name: str, trained: TrainedVAE) -> bool:
    """Whether a codec of results.json is this model: by its step, and its latents where both know them."""
    codec = found["settings"]["codecs"][name]
    if codec["kind"] != "vaejax" or codec["step"] != trained.step:
        return False
    known = found.get("training_latents", {}).get(name)
    if known is None or trained.mean is None:
        return True
    return np.array_equal(np.asarray(known["mean"], np.float32), trained.mean)


def _write(
    folder: pathlib.Path, source: Source, dtype: str, shapes: Sequence[stablehlo.Shape], progress: tqdm
) -> dict[str, Any]:
    """Writes all but the model card; returns what config.json tells."""
    trained = source.trained
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    params = jax.tree.map(lambda leaf: np.array(leaf, kind, order="C"), trained.params)
    metadata = {"format": FORMAT, "model": trained.fingerprint, "step": str(trained.step)}
    save_file(flatten(params), folder / WEIGHTS, metadata)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / CHECKPOINT, params)
    stored = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    programs = []
    for shape in shapes:
        progress.update()
        progress.set_description(f"StableHLO {_named(shape)}")
        programs.append(stablehlo.write(folder, trained._replace(params=stored), shape))
    told = {
        "format": FORMAT,
        "vaejax": __version__,
        "jax": jax.__version__,
        "architecture": dataclasses.asdict(trained.architecture),
        "step": trained.step,
        "fingerprint": trained.fingerprint,
        "weights": {
            "file": WEIGHTS,
            "dtype": dtype,
            "fingerprint": fingerprint(stored),
            "parameters": {half: _count(tree) for half, tree in params.items()},
        },
        "latents": source.latents,
        "training": source.training,
        "scores": source.scores,
        "stablehlo": programs,
    }
    files.write_json(folder / CONFIG, told)
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # which safetensors lets nobody else read
    return told


def _compare(
    folder: pathlib.Path, source: TrainedVAE, exported: TrainedVAE, told: dict[str, Any], progress: tqdm
) -> dict[str, float]:
    progress.update()
    progress.set_description("comparing")
    dtype, found = told["weights"]["dtype"], Codec(exported)
    compared.check_weights(source, exported, folder / CHECKPOINT, dtype)
    rounding = compared.check_codec(Codec(source), found, dtype)
    for programs in told["stablehlo"]:
        progress.update()
        progress.set_description(f"comparing StableHLO {_named(programs['shape'])}")
        read = (stablehlo.read(folder / programs[kind]["file"]) for kind in ("encode", "decode"))
        compared.check_programs(found, *read, programs)
    progress.update()
    return rounding


def _how_alike(told: dict[str, Any]) -> str:
    if not told["rounding"]:
        return "bit for bit the same"
    psnr = told["rounding"]
    return (
        f"its weights, rounded; a test clip comes back at {psnr['exported']:.2f} dB, of the source at"
        f" {psnr['source']:.2f} dB, and the two are {psnr['between']:.1f} dB from each other"
    )


def _named(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _count(tree: dict) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
