"""Reads published autoencoders: folders of diffusers, and single files of weights."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors.flax import load_file

from vaejax.errors import InputError, one_line
from vaejax.models import wan_files, wan_names
from vaejax.models.autoencoder import Architecture, parameter_shapes
from vaejax.models.wan import WanDesign
from vaejax.models.wan_statistics import published_statistics
from vaejax.networks import torch_file
from vaejax.networks.weights import BadWeights
from vaejax.rundir.mirror import local

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # lists the files of weights that are split
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
ACCEPTED = (
    f"a folder of diffusers' {wan_files.CLASS}, or a .safetensors or .pth file of its weights, under"
    " diffusers' or Wan's own names"
)
Tensors = Mapping[str, np.ndarray]


def is_published(name: str) -> bool:
    """Whether a path is a file of weights, or a folder of diffusers: an autoencoder or a whole pipeline."""
    path = pathlib.Path(local(name))
    return (path.is_file() and path.suffix in SUFFIXES) or _folder(path) is not None


def read_published(name: str) -> tuple[Architecture, dict[str, Any], dict[str, Any]]:
    """Reads a published autoencoder; PyTorch is not needed, and no code in the file runs.

    Returns:
      The architecture; the parameters, the tree 'params' of `model.init`, float32; and 'mean' and 'std' (c,)
      of the latents, None if unknown.

    Raises:
      InputError: if a file is missing, damaged or unsafe, describes another kind of model, or lacks a tensor,
        has one too many, or one of another shape.
    """
    path = pathlib.Path(local(name))
    folder, config = _folder(path), {}
    try:
        if folder:
            config = json.loads((folder / "config.json").read_bytes())
            design = wan_files.from_config(config)
            tensors = _weights_of(folder)
        else:
            tensors = _read(path)
            design = wan_files.from_shapes({key: tensor.shape for key, tensor in tensors.items()})
    except BadWeights as error:
        raise InputError(str(error)) from error
    except (KeyError, IndexError) as error:
        raise InputError(f"{name}: lacks {one_line(error)}; accepted: {ACCEPTED}") from error
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise InputError(f"{name}: {one_line(error)}; accepted: {ACCEPTED}") from error
    params = _arranged(name, design, tensors)
    known = published_statistics(design)
    statistics: dict[str, Any] = dict(zip(("mean", "std"), known or (None, None), strict=True))
    for key in statistics:
        values = config.get(f"latents_{key}") or ()
        if len(values) == design.latent_channels:  # otherwise they are diffusers' default, of another model
            statistics[key] = np.asarray(values, np.float32)
    return Architecture(design, design), params, statistics


def _folder(path: pathlib.Path) -> pathlib.Path | None:
    """The folder of the autoencoder in a folder of diffusers; None for other paths."""
    for folder in (path, path / "vae"):
        try:
            config = json.loads((folder / "config.json").read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and "_class_name" in config:
            if config["_class_name"] != wan_files.CLASS:
                beside = next((f", such as {file}" for file in sorted(folder.glob("*VAE*.pth"))), "")
                raise InputError(
                    f"{folder}: _class_name = {config['_class_name']}; accepted: {ACCEPTED}{beside}"
                )
            return folder
    return None


def _weights_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the weights of a folder of diffusers, which may be split into several files."""
    if not (folder / INDEX).is_file():
        return _read(folder / WEIGHTS)
    names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    if any(pathlib.PurePath(name).name != name for name in names):
        raise ValueError(f"{INDEX} names a file outside the folder")
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        tensors |= _read(folder / name)
    return tensors


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    if path.suffix != ".safetensors":
        return torch_file.read(path)
    if not path.is_file():
        raise OSError(f"no {path.name}")
    return {name: np.asarray(tensor, np.float32) for name, tensor in load_file(path).items()}


def _arranged(name: str, design: WanDesign, tensors: Tensors) -> dict[str, Any]:
    """The tensors as our tree of parameters, after checking names and shapes."""
    shapes: dict[Any, Any] = traverse_util.flatten_dict(parameter_shapes(Architecture(design, design)))
    is_original = "conv1.weight" in tensors
    names = {
        wan_names.to_original(path, design) if is_original else wan_names.to_diffusers(path): path
        for path in shapes
    }
    for tensor in sorted(names.keys() | tensors.keys()):
        if tensor not in tensors:
            raise InputError(f"{name}: {tensor} is missing; accepted: {ACCEPTED}")
        if tensor not in names:
            raise InputError(f"{name}: {tensor} is not a tensor of this model; accepted: {ACCEPTED}")
    params = {}
    for tensor, path in names.items():
        wanted = wan_names.to_torch(path, np.broadcast_to(np.float32(0), shapes[path].shape)).shape
        if tensors[tensor].shape != wanted:
            raise InputError(f"{name}: {tensor} has shape {tensors[tensor].shape}; accepted: {wanted}")
        params[path] = np.ascontiguousarray(wan_names.from_torch(path, tensors[tensor]), np.float32)
    return traverse_util.unflatten_dict(params)
