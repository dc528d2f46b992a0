"""Changes of resolution: Haar and patch stems, averaging shortcuts, downsampling and upsampling."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vaejax.models.conv import CausalConv, Triple, first_chunk


def space_to_depth(x: Float[Array, "B T H W C"], factor: int) -> Float[Array, "B T h w c"]:
    """Rearranges (B, T, H, W, C) to (B, T, H/f, W/f, f·f·C), f = factor, ordered (position, channel)."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h // factor, factor, w // factor, factor, c)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, h // factor, w // factor, factor * factor * c)


def depth_to_space(x: Float[Array, "B T h w c"], factor: int) -> Float[Array, "B T H W C"]:
    """Rearranges (B, T, h, w, f·f·C) to (B, T, h·f, w·f, C), f = factor: the inverse of `space_to_depth`."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, factor, factor, c // factor**2)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, h * factor, w * factor, c // factor**2)


def _haar_matrix(factor: int) -> jax.Array:
    """Returns the orthonormal matrix (f·f, f·f), f = factor, of a 2D Haar transform, the low band first."""
    rows = jnp.ones((1, 1))
    while rows.shape[0] < factor:
        low = jnp.kron(rows, jnp.array([[1.0, 1.0]]))
        high = jnp.kron(jnp.eye(rows.shape[0]), jnp.array([[1.0, -1.0]]))
        rows = jnp.concatenate([low, high]) / math.sqrt(2)
    return jnp.kron(rows, rows)


def stem(x: Float[Array, "B T H W C"], factor: int, kind: str) -> Float[Array, "B T h w c"]:
    """Moves blocks of f x f pixels into channels, so that the next convolution has f² times fewer positions.

    Args:
      x: pixels (B, T, H, W, C).
      factor: side f of a block, a power of two.
      kind: 'haar' for the bands of the orthonormal Haar wavelet, 'patch' for the plain pixels.

    Returns:
      Channels (B, T, H/f, W/f, f·f·C), with the same sum of squares as x.
    """
    x = space_to_depth(x, factor)
    if kind == "patch" or factor == 1:
        return x
    pixels = x.reshape(*x.shape[:-1], factor**2, -1)
    return jnp.einsum(
        "pq,...qc->...pc", _haar_matrix(factor).astype(x.dtype), pixels, precision="highest"
    ).reshape(x.shape)


def unstem(x: Float[Array, "B T h w c"], factor: int, kind: str) -> Float[Array, "B T H W C"]:
    """Moves channels (B, T, h, w, f·f·C) back to pixels (B, T, h·f, w·f, C), f = factor: inverts `stem`."""
    if kind == "haar" and factor > 1:
        bands = x.reshape(*x.shape[:-1], factor**2, -1)
        x = jnp.einsum(
            "pq,...pc->...qc", _haar_matrix(factor).astype(x.dtype), bands, precision="highest"
        ).reshape(x.shape)
    return depth_to_space(x, factor)


def average_channels(x: Float[Array, "... C"], features: int) -> Float[Array, "... features"]:
    """Changes the number of channels without parameters, for shortcuts (DC-AE, arXiv 2410.10733).

    The list of channels is first repeated, up to the least common multiple of C and `features`. Channel j of
    the result is then the mean of all channels whose index is j modulo `features`.

    Two examples: from the f·f·K channels of `space_to_depth` to features = K, each of the K channels is
    averaged over the f·f positions. From K channels to features = f·f·K, each channel is copied to the f·f
    positions of `depth_to_space`.

    Args:
      x: (..., C).
      features: number of channels of the result.

    Returns:
      (..., features).
    """
    common = math.lcm(x.shape[-1], features)
    x = jnp.concatenate([x] * (common // x.shape[-1]), axis=-1)
    return x.reshape(*x.shape[:-1], -1, features).mean(axis=-2)


class Downsample(nn.Module):
    """Reduces space and time by a convolution with kernel size = strides, plus an averaging shortcut.

    For st = 2, frames are grouped as 0 | 1 2 | 3 4 ... The first frame is a group of its own, so an image
    stays an image.

    Attributes:
      features: number of output channels.
      strides: strides (st, s, s).
      shortcut: whether to add the shortcut.
      modulated, kernel_init, dtype: see `CausalConv`.
    """

    features: int
    strides: Triple
    shortcut: bool = True
    modulated: bool = True
    kernel_init: nn.initializers.Initializer = CausalConv.kernel_init
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B t h w features"]:
        """Maps (B, 1 + st·k, H, W, C) to (B, 1 + k, H/s, W/s, features).

        A later chunk of a stream has st·k frames, which become k.
        """
        st, s, _ = self.strides
        y = CausalConv(
            self.features,
            self.strides,
            self.strides,
            self.modulated,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x)
        if not self.shortcut:
            return y
        means = space_to_depth(x.astype(self.dtype), s)
        if st > 1:
            head, tail = (means[:, :1], means[:, 1:]) if first_chunk(self) else (means[:, :0], means)
            tail = tail.reshape(tail.shape[0], -1, st, *tail.shape[2:]).mean(axis=2)
            means = jnp.concatenate([head, tail], axis=1)
        return y + average_channels(means, self.features)


class Upsample(nn.Module):
    """Enlarges space and time by a convolution with a 1x1x1 kernel, plus a shortcut by `average_channels`.

    The convolution computes st·s·s pixels from each input pixel, as channels ordered (st, s, s, features).
    Input frame j of a clip becomes output frames st·(j - 1) + 1 to st·j; input frame 0 becomes output frame 0
    alone. An image therefore stays an image, and no output depends on a later input.

    Attributes:
      features: number of output channels.
      strides: enlargement (st, s, s) of time, height and width.
      shortcut: whether to add the shortcut.
      modulated, kernel_init, dtype: see `CausalConv`.
    """

    features: int
    strides: Triple
    shortcut: bool = True
    modulated: bool = True
    kernel_init: nn.initializers.Initializer = CausalConv.kernel_init
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b T H W features"]:
        """Maps (b, 1 + k, h, w, c) to (b, 1 + st·k, h·s, w·s, features).

        A later chunk of a stream has k frames, which become st·k.
        """
        st, s, _ = self.strides
        phases = st * s * s * self.features
        first = first_chunk(self)
        # Of the first frame's st output frames only the last is kept, so an image needs only that one.
        last = phases // st if first and x.shape[1] == 1 else phases
        y = CausalConv(
            phases,
            (1, 1, 1),
            modulated=self.modulated,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x, last=last)
        if self.shortcut:
            y = y + average_channels(x.astype(self.dtype), phases)[..., -last:]
        if st > 1 and last == phases:
            b, t, h, w, _ = y.shape
            y = y.reshape(b, t, h, w, st, -1).transpose(0, 1, 4, 2, 3, 5).reshape(b, t * st, h, w, -1)
            y = y[:, st - 1 :] if first else y
        return depth_to_space(y, s)
