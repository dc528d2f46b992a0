"""Names and layouts of the tensors of Wan's autoencoders, here, in diffusers and in Wan's own files.

One kernel, for example:

    here         ("encoder", "mid_block", "resnets_0", "conv1", "kernel")    (kt, kh, kw, C, C')
    diffusers    "encoder.mid_block.resnets.0.conv1.weight"                  (C', C, kt, kh, kw)
    Wan          "encoder.middle.0.residual.2.weight"                        (C', C, kt, kh, kw)
"""

import re

import numpy as np

from vaejax.models.wan import WanDesign

Path = tuple[str, ...]  # of a parameter in the tree 'params' of the autoencoder

LEAVES = {"kernel": "weight", "bias": "bias", "scale": "gamma"}
OUTSIDE = ("quant_conv", "post_quant_conv")  # in diffusers, modules beside the encoder and decoder
PLANAR = ("resample_1", "to_qkv", "proj")  # 2D convolutions, whose kernels have one frame here
# Wan's names of the parts of an encoder or decoder, and of a residual block.
PARTS = {
    "conv_in": "conv1",
    "mid_block.resnets.0": "middle.0",
    "mid_block.attentions.0": "middle.1",
    "mid_block.resnets.1": "middle.2",
    "norm_out": "head.0",
    "conv_out": "head.2",
}
BLOCK = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}


def to_diffusers(path: Path) -> str:
    """Returns the name of a parameter in a state dictionary of diffusers' AutoencoderKLWan."""
    path = path[1:] if path[1] in OUTSIDE else path
    return ".".join([*(re.sub(r"_(\d+)$", r".\1", part) for part in path[:-1]), LEAVES[path[-1]]])


def from_diffusers(name: str) -> Path:
    """Returns the path of a tensor of diffusers' AutoencoderKLWan: the inverse of `to_diffusers`."""
    *parts, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).split(".")
    if parts[0] in OUTSIDE:
        parts.insert(0, "decoder" if parts[0] == "post_quant_conv" else "encoder")
    return *parts, next(ours for ours, theirs in LEAVES.items() if theirs == leaf)


def to_original(path: Path, design: WanDesign) -> str:
    """Returns the name of a parameter in Wan's own files.

    Names are unique, so a dictionary over all parameters gives the inverse.

    Args:
      path: path of the parameter.
      design: the autoencoder's design, because blocks of Wan 2.1 are counted over all levels of a decoder.
    """
    name = to_diffusers(path)
    half, _, name = name.partition(".")
    if half in OUTSIDE:
        return f"{('conv1', 'conv2')[OUTSIDE.index(half)]}.{name}"
    for theirs, original in PARTS.items():
        if name.startswith(f"{theirs}."):
            name = original + name.removeprefix(theirs)
    name = re.sub(r"^(down|up)_blocks\.", r"\1samples.", name)
    if half == "decoder" or design.averaging:  # diffusers tells blocks of a level from what follows them
        last = design.encoder_blocks if half == "encoder" else design.decoder_blocks
        name = re.sub(r"\.(downsampler|upsampler|upsamplers\.0)\.", f".resnets.{last}.", name)
    if design.averaging:
        name = re.sub(r"^(\w+)\.(\d+)\.resnets\.", r"\1.\2.\1.", name)
    else:
        layers = design.decoder_blocks + 1
        name = re.sub(
            r"^(\w+)\.(\d+)\.resnets\.(\d+)", lambda m: f"{m[1]}.{int(m[2]) * layers + int(m[3])}", name
        )
    for theirs, original in BLOCK.items():
        name = re.sub(rf"(?<=\d\.){theirs}\.", f"{original}.", name)
    return f"{half}.{name}"


def to_torch(path: Path, array: np.ndarray) -> np.ndarray:
    """Returns a parameter in the layout of diffusers and of Wan."""
    if path[-1] == "kernel":
        array = array.transpose(4, 3, 0, 1, 2)
        return array[:, :, 0] if path[-2] in PLANAR else array
    if path[-1] == "scale":
        return array.reshape(-1, *(1, 1) if path[-3] == "attentions_0" else (1, 1, 1))
    return array


def from_torch(path: Path, array: np.ndarray) -> np.ndarray:
    """Returns a tensor of diffusers or of Wan in our layout: the inverse of `to_torch`."""
    if path[-1] == "kernel":
        array = array[:, :, None] if path[-2] in PLANAR else array
        return array.transpose(2, 3, 4, 1, 0)
    return array.reshape(-1)
