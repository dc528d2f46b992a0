"""Changes of resolution: Haar and patch stems, averaging shortcuts, down- and up-sampling."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vaejax.models.conv import CausalConv, Triple, first_chunk


def space_to_depth(x: jax.Array, factor: int) -> jax.Array:
    """(B, T, H, W, C) to (B, T, H/f, W/f, f·f·C), the pixel's place before its channel."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h // factor, factor, w // factor, factor, c)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, h // factor, w // factor, factor * factor * c)


def depth_to_space(x: jax.Array, factor: int) -> jax.Array:
    """The inverse of `space_to_depth`."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h, w, factor, factor, c // factor**2)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, t, h * factor, w * factor, c // factor**2)


def _haar_matrix(factor: int) -> jax.Array:
    """(f·f, f·f) orthonormal 2D Haar transform of a patch, log2(f) levels, low band first."""
    rows = jnp.ones((1, 1))
    while rows.shape[0] < factor:
        low = jnp.kron(rows, jnp.array([[1.0, 1.0]]))
        high = jnp.kron(jnp.eye(rows.shape[0]), jnp.array([[1.0, -1.0]]))
        rows = jnp.concatenate([low, high]) / math.sqrt(2)
    return jnp.kron(rows, rows)


def stem(x: jax.Array, factor: int, kind: str) -> jax.Array:
    """Moves f x f pixels into channels before the first convolution: f² less work at full resolution.

    Args:
      x: (B, T, H, W, C).
      factor: 1, 2, 4 or 8.
      kind: 'haar' for the orthonormal wavelet's bands, 'patch' for the bare pixels.

    Returns:
      (B, T, H/f, W/f, f·f·C), of the same energy.
    """
    x = space_to_depth(x, factor)
    if kind == "patch" or factor == 1:
        return x
    pixels = x.reshape(*x.shape[:-1], factor**2, -1)
    return jnp.einsum(
        "pq,...qc->...pc", _haar_matrix(factor).astype(x.dtype), pixels, precision="highest"
    ).reshape(x.shape)


def unstem(x: jax.Array, factor: int, kind: str) -> jax.Array:
    """The exact inverse of `stem`."""
    if kind == "haar" and factor > 1:
        bands = x.reshape(*x.shape[:-1], factor**2, -1)
        x = jnp.einsum(
            "pq,...pc->...qc", _haar_matrix(factor).astype(x.dtype), bands, precision="highest"
        ).reshape(x.shape)
    return depth_to_space(x, factor)


def average_channels(x: jax.Array, features: int) -> jax.Array:
    """A parameter-free change of channel count, for shortcuts (DC-AE, arXiv 2410.10733).

    Channel j of the result is the mean of the channels congruent to j modulo `features`, after the channels
    were repeated as a block to the least common multiple. With places before channels, as `space_to_depth`
    orders them, that averages one channel over places, or gives every place all channels.

    Args:
      x: (..., C).
      features: channels of the result.

    Returns:
      (..., features).
    """
    common = math.lcm(x.shape[-1], features)
    x = jnp.concatenate([x] * (common // x.shape[-1]), axis=-1)
    return x.reshape(*x.shape[:-1], -1, features).mean(axis=-2)


class Downsample(nn.Module):
    """Reduces space and time: a convolution of kernel = stride beside an averaging shortcut.

    Frames are grouped 0 | 1 2 | 3 4 ...: the first stands alone, which keeps an image an image.

    Attributes:
      features: output channels.
      strides: (st, s, s).
      shortcut: whether the shortcut is there.
      modulated, kernel_init, dtype: see `CausalConv`.
    """

    features: int
    strides: Triple
    shortcut: bool = True
    modulated: bool = True
    kernel_init: nn.initializers.Initializer = CausalConv.kernel_init
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, 1 + st·k, H, W, C) to (B, 1 + k, H/s, W/s, features)."""
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
    """Enlarges space and time: a pointwise convolution into phases beside a repeating shortcut.

    Frame j becomes frames st·(j - 1) + 1 ... st·j; those before frame 0 do not exist, so the first frame
    gives one frame, an image stays an image, and no output depends on a later latent.

    Attributes:
      features: output channels.
      strides: (st, s, s).
      shortcut: whether the shortcut is there.
      modulated, kernel_init, dtype: see `CausalConv`; the kernel's outputs are ordered (st, s, s, features).
    """

    features: int
    strides: Triple
    shortcut: bool = True
    modulated: bool = True
    kernel_init: nn.initializers.Initializer = CausalConv.kernel_init
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (b, 1 + k, h, w, c) to (b, 1 + st·k, h·s, w·s, features)."""
        st, s, _ = self.strides
        phases = st * s * s * self.features
        first = first_chunk(self)
        # An image needs only the last phase in time: it must not pay for frames that do not exist.
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
