"""StableHLO programs of a trained VAE, which need JAX but not vaejax."""

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
from vaejax.models.pixels import from_uint8, to_uint8

PLATFORMS = ("cpu", "cuda", "tpu")
SMALLEST = 16  # smallest height and width in pixels, the same as for `vaejax.codec.codec.Codec`

Shape = tuple[int, int, int]


def parse_shapes(texts: Sequence[str], architecture: Architecture) -> list[Shape]:
    """Parses 'TxHxW' to (T, H, W), without duplicates.

    Raises:
      InputError: if a text is not a shape that the autoencoder takes.
    """
    t, s = architecture.temporal_factor, architecture.spatial_factor
    shapes = []
    for text in texts:
        match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})x([1-9]\d{0,5})", text, re.ASCII)
        frames, height, width = map(int, match.groups()) if match else (0, 0, 0)
        if (frames - 1) % t or height % s or width % s or min(height, width) < SMALLEST:
            raise InputError(
                f"--stablehlo={text}; accepted: TxHxW such as {1 + 4 * t}x256x256, T = 1 + a multiple of {t}"
                f" (1 for images), H and W multiples of {s} and at least {SMALLEST}"
            )
        shapes.append((frames, height, width))
    return list(dict.fromkeys(shapes))


def shape_name(shape: Sequence[int]) -> str:
    """'TxHxW' of (T, H, W)."""
    return "x".join(map(str, shape))


def write(folder: pathlib.Path, vae: TrainedVAE, shape: Shape) -> dict[str, Any]:
    """Writes encode_TxHxW.stablehlo and decode_TxHxW.stablehlo, for batches of any size.

    Returns:
      The entry in config.json that describes both: 'shape' is [T, H, W]; 'encode' and 'decode' each have the
      name of the 'file', and the data type and shape of 'input' and 'output' as text.
    """
    latent_shape = vae.architecture.latent_shape(*shape)
    frames = jax.ShapeDtypeStruct(_batch_shape(*shape, vae.architecture.pixel_channels), jnp.uint8)
    latents = jax.ShapeDtypeStruct(_batch_shape(*latent_shape), jnp.float32)
    encode, decode = _programs(vae)
    programs: dict[str, Any] = {"shape": list(shape)}
    for kind, function, argument in (("encode", encode, frames), ("decode", decode, latents)):
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(argument)
        path = folder / f"{kind}_{shape_name(shape)}.stablehlo"
        path.write_bytes(exported.serialize())
        programs[kind] = {
            "file": path.name,
            "input": f"{argument.dtype} {argument.shape}",
            "output": f"{exported.out_avals[0].dtype} {exported.out_avals[0].shape}",
        }
    return programs


def read(path: pathlib.Path) -> Callable[[np.ndarray], jax.Array]:
    """Reads a program that `write` has written; returns it as a function of one array."""
    return jax.export.deserialize(bytearray(path.read_bytes())).call


def _batch_shape(*shape: int) -> tuple[Any, ...]:
    """(b, *shape) with a symbolic batch size b."""
    return tuple(jax.export.symbolic_shape(", ".join(map(str, ("b", *shape)))))


def _programs(vae: TrainedVAE) -> tuple[Callable, Callable]:
    """Functions from uint8 frames to latents and back; latents are normalized if statistics are known."""
    model, params = Autoencoder(vae.architecture), {"params": vae.params}
    mean, std = (np.float32(0), np.float32(1)) if vae.mean is None else (vae.mean, vae.std)

    def encode(frames):
        return (apply(model, params, from_uint8(frames), method="encode").mean - mean) / std

    def decode(latents):
        return to_uint8(apply(model, params, latents * std + mean, method="decode"))

    return encode, decode
