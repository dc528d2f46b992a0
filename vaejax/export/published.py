"""Exports a trained VAE in the form in which it was published: for diffusers, or under Wan's own names."""

import importlib.util
import json
import pathlib
import shutil
import time
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from vaejax import cli, files
from vaejax.codec.codec import Codec
from vaejax.codec.load import CONFIG, DTYPES, TrainedVAE, load_vae
from vaejax.codec.published import WEIGHTS, read_published
from vaejax.codec.save import rounded
from vaejax.errors import InputError, TrainingFailed
from vaejax.export import in_torch, published_card, verify
from vaejax.export.folder import CARD, ORIGINAL, Exported, check_replaceable
from vaejax.export.source import Source, read_source, record
from vaejax.files import atomic_folder, expand_home
from vaejax.models import wan_files, wan_names
from vaejax.models.wan import WanDesign
from vaejax.networks import torch_writer
from vaejax.rundir.folder import RunFolder


def export(
    name: str, out: str, form: str, *, step: int | None = None, dtype: str = "float32", scores: str = ""
) -> Exported:
    """Exports a VAE of the family wan, reads the export again and compares it with its source.

    Args:
      name: a run, its checkpoints/STEP, an export, or a published VAE.
      out: the output folder: a new or empty one, or an earlier export of any format, which is replaced.
      form: 'diffusers' for a folder that AutoencoderKLWan.from_pretrained loads; 'original' for a .pth file
        with Wan's own names.
      step: step of a completed checkpoint; default: the one in `name`, else the latest.
      dtype: dtype of the weights, 'float32' or 'bfloat16'.
      scores: results.json of vaejax.evaluate, as for `vaejax.export.export.export`.

    Returns:
      The export. Its `config` is the record of the source, 'rounding' (the result of `verify.check_codec`)
      and, for diffusers, 'compared' (that of `in_torch.differences`; {} if diffusers is not installed).

    Raises:
      InputError: if an input cannot be read or is of another family, or `out` cannot be written.
      TrainingFailed: if the export differs from its source; the export is then deleted.
    """
    begin = time.monotonic()
    if dtype not in DTYPES:
        raise InputError(f"--dtype={dtype}; accepted: {' or '.join(DTYPES)}")
    folder = pathlib.Path(expand_home(out)).resolve()
    check_replaceable(folder, out, name)
    source = _with_published_statistics(name, read_source(name, load_vae(name, step), scores))
    encoder, _ = _designs(source.vae, form)
    params = rounded(source.vae.params, dtype)
    with cli.writing(out, "OUT"), atomic_folder(folder) as unfinished:
        leaves: dict[Any, Any] = traverse_util.flatten_dict(params)
        tensors = {
            wan_names.to_diffusers(path) if form == "diffusers" else wan_names.to_original(path, encoder): (
                np.ascontiguousarray(wan_names.to_torch(path, leaf))
            )
            for path, leaf in leaves.items()
        }
        if form == "diffusers":
            _write_folder(unfinished, source, tensors)
        else:
            torch_writer.write(unfinished / ORIGINAL, tensors)
        stored = source.vae._replace(params=rounded(params, "float32"))
        _check(unfinished / ORIGINAL if form == "original" else unfinished, stored)
        recorded = record(source, params, dtype)
        if form == "diffusers":
            recorded["compared"] = _compared(unfinished, stored)
        recorded["rounding"] = verify.check_codec(Codec(source.vae), Codec(stored), dtype)
        recorded["form"] = form
        (unfinished / CARD).write_text(published_card.text(folder.name, recorded), encoding="utf-8")
        size = sum(path.stat().st_size for path in unfinished.iterdir())
    return Exported(out, recorded, size, time.monotonic() - begin)


def _with_published_statistics(name: str, source: Source) -> Source:
    """The source with the latent statistics of the VAE that its run started from, if they are known.

    Diffusion models use those, although a run whose encoder trains computes statistics of its own.
    """
    start = RunFolder(name).init / CONFIG
    if start.is_file():
        latents = json.loads(start.read_bytes())["latents"]
        if latents["mean"] is not None:
            return source._replace(latents=latents | {"inherited": True})
    return source


def _designs(vae: TrainedVAE, form: str) -> tuple[WanDesign, WanDesign]:
    encoder, decoder = vae.architecture.encoder, vae.architecture.decoder
    if not isinstance(encoder, WanDesign) or not isinstance(decoder, WanDesign):
        raise InputError(
            f"--format={form}; accepted: a model of family wan; otherwise --format=vaejax, or --format=torch"
            " if both halves are vaejax's own"
        )
    return encoder, decoder


def _write_folder(folder: pathlib.Path, source: Source, tensors: dict[str, np.ndarray]) -> None:
    latents = source.latents
    try:
        designs = _designs(source.vae, "diffusers")
        config = wan_files.to_config(*designs, latents["mean"], latents["std"])
    except ValueError as error:
        raise InputError(f"--format=diffusers: {error}; accepted: --format=vaejax") from error
    files.write_json(folder / CONFIG, config)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets only the owner read the file


def _check(path: pathlib.Path, stored: TrainedVAE) -> None:
    """Reads the export, and checks that architecture and parameters are those of the source, bit for bit."""
    architecture, params, _ = read_published(str(path))
    if architecture != stored.architecture.replace(remat=(), dtype="float32"):
        raise TrainingFailed(f"{path.name}: describes another architecture; nothing was written")
    expected: dict[Any, Any] = traverse_util.flatten_dict(stored.params)
    read: dict[Any, Any] = traverse_util.flatten_dict(params)
    for key, leaf in read.items():
        if leaf.tobytes() != np.ascontiguousarray(expected[key]).tobytes():
            raise TrainingFailed(f"{path.name}: {'.'.join(key)} differs from that of the source")


def _compared(folder: pathlib.Path, stored: TrainedVAE) -> dict[str, float]:
    """The result of `in_torch.differences` for diffusers; {} if diffusers is not installed."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("diffusers") is None:
        return {}
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    theirs: Any = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32)
    return in_torch.differences(theirs.eval(), stored)
