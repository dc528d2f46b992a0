"""Features in which sets are compared: EfficientNet's of frames, I3D's of clips, Inception's where given."""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.errors import InputError
from vaejax.networks import efficientnet, i3d, inception

SHORTEST_CLIP = i3d.SHORTEST  # frames

# Samples that a network sees at a time, whatever the caller's batch: so a sample's features do not depend on
# its company, and a network is compiled once. A clip is work enough by itself.
_IMAGES, _CLIPS = 8, 1


class Features:
    """Fixed networks that look at frames (B, T, H, W, 3), uint8 or float in [-1, 1], of any size.

    Frames are resized to the network's square without regard to their shape, as is usual. Floats are taken as
    they are: not clipped, and rounded for Inception alone. Weights are read when they are first needed.

    Args:
      inception_weights: a person's file of FID's Inception; without, `inception` cannot be asked.
    """

    def __init__(self, inception_weights: str | os.PathLike = ""):
        self._inception_weights = inception_weights

    def images(self, frames: np.ndarray | jax.Array) -> np.ndarray:
        """EfficientNet-Lite0's features of every frame: (B·T, 1280) float32, clip by clip.

        Raises:
          InputError: frames of another shape or type.
          weights.BadWeights: the network's package is missing or its file damaged.
        """
        _check(frames)
        singles = frames.reshape(-1, *frames.shape[2:])
        return _in_batches(prepared, _efficientnet, self._efficientnet_params, singles, _IMAGES)

    def clips(self, frames: np.ndarray | jax.Array) -> np.ndarray:
        """I3D's logits of every clip, FVD's features: (B, 400) float32.

        Raises:
          InputError: as `images`, and clips of fewer than 9 frames.
          weights.BadWeights: as `images`.
        """
        _check(frames)
        if frames.shape[1] < SHORTEST_CLIP:
            raise InputError(
                f"clips of {frames.shape[1]} frames have no I3D features; accepted: {SHORTEST_CLIP} or more"
            )
        return _in_batches(prepared, _i3d, self._i3d_params, frames, _CLIPS)

    def inception(self, frames: np.ndarray | jax.Array) -> np.ndarray:
        """The features of FID of every frame: (B·T, 2048) float32, clip by clip.

        As pytorch-fid sees pictures: 8-bit, and resized without antialiasing.

        Raises:
          InputError: as `images`.
          weights.BadWeights: no weights were given, or the file cannot be used.
        """
        _check(frames)
        singles = frames.reshape(-1, *frames.shape[2:])
        return _in_batches(prepared_for_fid, _inception, self._inception_params, singles, _IMAGES)

    @functools.cached_property
    def _efficientnet_params(self) -> dict:
        return jax.device_put(efficientnet.load())

    @functools.cached_property
    def _i3d_params(self) -> dict:
        return jax.device_put(i3d.load())

    @functools.cached_property
    def _inception_params(self) -> dict:
        return jax.device_put(inception.load(self._inception_weights))


_efficientnet, _i3d, _inception = (jax.jit(each.features) for each in (efficientnet, i3d, inception))


@jax.jit
def prepared(frames: jax.Array) -> jax.Array:
    """(..., H, W, 3), uint8 or in [-1, 1], to (..., 224, 224, 3): bilinear, antialiased where it shrinks."""
    shape = (*frames.shape[:-3], i3d.SIZE, i3d.SIZE, 3)
    return jax.image.resize(_normalised(frames), shape, "linear")


@jax.jit
def prepared_for_fid(frames: jax.Array) -> jax.Array:
    """(N, H, W, 3) to (N, 299, 299, 3): rounded to 8 bits, then bilinear between the nearest four pixels."""
    frames = ((_normalised(frames) + 1) * 127.5).round().clip(0, 255) / 127.5 - 1
    shape = (len(frames), inception.SIZE, inception.SIZE, 3)
    return jax.image.resize(frames, shape, "linear", antialias=False)


def _normalised(frames: jax.Array) -> jax.Array:
    floats = frames.astype(jnp.float32)
    return floats / 127.5 - 1 if frames.dtype == jnp.uint8 else floats


def _check(frames: np.ndarray | jax.Array) -> None:
    whole = frames.dtype == np.uint8 or jnp.issubdtype(frames.dtype, jnp.floating)
    if frames.ndim != 5 or frames.shape[-1] != 3 or not whole or 0 in frames.shape:
        raise InputError(
            f"frames of shape {frames.shape} and type {frames.dtype};"
            " accepted: (B, T, H, W, 3) of uint8 or of floats in [-1, 1]"
        )


def _in_batches(
    prepare: Callable, network: Callable, params: dict, samples: np.ndarray | jax.Array, size: int
) -> np.ndarray:
    """The network's features of every sample, `size` at a time; the last batch is filled up with black."""
    found = []
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        count = len(batch)
        if count < size:
            batch = jnp.concatenate([batch, jnp.zeros((size - count, *batch.shape[1:]), batch.dtype)])
        found.append(np.asarray(network(params, prepare(batch)))[:count])
    return np.concatenate(found)
