"""Discriminators: real or reconstructed, patch by patch (PatchGAN) or pixel by pixel (UNet)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vaejax.models.constraints import place
from vaejax.models.conv import Triple, convolve


@dataclasses.dataclass(frozen=True)
class Discrimination:
    """What a discriminator is made of.

    It computes in float32 whatever the autoencoder does: it lives on small differences, and in bfloat16 its
    logits drift away from those of float32 (docs/decisions.md).

    Attributes:
      kind: 'patch' (PatchGAN, arXiv 1611.07004: a logit for every 8x8 pixels) or 'unet' (arXiv 2002.12655,
        its per-pixel half: a logit for every pixel).
      width: channels of the first level; they double at each of the next two.
      spectral_norm: divide every kernel by its largest singular value (arXiv 1802.05957).
    """

    kind: str = "patch"
    width: int = 64
    spectral_norm: bool = True


class Discriminator(nn.Module):
    """Logits of clips, or of frames one by one.

    Attributes:
      design: its parts.
      temporal: sees motion by kernels of three frames; otherwise every frame is judged alone.
    """

    design: Discrimination
    temporal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps pixels (B, T, H, W, 3) to float32 logits, (B, T, ...), above 0 for real."""
        d, frames = self.design, 3 if self.temporal else 1

        def conv(y, features, size, stride, name):
            halves = 2 if self.temporal and stride == 2 and d.kind == "patch" and y.shape[1] > 2 else 1
            kernel, strides = (frames, size, size), (halves, stride, stride)
            return place(NormalizedConv(features, kernel, strides, d.spectral_norm, name=name)(y))

        skips, y = [], x
        if d.kind == "unet":
            y = _leak(conv(y, d.width, 3, 1, "conv_in"))
        for level in range(3):
            skips.append(y)
            y = _leak(conv(y, d.width * 2**level, 4, 2, f"down_{level}"))
        y = _leak(conv(y, d.width * 4, 3, 1, "middle"))
        if d.kind == "unet":
            for level in reversed(range(3)):
                skip = skips.pop()
                y = jax.image.resize(y, (*skip.shape[:-1], y.shape[-1]), "linear")
                y = _leak(conv(y, skip.shape[-1], 3, 1, f"up_{level}")) + skip
        return conv(y, 1, 3, 1, "logit")[..., 0]


class NormalizedConv(nn.Module):
    """A convolution whose kernel is divided by its largest singular value.

    The singular vectors lie in the collection "spectral" and are constants here: `power_iteration` moves them
    once an update, for all the batches that the update sees, since they depend on the kernel alone.
    """

    features: int
    kernel_size: Triple
    strides: Triple = (1, 1, 1)
    spectral_norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, T, H, W, C) to (B, T', H', W', features).

        Borders are repeated, so that what a discriminator says of a flat frame does not depend on its size.
        """
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.variance_scaling(2.0, "fan_in", "normal"), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.spectral_norm:
            matrix = kernel.reshape(-1, self.features)
            left = self.variable("spectral", "left", lambda: _start(matrix.shape[0])).value
            right = self.variable("spectral", "right", lambda: _start(matrix.shape[1])).value
            left, right = jax.lax.stop_gradient((left, right))
            kernel = kernel / (left @ matrix @ right)
        strides = (1, *self.strides[1:])
        surplus = [k - s for k, s in zip(self.kernel_size, strides, strict=True)]
        x = jnp.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in surplus), (0, 0)), mode="edge")
        return convolve(x, kernel, self.strides, same=False) + bias


def power_iteration(params: Any, spectral: Any, squarings: int = 0) -> Any:
    """Moves every kernel's singular vectors towards those of its largest singular value.

    Args:
      params: of a discriminator.
      spectral: its collection "spectral".
      squarings: n for 2^n steps before the one that an update takes, all at once: one after the other they
        took longer to compile than the rest of a start.

    Returns:
      The new collection, float32 unit vectors.
    """
    if "left" not in spectral:
        return {name: power_iteration(params[name], vectors, squarings) for name, vectors in spectral.items()}
    matrix = params["kernel"].reshape(-1, params["kernel"].shape[-1])
    right = spectral["right"]
    if squarings:
        with jax.default_matmul_precision("highest"):
            power = matrix.T @ matrix
            for _ in range(squarings):
                power = _unit(power)
                power = power @ power
            right = _unit(power @ right)
    left = _unit(matrix @ right)
    return {"left": left, "right": _unit(matrix.T @ left)}


def _start(size: int) -> jax.Array:
    return _unit(jax.random.normal(jax.random.key(0), (size,)))


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


def _leak(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, 0.2)
