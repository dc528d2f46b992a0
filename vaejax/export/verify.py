"""Whether an export is the model that it was made of: by its parameters, and by what it makes of frames."""

import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp

from vaejax.codec.codec import Codec
from vaejax.codec.load import TrainedVAE, flatten
from vaejax.errors import TrainingFailed
from vaejax.models.autoencoder import Architecture

# Of programs: how far latents may be off, times the largest if above 1, and frames, in levels of 255.
CLOSE, LEVELS = 1e-5, 1
CLOSE_ROUNDED, MEAN_LEVELS_ROUNDED = 0.1, 2  # where the model computes in bfloat16, frames in the mean


def check_weights(source: TrainedVAE, exported: TrainedVAE, checkpoint: pathlib.Path, dtype: str) -> None:
    """Compares every parameter, bit for bit, with the source's, or with them rounded to bfloat16.

    Args:
      source: what was exported.
      exported: the export, read again.
      checkpoint: its Orbax checkpoint.
      dtype: of its weights.

    Raises:
      TrainingFailed: where they differ.
    """
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = flatten(checkpointer.restore(checkpoint.absolute()))
    read = flatten(exported.params)
    wanted = {name: np.asarray(leaf, kind) for name, leaf in flatten(source.params).items()}
    for found, where in ((read, "model.safetensors"), (restored, "checkpoint")):
        if found.keys() != wanted.keys():
            raise _differs(where, "has other parameters")
        for name, leaf in wanted.items():
            if np.asarray(found[name], np.float32).tobytes() != leaf.astype(np.float32).tobytes():
                raise _differs(where, f"{name} has other values")
    if {np.asarray(leaf).dtype for leaf in restored.values()} != {kind}:
        raise _differs("checkpoint", f"holds other numbers than {dtype}")


def check_codec(source: Codec, exported: Codec, dtype: str) -> dict[str, float]:
    """Compares latents and frames of a clip and of a picture, of float32 weights bit for bit.

    Returns:
      Of bfloat16 weights the PSNR of the clip in dB: 'source' and 'exported' against the original, and
      'between' the two; {} of float32.

    Raises:
      TrainingFailed: where float32 weights give something else.
    """
    clip = moving_waves(*_shape(source.architecture))
    if dtype == "float32":
        # An accelerator may choose another algorithm each time it compiles.
        close = 0.0 if jax.default_backend() == "cpu" else 1e-4
        for frames in (clip, clip[0]):
            z, same_z = (np.asarray(encode(codec, frames)) for codec in (source, exported))
            x, same_x = (_decoded(codec, z) for codec in (source, exported))
            for what, one, other in (("latents", z, same_z), ("frames", x, same_x)):
                if not np.allclose(one, other, rtol=0, atol=close, equal_nan=True):
                    raise _differs("model.safetensors", f"{what} are not the source's")
        return {}
    original = clip.astype(np.float32) / 127.5 - 1
    x, y = (_decoded(codec, encode(codec, clip).values) for codec in (source, exported))
    return {"source": _psnr(original, x), "exported": _psnr(original, y), "between": _psnr(x, y)}


def check_programs(exported: Codec, to_latents: Callable, to_frames: Callable, told: dict[str, Any]) -> None:
    """Compares StableHLO with the codec on a clip: latents within 1e-5, frames within one level of 255.

    Models that compute in bfloat16 may be off by its rounding.

    Args:
      exported: the export's.
      to_latents: the program that encodes.
      to_frames: the one that decodes.
      told: of them, see `stablehlo.write`.

    Raises:
      TrainingFailed: where they give something else.
    """
    rounded = exported.architecture.dtype == "bfloat16"
    frames = moving_waves(*told["shape"])
    z = encode(exported, frames).values
    x = exported.decode(z, dtype="uint8", normalized=exported.mean is not None)
    found, pixels = np.asarray(to_latents(frames[None]))[0], np.asarray(to_frames(z[None]))[0]
    off = np.abs(found - z).max() / max(1, np.abs(z).max())
    if not off <= (CLOSE_ROUNDED if rounded else CLOSE):
        raise _differs(told["encode"]["file"], f"latents are up to {off:.2g} from the codec's")
    apart = np.abs(pixels.astype(int) - x)
    if (apart.mean() > MEAN_LEVELS_ROUNDED) if rounded else (apart.max() > LEVELS):
        raise _differs(told["decode"]["file"], f"frames are up to {apart.max()} of 255 from the codec's")


def encode(codec: Codec, frames: np.ndarray):
    """Latents, normalised where the codec knows how."""
    return codec.encode(frames, normalize=codec.mean is not None)


def moving_waves(frames: int, height: int, width: int) -> np.ndarray:
    """A picture that is always the same, (T, H, W, 3) uint8: waves of several lengths, an edge and grain."""
    t, y, x = np.meshgrid(*map(np.arange, (frames, height, width)), indexing="ij")
    waves = [np.sin((x + 2 * t) / 3 + y / 11), np.sin(y / 7 - t / 2), np.sin((x - y) / 17 + t)]
    edge = np.where((x + 3 * t) // 20 % 2 == y // 24 % 2, 30, -30)
    grain = np.random.default_rng(0).normal(scale=4, size=(frames, height, width, 3))
    return np.clip(128 + 70 * np.stack(waves, -1) + edge[..., None] + grain, 0, 255).astype(np.uint8)


def _shape(architecture: Architecture) -> tuple[int, int, int]:
    side = max(64, 4 * architecture.spatial_factor)
    return 1 + 2 * architecture.temporal_factor, side, side


def _decoded(codec: Codec, latents: np.ndarray) -> np.ndarray:
    return np.asarray(codec.decode(latents, dtype="float32", normalized=codec.mean is not None))


def _psnr(x: np.ndarray, y: np.ndarray) -> float:
    """In dB, of frames in [-1, 1]."""
    error = float(np.mean(np.square(x.astype(np.float64) - y)))
    return 10 * math.log10(4 / error) if error else math.inf


def _differs(where: str, how: str) -> TrainingFailed:
    return TrainingFailed(f"{where}: {how}; nothing was written")
