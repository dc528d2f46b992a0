"""Opens a codec by its name on the command line."""

import os
from collections.abc import Iterable

import numpy as np
from jax.sharding import Mesh

from vaejax.codec import load
from vaejax.codec.published import is_published
from vaejax.errors import InputError
from vaejax.evaluate.codecs import NAMES, baselines
from vaejax.evaluate.codecs.base import Codec, LatentSize
from vaejax.evaluate.codecs.diffusers import DiffusersCodec
from vaejax.evaluate.codecs.vae import VaeCodec
from vaejax.rundir.mirror import local

# The latent size that `linear` and `jpeg:matched` match if `open_codec` gets no codec with latents.
DEFAULT_SIZE = LatentSize(spatial=8, temporal=4, channels=16)


def open_codec(
    name: str,
    *,
    step: int | None = None,
    dtype: str = "",
    mesh: Mesh | None = None,
    like: Codec | None = None,
    samples: np.ndarray | Iterable[np.ndarray] = (),
    fps: float = 24.0,
    seed: int = 0,
) -> Codec:
    """Opens a codec by its name.

    Args:
      name: 'RUN', 'RUN/checkpoints/STEP', an export, a published VAE, 'diffusers:CLASS:PATH', 'linear',
        'jpeg:Q', 'jpeg:matched', 'h264:CRF' or 'identity'. PATH is a folder of weights; for random weights it
        is a config.json or JSON text.
      step: step of a run's checkpoint; default: the one in `name`, else the latest.
      dtype: compute dtype of the autoencoder of a run or export, 'float32' or 'bfloat16'; '' keeps that of
        training.
      mesh: devices that share the batches of the codec of a run or export; None: one device.
      like: codec whose latent size `linear` and `jpeg:matched` match; if it is None or has no latents, they
        match DEFAULT_SIZE.
      samples: training frames (N, T, H, W, C) uint8 that `linear` and `jpeg:matched` are fitted to, or an
        iterable of such arrays. Their shapes may differ. The iterable is read once. Other codecs ignore
        `samples`.
      fps: frames per second; H.264 spends more bits on frames that are shown for longer.
      seed: seed of random weights and of the noise that some diffusers decoders add.

    Raises:
      InputError: if no codec has this name, or the codec cannot be opened.
    """
    kind, _, rest = name.partition(":")
    if name == "identity":
        return baselines.Identity()
    if name == "linear":
        return baselines.Linear.fit(samples, _latent_size(like))
    if name == "jpeg:matched":
        return baselines.Jpeg.matched(name, samples, _latent_size(like))
    if kind == "jpeg" and rest:
        return baselines.Jpeg(name, _integer(name, rest, 1, 100, " or jpeg:matched"))
    if kind == "h264" and rest:
        return baselines.H264(name, _integer(name, rest, 0, 51), fps)
    if kind == "diffusers":
        return DiffusersCodec.open(name, seed)
    if os.path.isdir(local(name)) or is_published(name):
        return VaeCodec.open(name, step, dtype, mesh)
    raise InputError(f"codec {name!r}: no such name or folder; accepted: {NAMES}")


def pixel_channels(name: str) -> int:
    """The pixel channels of a run, an export or a published VAE; 3, RGB, for any other codec."""
    if name in ("identity", "linear") or not (os.path.isdir(local(name)) or is_published(name)):
        return 3
    return load.pixel_channels(name)


def _latent_size(like: Codec | None) -> LatentSize:
    if like is None:
        return DEFAULT_SIZE
    s = like.spatial_factor
    latent = like.latent_shape(1, s, s)
    return LatentSize(s, like.temporal_factor, latent[-1]) if latent else DEFAULT_SIZE


def _integer(name: str, text: str, low: int, high: int, more: str = "") -> int:
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        kind = name.partition(":")[0]
        raise InputError(f"codec {name!r}; accepted: {kind}:{low} to {kind}:{high}{more}")
    return int(text)
