"""Exports a trained VAE for PyTorch: weights, configuration, a module of one file, and a model card.

The module is torch_autoencoder.py, copied as it is. This file translates names and layouts of parameters.
"""

import importlib.util
import pathlib
import re
import shutil
import time
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from vaejax import __version__, cli, files
from vaejax.codec.codec import Codec
from vaejax.codec.load import CONFIG, DTYPES, WEIGHTS, Params, TrainedVAE, flatten, load_vae
from vaejax.codec.save import rounded
from vaejax.errors import InputError, TrainingFailed
from vaejax.export import in_torch, torch_card, verify
from vaejax.export.folder import CARD, MODULE, TORCH_FORMAT, Exported, check_replaceable
from vaejax.export.source import Source, read_source, record
from vaejax.files import atomic_folder, expand_home
from vaejax.models.autoencoder import Architecture
from vaejax.models.vaejax import VaejaxDesign

# Names in Flax -> names in PyTorch.
_RENAMED = (
    (r"level_(\d+)_block_(\d+)", r"levels.\1.blocks.\2"),
    (r"(down|up)_(\d+)\.", r"levels.\2.\1."),
    (r"\.(norm_[01])\.norm\.scale$", r".\1.weight"),
    (r"\.(norm_[01])\.norm\.bias$", r".\1.bias"),
    (r"\.kernel$", ".weight"),
)


def export(
    name: str, out: str, *, step: int | None = None, dtype: str = "float32", scores: str = ""
) -> Exported:
    """Exports a trained VAE for PyTorch, reads the export again and compares it with its source.

    If PyTorch is installed, latents and pixels are compared, otherwise the weights alone.

    Args:
      name: a run, its checkpoints/STEP, or an export of the default format.
      out: the output folder: a new or empty one, or an earlier export of any format, which is replaced.
      step: step of a completed checkpoint; default: the one in `name`, else the latest.
      dtype: dtype of the weights, 'float32' or 'bfloat16'.
      scores: results.json of vaejax.evaluate, as for `vaejax.export.export.export`.

    Returns:
      The export. Its `config` is the record of the source, 'rounding' (the result of `verify.check_codec`)
      and 'compared' (that of `compare`).

    Raises:
      InputError: if an input cannot be read or is of another family, or `out` cannot be written.
      TrainingFailed: if the export differs from its source; the export is then deleted.
    """
    begin = time.monotonic()
    if dtype not in DTYPES:
        raise InputError(f"--dtype={dtype}; accepted: {' or '.join(DTYPES)}")
    folder = pathlib.Path(expand_home(out)).resolve()
    check_replaceable(folder, out, name)
    source = read_source(name, load_vae(name, step), scores)
    params = rounded(source.vae.params, dtype)
    with cli.writing(out, "OUT"), atomic_folder(folder) as unfinished:
        write(unfinished, source, params)
        check_weights(unfinished, params)
        stored = source.vae._replace(params=rounded(params, "float32"))
        recorded = record(source, params, dtype)
        recorded["compared"] = compare(unfinished, stored)
        rounding = verify.check_codec(Codec(source.vae), Codec(stored), dtype) if dtype == "bfloat16" else {}
        recorded["rounding"] = rounding
        (unfinished / CARD).write_text(torch_card.text(folder.name, recorded), encoding="utf-8")
        size = sum(path.stat().st_size for path in unfinished.iterdir())
    return Exported(out, recorded, size, time.monotonic() - begin)


def state_dict(params: Params) -> dict[str, np.ndarray]:
    """The parameters under their names and in their layouts in PyTorch, in the dtype that they have.

    Kernels of convolutions become (C', C, kt, kh, kw), and those of dense layers (C', C).
    """
    found = {}
    for name, leaf in flatten(params).items():
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        leaf = np.asarray(leaf)
        if name.endswith(".weight") and leaf.ndim > 1:
            leaf = leaf.transpose(4, 3, 0, 1, 2) if leaf.ndim == 5 else leaf.T
        found[name] = np.asarray(leaf, order="C")
    return found


def config_of(architecture: Architecture) -> dict[str, Any]:
    """The part of config.json that describes the network, see `torch_autoencoder.Design`."""
    encoder, decoder = architecture.encoder, architecture.decoder
    if not isinstance(encoder, VaejaxDesign) or not isinstance(decoder, VaejaxDesign):
        raise InputError(
            "--format=torch; accepted: a model of family vaejax; otherwise --format=vaejax, or"
            " --format=diffusers if both halves are Wan's"
        )
    return {
        "latent_channels": architecture.latent_channels,
        "spatial_compression_ratio": architecture.spatial_factor,
        "temporal_compression_ratio": architecture.temporal_factor,
        "encoder": _half(encoder, encoder.encoder_blocks),
        "decoder": _half(decoder, decoder.decoder_blocks),
    }


def _half(design: VaejaxDesign, blocks: int) -> dict[str, Any]:
    """The description of an encoder or a decoder."""
    return {
        "pixel_channels": design.pixel_channels,
        "latent_channels": design.latent_channels,
        "widths": [design.width(level) for level in range(design.levels)],
        "strides": design.strides,
        "stem": design.stem,
        "stem_factor": design.stem_factor,
        "conv": design.conv,
        "film": design.film,
        "pixel_norm": design.pixel_norm,
        "attention": design.attention,
        "qk_norm": design.qk_norm,
        "blocks": blocks,
    }


def write(folder: pathlib.Path, source: Source, params: Params) -> None:
    """Writes everything but the model card; `params` are those of the source, rounded."""
    vae = source.vae
    config = {
        "format": TORCH_FORMAT,
        "vaejax": __version__,
        **config_of(vae.architecture),
        "latents_mean": source.latents["mean"],
        "latents_std": source.latents["std"],
        "scaling_factor": 1.0,  # latents_mean and latents_std already normalize
        "step": vae.step,
        "fingerprint": vae.fingerprint,
    }
    files.write_json(folder / CONFIG, config)
    save_file(state_dict(params), folder / WEIGHTS, {"format": "pt", "model": vae.fingerprint})
    shutil.copyfile(pathlib.Path(__file__).with_name("torch_autoencoder.py"), folder / MODULE)
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets only the owner read the file


def check_weights(folder: pathlib.Path, params: Params) -> None:
    """Checks that the weights in the folder are the parameters, bit for bit."""
    read, expected = load_file(folder / WEIGHTS), state_dict(params)
    if read.keys() != expected.keys():
        raise _differs("names of weights differ from those of the source")
    for name, leaf in expected.items():
        if (read[name].shape, read[name].tobytes()) != (leaf.shape, leaf.tobytes()):
            raise _differs(f"{name} differs from that of the source")


def compare(folder: pathlib.Path, stored: TrainedVAE) -> dict[str, float]:
    """The result of `in_torch.differences`; {} if PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    from vaejax.export import torch_autoencoder

    return in_torch.differences(torch_autoencoder.Autoencoder.from_pretrained(folder), stored)


def _differs(how: str) -> TrainingFailed:
    return TrainingFailed(f"{WEIGHTS}: {how}; nothing was written")
