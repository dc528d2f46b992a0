"""A trained VAE as StableHLO programs, which run where there is JAX and nothing of vaejax."""

import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from vaejax.codec.load import TrainedVAE
from vaejax.codec.network import apply
from vaejax.errors import InputError
from vaejax.models.autoencoder import Architecture, Autoencoder

PLATFORMS = ("cpu", "cuda", "tpu")
SMALLEST = 16  # pixels, as a codec takes

Shape = tuple[int, int, int]


def parsed(texts: Sequence[str], architecture: Architecture) -> list[Shape]:
    """(T, H, W) of every 'TxHxW', each once.

    Raises:
      InputError: for what is none, or what the autoencoder cannot take.
    """
    t, s = architecture.temporal_factor, architecture.spatial_factor
    shapes = []
    for text in texts:
        found = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})x([1-9]\d{0,5})", text, re.ASCII)
        frames, height, width = map(int, found.groups()) if found else (0, 0, 0)
        if (frames - 1) % t or height % s or width % s or min(height, width) < SMALLEST:
            raise InputError(
                f"--stablehlo={text}; accepted: TxHxW such as {1 + 4 * t}x256x256, T = 1 + a multiple of {t}"
                f" (1 for images), H and W multiples of {s} from {SMALLEST}"
            )
        shapes.append((frames, height, width))
    return list(dict.fromkeys(shapes))


def write(folder: pathlib.Path, trained: TrainedVAE, shape: Shape) -> dict[str, Any]:
    """Writes encode_TxHxW.stablehlo and decode_TxHxW.stablehlo for batches of any size.

    Returns:
      What config.json tells of them: 'shape', and of 'encode' and 'decode' the 'file' and the dtypes and
      shapes of 'input' and 'output'.
    """
    a, name = trained.architecture, "x".join(map(str, shape))
    frames = jax.ShapeDtypeStruct(_batch_of(*shape, 3), jnp.uint8)
    latents = jax.ShapeDtypeStruct(_batch_of(*a.latent_shape(*shape)), jnp.float32)
    encode, decode = _programs(trained)
    told: dict[str, Any] = {"shape": list(shape)}
    for kind, program, taken in (("encode", encode, frames), ("decode", decode, latents)):
        exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(taken)
        path = folder / f"{kind}_{name}.stablehlo"
        path.write_bytes(exported.serialize())
        told[kind] = {
            "file": path.name,
            "input": f"{taken.dtype} {taken.shape}",
            "output": f"{exported.out_avals[0].dtype} {exported.out_avals[0].shape}",
        }
    return told


def read(path: pathlib.Path) -> Callable[[np.ndarray], jax.Array]:
    """The program in a file."""
    return jax.export.deserialize(bytearray(path.read_bytes())).call


def _batch_of(*shape: int) -> tuple:
    return jax.export.symbolic_shape(", ".join(map(str, ("b", *shape))))


def _programs(trained: TrainedVAE) -> tuple[Callable, Callable]:
    """uint8 frames to latents, normalised where there are statistics, and back to uint8 frames."""
    model, params = Autoencoder(trained.architecture), {"params": trained.params}
    known = trained.mean is not None
    mean, std = (trained.mean, trained.std) if known else (np.float32(0), np.float32(1))

    def encode(frames):
        x = frames.astype(jnp.float32) / 127.5 - 1
        return (apply(model, params, x, method="encode").mean - mean) / std

    def decode(latents):
        x = jnp.clip(apply(model, params, latents * std + mean, method="decode"), -1, 1)
        return jnp.round((x + 1) * 127.5).astype(jnp.uint8)

    return encode, decode
