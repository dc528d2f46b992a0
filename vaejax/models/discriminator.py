"""Discriminators between real and reconstructed media, per patch (PatchGAN) or per pixel (UNet)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vaejax.models.constraints import place
from vaejax.models.conv import Triple, convolve


@dataclasses.dataclass(frozen=True)
class DiscriminatorDesign:
    """The hyperparameters of a discriminator.

    A discriminator always computes in float32, even if the autoencoder computes in bfloat16. It depends on
    small differences; in bfloat16 the adversarial losses drifted from those in float32 by up to 21%. In
    training, its products are rounded to TensorFloat-32 on GPUs and computed in three bfloat16 passes on
    TPUs.

    Attributes:
      kind: 'patch' (PatchGAN, arXiv 1611.07004: one logit per 8x8 pixels) or 'unet' (the per-pixel output of
        arXiv 2002.12655 without its logit per image: one logit per pixel).
      width: channels of the first level; each of the next two levels doubles them.
      spectral_norm: whether every kernel is divided by its largest singular value (arXiv 1802.05957).
    """

    kind: str
    width: int
    spectral_norm: bool


class Discriminator(nn.Module):
    """A network that scores clips, or each frame alone, as real or reconstructed.

    Attributes:
      design: hyperparameters of the network.
      temporal: whether kernels span three frames; otherwise every frame is scored alone.
    """

    design: DiscriminatorDesign
    temporal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T_out h w"]:
        """Maps pixels (B, T, H, W, C) in [-1, 1] to float32 logits (B, T', h, w), positive for real.

        A temporal PatchGAN halves the number of frames, rounded up, until two are left, at most three times.
        Any other discriminator keeps all frames: T' = T.
        """
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
    """A convolution whose kernel can be divided by its largest singular value.

    The Flax collection "spectral" holds the singular vectors for this, which a forward pass only reads. They
    depend on the kernel and not on the input, so `power_iteration` refines them once per update, not once per
    batch.

    Attributes:
      features: number of output channels.
      kernel_size: frames, height and width (kt, kh, kw) of the kernel.
      strides: strides (st, sh, sw) in time, height and width.
      spectral_norm: whether to divide the kernel; if False, the kernel is used as it is.
    """

    features: int
    kernel_size: Triple
    strides: Triple = (1, 1, 1)
    spectral_norm: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T_out H_out W_out features"]:
        """Maps (B, T, H, W, C) to (B, T', H', W', features).

        Padding repeats the border pixels, so that the logits of a uniform frame do not depend on its size.
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
    """Runs a step of power iteration for the largest singular value of every kernel.

    Args:
      params: parameters of a discriminator.
      spectral: the discriminator's collection "spectral": left and right singular vectors of each kernel.
      squarings: n; if above 0, 2^n further steps come first, computed by squaring a matrix n times. An
        unrolled loop of 2^n steps took longer to compile than the rest of the initialization.

    Returns:
      The refined collection, of float32 unit vectors.
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
