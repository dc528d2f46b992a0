"""The configuration of Wan's autoencoders in diffusers, and the design that a file of weights implies."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vaejax.models.wan import WanDesign

CLASS = "AutoencoderKLWan"  # of diffusers
# diffusers' default configuration, which config.json of older releases leaves out in part.
DEFAULTS: Mapping[str, Any] = {
    "base_dim": 96,
    "decoder_base_dim": None,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],  # diffusers' spelling
    "is_residual": False,
    "in_channels": 3,
    "patch_size": None,
}


def from_config(config: Mapping[str, Any]) -> WanDesign:
    """The design that config.json of diffusers describes.

    Raises:
      ValueError, TypeError, KeyError: if it describes no autoencoder, or one with attention at other levels.
    """
    c = {name: config.get(name, value) for name, value in DEFAULTS.items()}
    if c["attn_scales"]:
        raise ValueError(f"attn_scales = {c['attn_scales']}; accepted: []")
    patch = c["patch_size"] or 1
    if c["in_channels"] % patch**2:
        raise ValueError(
            f"in_channels = {c['in_channels']}; accepted: a multiple of patch_size² = {patch**2}"
        )
    widths, decoder = ([base * m for m in c["dim_mult"]] for base in (c["base_dim"], _decoder_base(c)))
    return WanDesign(
        encoder_widths=tuple(widths),
        decoder_widths=tuple(decoder),
        encoder_blocks=int(c["num_res_blocks"]),
        decoder_blocks=int(c["num_res_blocks"]) + 1,
        latent_channels=int(c["z_dim"]),
        temporal_downsample=tuple(map(bool, c["temperal_downsample"])),
        patch=int(patch),
        averaging=bool(c["is_residual"]),
        pixel_channels=int(c["in_channels"]) // int(patch) ** 2,
        remat=(),
        dtype="float32",
    )


def to_config(
    encoder: WanDesign, decoder: WanDesign, mean: list[float] | None, std: list[float] | None
) -> dict[str, Any]:
    """The config.json of diffusers for an autoencoder.

    Raises:
      ValueError: if diffusers cannot describe it.
    """
    config = {
        "_class_name": CLASS,
        "base_dim": encoder.encoder_widths[0],
        "decoder_base_dim": decoder.decoder_widths[0],
        "z_dim": encoder.latent_channels,
        "dim_mult": [width // encoder.encoder_widths[0] for width in encoder.encoder_widths],
        "num_res_blocks": encoder.encoder_blocks,
        "attn_scales": [],
        "temperal_downsample": list(encoder.temporal_downsample),
        "dropout": 0.0,
        "is_residual": encoder.averaging,
        "in_channels": encoder.pixel_channels * encoder.patch**2,
        "out_channels": decoder.pixel_channels * decoder.patch**2,
        "patch_size": encoder.patch if encoder.patch > 1 else None,
        "scale_factor_temporal": encoder.temporal_factor,
        "scale_factor_spatial": encoder.spatial_factor,
    }
    if mean is not None and std is not None:
        config |= {"latents_mean": _shortest(mean), "latents_std": _shortest(std)}
    described = from_config(config)
    for name in ("encoder_widths", "encoder_blocks", "temporal_downsample", "patch", "averaging"):
        if getattr(described, name) != getattr(encoder, name):
            raise ValueError(f"{name} = {getattr(encoder, name)} has no equivalent in {CLASS}")
    for name in ("decoder_widths", "decoder_blocks", "temporal_downsample", "patch", "averaging"):
        if getattr(described, name) != getattr(decoder, name):
            raise ValueError(f"{name} = {getattr(decoder, name)} has no equivalent in {CLASS}")
    return config


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> WanDesign:
    """The design of a file without configuration, from the shapes of its tensors.

    Args:
      shapes: shapes by name, as in diffusers or in Wan's own files.

    Raises:
      ValueError, KeyError, IndexError: if they are not those of an autoencoder of Wan.
    """
    is_original = "conv1.weight" in shapes
    first, last = (
        ("encoder.conv1.weight", "decoder.head.2.weight")
        if is_original
        else ("encoder.conv_in.weight", "decoder.conv_out.weight")
    )
    deepest = "encoder.conv_out.weight" if not is_original else "encoder.head.2.weight"
    second = r"residual\.6\.weight" if is_original else r"conv2\.weight"
    averaging = any(re.match(r"encoder\.down\w+\.\d+\.(resnets|downsamples)\.", name) for name in shapes)
    convs = {half: _sorted(shapes, rf"{half}\..*resample\.1\.weight") for half in ("encoder", "decoder")}
    widths = {
        "encoder": [shapes[name][1] for name in convs["encoder"]] + [shapes[deepest][1]],
        "decoder": [shapes[last][1]] + [shapes[name][1] for name in reversed(convs["decoder"])],
    }
    blocks = {
        half: len([name for name in shapes if re.match(rf"{half}\.(up|down)\w+\..*{second}", name)])
        // len(widths[half])
        for half in widths
    }
    moved = shapes[first][1]
    patch = 2 if averaging and moved % 4 == 0 else 1
    return WanDesign(
        encoder_widths=tuple(widths["encoder"]),
        decoder_widths=tuple(widths["decoder"]),
        encoder_blocks=blocks["encoder"],
        decoder_blocks=blocks["decoder"],
        latent_channels=shapes[deepest][0] // 2,
        temporal_downsample=tuple(
            name.replace("resample.1", "time_conv") in shapes for name in convs["encoder"]
        ),
        patch=patch,
        averaging=averaging,
        pixel_channels=moved // patch**2,
        remat=(),
        dtype="float32",
    )


def _decoder_base(config: Mapping[str, Any]) -> int:
    return config["decoder_base_dim"] or config["base_dim"]


def _shortest(values: list[float]) -> list[float]:
    """The shortest decimals that round to the same float32 values, such as -0.7571."""
    return [float(str(np.float32(value))) for value in values]


def _sorted(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> list[str]:
    """The names that match a pattern, in the order of the numbers in them."""
    names = [name for name in shapes if re.fullmatch(pattern, name)]
    return sorted(names, key=lambda name: list(map(int, re.findall(r"\.(\d+)(?=\.)", name))))
