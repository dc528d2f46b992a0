"""The building blocks of Wan's autoencoders (arXiv 2503.20314), exact to diffusers' AutoencoderKLWan.

Names of parameters are those of diffusers, see `wan_names`. Unlike in our own family, zeros precede a clip.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vaejax.models.conv import CausalConv, convolve_doubled, first_chunk

SMALLEST_NORM = 1e-12  # divisor of pixels whose norm is smaller

WanConv = functools.partial(CausalConv, modulated=False, padding="zeros")


def patchify(x: Float[Array, "B T H W C"], side: int) -> Float[Array, "B T h w c"]:
    """Moves blocks of `side` x `side` pixels into channels, ordered (channel, column, row)."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h // side, side, w // side, side, c).transpose(0, 1, 2, 4, 6, 5, 3)
    return x.reshape(b, t, h // side, w // side, c * side * side)


def unpatchify(x: Float[Array, "B T h w c"], side: int) -> Float[Array, "B T H W C"]:
    """Moves channels back to pixels: the inverse of `patchify`."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, c // side**2, side, side).transpose(0, 1, 2, 6, 3, 5, 4)
    return x.reshape(b, t, h * side, w * side, c // side**2)


def average_down(
    x: Float[Array, "B T H W C"], features: int, time: int, space: int, first: bool
) -> Float[Array, "B t h w features"]:
    """Averages blocks of frames and pixels, and channels beside each other, down to `features` channels.

    Args:
      x: frames (B, T, H, W, C). A clip or first chunk has an odd T if time = 2; a zero frame precedes it.
      features: number of channels of the result; divides C·time·space².
      time: frames per block, 1 or 2.
      space: side of a block in pixels, 1 or 2.
      first: whether x starts a clip.

    Returns:
      (B, T / time rounded up, H / space, W / space, features).
    """
    x = jnp.pad(x, ((0, 0), (time - 1 if first else 0, 0), (0, 0), (0, 0), (0, 0)))
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // time, time, h // space, space, w // space, space, c)
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6)  # channels ordered (channel, frame, row, column)
    return x.reshape(b, t // time, h // space, w // space, features, -1).mean(axis=-1)


def repeat_up(
    x: Float[Array, "b t h w c"], features: int, time: int, space: int, first: bool
) -> Float[Array, "b T H W features"]:
    """Repeats channels and spreads them over blocks of frames and pixels: the counterpart of `average_down`.

    Args:
      x: frames (b, t, h, w, c).
      features: number of channels of the result; c divides features·time·space².
      time: frames per block, 1 or 2.
      space: side of a block in pixels, 1 or 2.
      first: whether x starts a clip, whose first frame becomes a single one.

    Returns:
      (b, time·t, h·space, w·space, features), with time - 1 frames less if `first`.
    """
    b, t, h, w, c = x.shape
    x = jnp.repeat(x, features * time * space**2 // c, axis=-1)
    x = x.reshape(b, t, h, w, features, time, space, space).transpose(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.reshape(b, t * time, h * space, w * space, features)
    return x[:, time - 1 :] if first else x


class RmsNorm(nn.Module):
    """RMS normalization over the channels of each pixel, with learned scale.

    Attributes:
      dtype: dtype of the result; the norm is computed in float32.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        """Maps (..., C) to the same shape."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
        # The limit is on the square, because the gradient of a norm of 0 is not finite.
        unit = (x * jax.lax.rsqrt(jnp.maximum(square, SMALLEST_NORM**2))).astype(self.dtype)
        return (unit * (math.sqrt(x.shape[-1]) * scale)).astype(self.dtype)


def normalized(
    parent: nn.Module, norm: str, conv: Callable[..., nn.Module], name: str, x: Float[Array, "B T H W C"]
) -> Float[Array, "B T H W features"]:
    """Computes conv(SiLU(norm(x))), with a normalization and a convolution that are submodules of `parent`.

    The backward pass computes SiLU(norm(x)) anew, not the convolution. So of all these activations only x is
    stored: the backward pass of a whole autoencoder of Wan needs a sixth of the memory.

    Args:
      parent: the calling module.
      norm: name of the normalization.
      conv: function that builds the convolution from `name`.
      name: name of the convolution.
      x: frames (B, T, H, W, C).
    """

    def forward(parent, x):
        return conv(name=name)(nn.silu(RmsNorm(x.dtype, name=norm)(x)))

    return nn.remat(forward)(parent, x)


class ResidualBlock(nn.Module):
    """The residual block x + conv(SiLU(norm(conv(SiLU(norm(x)))))).

    If the number of channels changes, a 1x1x1 convolution of x replaces the first x.

    Attributes:
      features: number of output channels.
      dtype: compute dtype.
    """

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W features"]:
        """Maps (B, T, H, W, C) to (B, T, H, W, features)."""
        conv = functools.partial(WanConv, self.features, dtype=self.dtype)
        y = normalized(self, "norm1", conv, "conv1", x)
        y = normalized(self, "norm2", conv, "conv2", y)
        if x.shape[-1] != self.features:
            x = conv(kernel_size=(1, 1, 1), name="conv_shortcut")(x)
        return x + y


class FrameAttention(nn.Module):
    """Single-head self-attention within each frame, after an RMS normalization.

    Attributes:
      dtype: compute dtype.
    """

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """Maps (B, T, H, W, C) to the same shape; memory grows with (H·W)²."""
        b, t, h, w, c = x.shape
        conv = functools.partial(WanConv, kernel_size=(1, 1, 1), dtype=self.dtype)
        qkv = conv(3 * c, name="to_qkv")(RmsNorm(self.dtype, name="norm")(x))
        query, key, value = (part.reshape(b * t, h * w, 1, c) for part in jnp.split(qkv, 3, axis=-1))
        y = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        # An untrained block is the identity, as in Wan's own code.
        return x + conv(c, kernel_init=nn.initializers.zeros, name="proj")(y)


class Downsample(nn.Module):
    """Halves height and width, and then time: frames 0 | 1 2 | 3 4 ... become frames 0, 1, 2 ...

    The first frame of a clip passes the halving of time unchanged. Every later output frame comes from a pair
    of frames and the one before it.

    Attributes:
      temporal: whether to halve time.
      dtype: compute dtype.
    """

    temporal: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B t h w C"]:
        """Maps (B, 1 + 2k, H, W, C) to (B, 1 + k, H/2, W/2, C); without `temporal`, T stays.

        A later chunk of a stream has 2k frames, which become k.
        """
        conv = functools.partial(WanConv, x.shape[-1], dtype=self.dtype)
        x = conv((1, 3, 3), (1, 2, 2), name="resample_1")(x)
        if not self.temporal:
            return x
        first = first_chunk(self)
        y = conv((3, 1, 1), (2, 1, 1), padding="none", name="time_conv")(x)
        return jnp.concatenate([x[:, :1], y], axis=1) if first else y


class Upsample(nn.Module):
    """Doubles time, and then height and width.

    The first frame of a clip passes the doubling of time unchanged, and later frames do not see it there.

    Attributes:
      features: number of output channels.
      temporal: whether to double time.
      dtype: compute dtype.
    """

    features: int
    temporal: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b T H W features"]:
        """Maps (b, 1 + k, h, w, c) to (b, 1 + 2k, 2h, 2w, features); without `temporal`, t stays.

        A later chunk of a stream has k frames, which become 2k.
        """
        conv = functools.partial(WanConv, dtype=self.dtype)
        if self.temporal:
            head, tail = (x[:, :1], x[:, 1:]) if first_chunk(self) else (x[:, :0], x)
            tail = conv(2 * x.shape[-1], (3, 1, 1), name="time_conv")(tail)
            tail = tail.reshape(*tail.shape[:-1], 2, x.shape[-1]).transpose(0, 1, 4, 2, 3, 5)
            tail = tail.reshape(x.shape[0], -1, *x.shape[2:])
            x = jnp.concatenate([head.astype(tail.dtype), tail], axis=1)
        return DoublingConv(self.features, self.dtype, name="resample_1")(x)


class DoublingConv(nn.Module):
    """A doubling of height and width, which copies pixels, and a 3x3 convolution with bias.

    Attributes:
      features: number of output channels.
      dtype: compute dtype; parameters are float32.
    """

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t H W features"]:
        """Maps (b, t, h, w, c) to (b, t, 2h, 2w, features)."""
        kernel = self.param("kernel", CausalConv.kernel_init, (1, 3, 3, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = convolve_doubled(x.astype(self.dtype), kernel)
        return (y + bias).astype(self.dtype)  # added in float32, so that its gradient is a float32 sum
