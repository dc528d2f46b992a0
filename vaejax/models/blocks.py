"""The building blocks of an autoencoder level: residual block, FiLM and attention within a frame."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vaejax.models.conv import CausalConv
from vaejax.models.norm import FrameGroupNorm, PixelNorm


class ResidualBlock(nn.Module):
    """The residual block x + conv(SiLU(conv(SiLU(x)))).

    Attributes:
      conv: 'smc' for self-modulated convolutions, 'groupnorm' for a group normalization before each SiLU.
      film: whether to scale and shift images and videos differently, see `Film`.
      pixel_norm: whether to RMS-normalize each pixel over its channels first.
      dtype: compute dtype.
    """

    conv: str
    film: bool
    pixel_norm: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], is_video: bool) -> Float[Array, "B T H W C"]:
        """Maps (B, T, H, W, C) to the same shape."""
        conv = functools.partial(CausalConv, x.shape[-1], modulated=self.conv == "smc", dtype=self.dtype)
        norm = functools.partial(FrameGroupNorm, dtype=self.dtype) if self.conv == "groupnorm" else None
        y = x
        if self.pixel_norm:
            y = PixelNorm(dtype=self.dtype, name="pixel_norm")(y)
        if norm:
            y = norm(name="norm_0")(y)
        y = conv(name="conv_0")(nn.silu(y))
        if norm:
            y = norm(name="norm_1")(y)
        if self.film:
            y = Film(dtype=self.dtype, name="film")(y, is_video)
        # A gain or kernel of 0 makes the block start as the identity.
        start: dict[str, Any] = {"kernel_init": nn.initializers.zeros} if norm else {"gain_init": 0.0}
        return x + conv(**start, name="conv_1")(nn.silu(y))


class Film(nn.Module):
    """Feature-wise linear modulation (FiLM, arXiv 1709.07871) by modality: (1 + scale) · x + shift.

    Images and videos each have a learned scale and shift per channel, both 0 at initialization. A model with
    this module may encode an image differently from a static video of it; a model without this module does
    not.

    Attributes:
      dtype: compute dtype.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], is_video: bool) -> Float[Array, "B T H W C"]:
        """Maps (B, T, H, W, C) to the same shape."""
        table = self.param("modality", nn.initializers.zeros, (2, 2, x.shape[-1]))
        scale, shift = table[int(is_video)]
        # In float32, because the gradients of scale and shift are sums over all pixels.
        return (x * (1 + scale) + shift).astype(self.dtype)


class FrameAttention(nn.Module):
    """Single-head self-attention within each frame; it never attends across time.

    Attributes:
      qk_norm: whether to RMS-normalize queries and keys (arXiv 2302.05442). Without this, attention logits
        can grow until a few pixels receive all attention and decoded frames have black dots (see the field
        notes in docs/training.md).
      dtype: compute dtype.
    """

    qk_norm: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """Maps (B, T, H, W, C) to the same shape; memory grows with (H·W)²."""
        b, t, h, w, c = x.shape
        y = PixelNorm(dtype=self.dtype, name="norm")(x)
        query, key, value = jnp.split(nn.Dense(3 * c, dtype=self.dtype, name="qkv")(y), 3, axis=-1)
        if self.qk_norm:
            query = PixelNorm(dtype=self.dtype, name="query_norm")(query)
            key = PixelNorm(dtype=self.dtype, name="key_norm")(key)
        tokens = (b * t, h * w, 1, c)
        y = jax.nn.dot_product_attention(query.reshape(tokens), key.reshape(tokens), value.reshape(tokens))
        zeros = nn.initializers.zeros
        return x + nn.Dense(c, dtype=self.dtype, kernel_init=zeros, name="out")(y.reshape(x.shape))
