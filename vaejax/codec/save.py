"""Writes an autoencoder as a folder that `load_vae` reads: config.json and model.safetensors."""

import pathlib
import shutil
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from vaejax import __version__, files
from vaejax.codec.load import CONFIG, FORMAT, WEIGHTS, Params, TrainedVAE, fingerprint, flatten
from vaejax.models import families


def save_vae(
    folder: pathlib.Path, vae: TrainedVAE, dtype: str = "float32", further: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Writes the weights and the configuration of an autoencoder.

    Args:
      folder: an existing folder.
      vae: the autoencoder.
      dtype: data type of the weights, 'float32' or 'bfloat16'.
      further: further entries of config.json, which replace those of this function.

    Returns:
      The contents of config.json.
    """
    params = rounded(vae.params, dtype)
    metadata = {"format": FORMAT, "model": vae.fingerprint, "step": str(vae.step)}
    save_file(flatten(params), folder / WEIGHTS, metadata)
    config = {"format": FORMAT, **describe(vae, params, dtype), **(further or {})}
    files.write_json(folder / CONFIG, config)
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets only the owner read the file
    return config


def describe(vae: TrainedVAE, params: Params, dtype: str) -> dict[str, Any]:
    """The description of an autoencoder whose parameters are stored as `params`, rounded to `dtype`."""
    counts = {half: sum(leaf.size for leaf in jax.tree.leaves(tree)) for half, tree in params.items()}
    mean, std = (None if values is None else values.tolist() for values in (vae.mean, vae.std))
    return {
        "vaejax": __version__,
        "jax": jax.__version__,
        # Every field, so that a later version with other defaults builds the same network.
        "architecture": families.to_json(vae.architecture),
        "step": vae.step,
        "fingerprint": vae.fingerprint,
        "weights": {
            "file": WEIGHTS,
            "dtype": dtype,
            "fingerprint": fingerprint(rounded(params, "float32")),
            "parameters": counts,
        },
        "latents": {"mean": mean, "std": std},
        "log_scale": vae.log_scale,
    }


def rounded(params: Params, dtype: str) -> Params:
    """The parameters as arrays of 'float32' or 'bfloat16'."""
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    return jax.tree.map(lambda leaf: np.array(leaf, kind, order="C"), params)
