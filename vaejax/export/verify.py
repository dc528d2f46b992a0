"""Verifies an export against its source: the parameters, and latents and frames of test clips."""

import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp

from vaejax.codec.codec import Codec
from vaejax.codec.latent import Latent
from vaejax.codec.load import TrainedVAE, flatten
from vaejax.errors import TrainingFailed
from vaejax.models.autoencoder import Architecture
from vaejax.models.pixels import from_uint8

# Largest accepted difference between the StableHLO programs and the codec. Latents: relative to the largest
# absolute value, or to 1 if that is larger. Frames: in 8-bit levels.
LATENTS, LEVELS = 1e-5, 1
# The same for models that compute in bfloat16; for frames, the mean difference is limited, not the largest.
LATENTS_BFLOAT16, MEAN_LEVELS_BFLOAT16 = 0.1, 2


def check_weights(source: TrainedVAE, exported: TrainedVAE, checkpoint: pathlib.Path, dtype: str) -> None:
    """Checks that the exported parameters equal those of the source, rounded to `dtype`, bit for bit.

    Args:
      source: the VAE that was exported.
      exported: the export, read from its files.
      checkpoint: Orbax checkpoint of the export.
      dtype: data type of the exported weights, 'float32' or 'bfloat16'.

    Raises:
      TrainingFailed: if a parameter differs.
    """
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = flatten(checkpointer.restore(checkpoint.absolute()))
    read = flatten(exported.params)
    expected = {name: np.asarray(leaf, kind) for name, leaf in flatten(source.params).items()}
    for params, file in ((read, "model.safetensors"), (restored, "checkpoint")):
        if params.keys() != expected.keys():
            raise _differs(file, "parameter names differ from those of the source")
        for name, leaf in expected.items():
            if np.asarray(params[name], np.float32).tobytes() != leaf.astype(np.float32).tobytes():
                raise _differs(file, f"values of {name} differ from those in the source")
    if {np.asarray(leaf).dtype for leaf in restored.values()} != {kind}:
        raise _differs("checkpoint", f"dtype is not {dtype}")


def check_codec(source: Codec, exported: Codec, dtype: str) -> dict[str, float]:
    """Compares latents and frames of an export with those of its source, for a test clip and an image.

    Float32 weights must give the same results: exactly on CPU, within 1e-4 on accelerators. The effect of
    bfloat16 weights is only measured, on the clip.

    Args:
      source: codec of the source.
      exported: codec of the export.
      dtype: data type of the exported weights, 'float32' or 'bfloat16'.

    Returns:
      For bfloat16 weights, PSNR of the reconstructed clip in dB: 'source' and 'exported' against the
      original, and 'between' the two. Empty for float32 weights, which are not rounded.

    Raises:
      TrainingFailed: if float32 weights give other latents or frames.
    """
    clip = moving_waves(*clip_shape(source.architecture), source.architecture.pixel_channels)
    if dtype == "float32":
        # On accelerators, each compilation may choose a different algorithm, and results differ slightly.
        tolerance = 0.0 if jax.default_backend() == "cpu" else 1e-4
        for frames in (clip, clip[0]):
            z, same_z = (np.asarray(encode(codec, frames).values) for codec in (source, exported))
            x, same_x = (_decode(codec, z) for codec in (source, exported))
            for name, one, other in (("latents", z, same_z), ("frames", x, same_x)):
                if not np.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True):
                    raise _differs("model.safetensors", f"{name} differ from those of the source")
        return {}
    original = from_uint8(clip)
    x, y = (_decode(codec, np.asarray(encode(codec, clip).values)) for codec in (source, exported))
    return {"source": _psnr(original, x), "exported": _psnr(original, y), "between": _psnr(x, y)}


def check_programs(
    exported: Codec, to_latents: Callable, to_frames: Callable, programs: dict[str, Any]
) -> None:
    """Checks that StableHLO programs agree with the codec on a test clip.

    Latents must agree within `LATENTS` and frames within `LEVELS`. If the model computes in bfloat16, the
    limits are wider, to allow for its rounding.

    Args:
      exported: codec of the export.
      to_latents: the program that encodes.
      to_frames: the program that decodes.
      programs: the entry in config.json that describes both programs, see `stablehlo.write`.

    Raises:
      TrainingFailed: if they disagree.
    """
    is_bfloat16 = exported.architecture.dtype == "bfloat16"
    t, h, w = programs["shape"]
    frames = moving_waves(t, h, w, exported.architecture.pixel_channels)
    z = np.asarray(encode(exported, frames).values)
    x = np.asarray(exported.decode(z, dtype="uint8", normalized=exported.mean is not None))
    latents, pixels = np.asarray(to_latents(frames[None]))[0], np.asarray(to_frames(z[None]))[0]
    error = np.abs(latents - z).max() / max(1, np.abs(z).max())
    if not error <= (LATENTS_BFLOAT16 if is_bfloat16 else LATENTS):  # `not <=` rather than `>`, to reject NaN
        raise _differs(programs["encode"]["file"], f"latents differ from the codec's by up to {error:.2g}")
    levels = np.abs(pixels.astype(int) - x)
    if (levels.mean() > MEAN_LEVELS_BFLOAT16) if is_bfloat16 else (levels.max() > LEVELS):
        raise _differs(
            programs["decode"]["file"],
            f"frames differ from the codec's by up to {levels.max()} of 255 levels",
        )


def encode(codec: Codec, frames: np.ndarray) -> Latent:
    """Encodes frames to latents, which are normalized if the codec has latent statistics."""
    return codec.encode(frames, normalize=codec.mean is not None)


def moving_waves(frames: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """A deterministic clip (T, H, W, C) uint8 of waves of several lengths, moving edges and grain."""
    t, y, x = np.meshgrid(*map(np.arange, (frames, height, width)), indexing="ij")
    waves = [np.sin((x + 2 * t) / 3 + y / 11), np.sin(y / 7 - t / 2), np.sin((x - y) / 17 + t)]
    edges = np.where((x + 3 * t) // 20 % 2 == y // 24 % 2, 30, -30)
    grain = np.random.default_rng(0).normal(scale=4, size=(frames, height, width, channels))
    waves = np.stack([waves[i % len(waves)] for i in range(channels)], -1)
    return np.clip(128 + 70 * waves + edges[..., None] + grain, 0, 255).astype(np.uint8)


def clip_shape(architecture: Architecture) -> tuple[int, int, int]:
    """Returns the shape (T, H, W) of a short test clip with several latent frames."""
    side = max(64, 4 * architecture.spatial_factor)
    return 1 + 2 * architecture.temporal_factor, side, side


def _decode(codec: Codec, latents: np.ndarray) -> np.ndarray:
    return np.asarray(codec.decode(latents, dtype="float32", normalized=codec.mean is not None))


def _psnr(x: np.ndarray, y: np.ndarray) -> float:
    """PSNR in dB of frames in [-1, 1]."""
    error = float(np.mean(np.square(x.astype(np.float64) - y)))
    return 10 * math.log10(4 / error) if error else math.inf


def _differs(file: str, how: str) -> TrainingFailed:
    return TrainingFailed(f"{file}: {how}; nothing was written")
