"""Features for distances between sets: EfficientNet and Inception of frames, I3D of clips."""

import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.errors import InputError
from vaejax.models.pixels import from_uint8
from vaejax.networks import efficientnet, i3d, inception

SHORTEST_CLIP = i3d.SHORTEST  # least number of frames of a clip that has I3D features

# Images and clips per network call. The numbers do not depend on the caller's batch size, so each network
# compiles once. The features of a sample do not depend on its batch. A single clip keeps a device busy.
_IMAGES, _CLIPS = 8, 1


class Features:
    """Features of frames (B, T, H, W, C), uint8 or float in [-1, 1], of any size, from published networks.

    The networks see the first three channels, RGB. Frames are resized to the network's square input
    regardless of their aspect ratio, as is usual. Floats are clipped and rounded to 8 bits for Inception
    only. Weights are loaded on first use, once per process.

    Args:
      inception_weights: file of FID's Inception weights; without it, `inception` raises.
    """

    def __init__(self, inception_weights: str | os.PathLike = ""):
        self._inception_weights = inception_weights

    def load(self, *networks: str) -> None:
        """Loads the weights of 'efficientnet', 'i3d' or 'inception', so that an unusable file fails early.

        Raises:
          weights.BadWeights: if the weights of a network are missing or damaged.
        """
        for network in networks:
            self._params(network)

    def images(self, frames: np.ndarray | jax.Array) -> np.ndarray:
        """EfficientNet-Lite0 features of every frame: (B·T, 1280) float32, in order of clips.

        Raises:
          InputError: unless frames are (B, T, H, W, C), C at least 3, not empty, and uint8 or floats.
          weights.BadWeights: if the package with the weights is missing or damaged.
        """
        frames = _rgb(frames)
        singles = frames.reshape(-1, *frames.shape[2:])
        return _in_batches(resized, _efficientnet, self._params("efficientnet"), singles, _IMAGES)

    def clips(self, frames: np.ndarray | jax.Array) -> np.ndarray:
        """I3D logits of every clip, the features of FVD: (B, 400) float32.

        Raises:
          InputError: like `images`, and for clips of fewer than 9 frames.
          weights.BadWeights: like `images`.
        """
        frames = _rgb(frames)
        if frames.shape[1] < SHORTEST_CLIP:
            raise InputError(
                f"clips of {frames.shape[1]} frames have no I3D features; accepted: {SHORTEST_CLIP} or more"
            )
        return _in_batches(resized, _i3d, self._params("i3d"), frames, _CLIPS)

    def inception(self, frames: np.ndarray | jax.Array) -> np.ndarray:
        """Inception features of every frame, the features of FID: (B·T, 2048) float32, in order of clips.

        Frames are clipped, rounded to 8 bits and resized without antialiasing, as in pytorch-fid.

        Raises:
          InputError: like `images`.
          weights.BadWeights: if there is no weight file or it is damaged.
        """
        frames = _rgb(frames)
        singles = frames.reshape(-1, *frames.shape[2:])
        return _in_batches(resized_for_fid, _inception, self._params("inception"), singles, _IMAGES)

    def _params(self, network: str) -> dict:
        return _load(network, self._inception_weights if network == "inception" else "")


@functools.cache
def _load(network: str, path: str | os.PathLike) -> dict:
    """Loads a network's weights from a file, or from the package that ships them if `path` is ''."""
    return jax.device_put(_NETWORKS[network].load(path))


_NETWORKS = {"efficientnet": efficientnet, "i3d": i3d, "inception": inception}
_efficientnet, _i3d, _inception = (jax.jit(module.features) for module in (efficientnet, i3d, inception))


@jax.jit
def resized(frames: jax.Array) -> jax.Array:
    """Resizes (..., H, W, 3), uint8 or in [-1, 1], to (..., 224, 224, 3): bilinear with antialiasing."""
    shape = (*frames.shape[:-3], i3d.SIZE, i3d.SIZE, 3)
    return jax.image.resize(_as_floats(frames), shape, "linear")


@jax.jit
def resized_for_fid(frames: jax.Array) -> jax.Array:
    """Rounds (N, H, W, 3) to 8 bits and resizes it to (N, 299, 299, 3): bilinear without antialiasing."""
    # Rounded as floats, not with `to_uint8`: NaN must stay NaN.
    frames = ((_as_floats(frames) + 1) * 127.5).round().clip(0, 255) / 127.5 - 1
    shape = (len(frames), inception.SIZE, inception.SIZE, 3)
    return jax.image.resize(frames, shape, "linear", antialias=False)


def _as_floats(frames: jax.Array) -> jax.Array:
    return from_uint8(frames) if frames.dtype == jnp.uint8 else frames.astype(jnp.float32)


def _rgb(frames: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """The first three channels of frames; raises InputError unless these have features."""
    known = frames.dtype == np.uint8 or jnp.issubdtype(frames.dtype, jnp.floating)
    if frames.ndim != 5 or frames.shape[-1] < 3 or not known or 0 in frames.shape:
        raise InputError(
            f"frames of shape {frames.shape} and type {frames.dtype};"
            " accepted: (B, T, H, W, C), C at least 3, uint8 or floats in [-1, 1]"
        )
    return frames[..., :3]


def _in_batches(
    prepare: Callable, network: Callable, params: dict, samples: np.ndarray | jax.Array, size: int
) -> np.ndarray:
    """The network's features of every sample, `size` samples per call; the last call is padded with zeros."""
    features = []
    for start in range(0, len(samples), size):
        batch = samples[start : start + size]
        count = len(batch)
        if count < size:
            batch = jnp.concatenate([batch, jnp.zeros((size - count, *batch.shape[1:]), batch.dtype)])
        features.append(np.asarray(network(params, prepare(batch)))[:count])
    return np.concatenate(features)
