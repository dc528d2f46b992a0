"""Residual blocks, attention within a frame, and FiLM: what a level of the autoencoder is made of."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vaejax.models.conv import CausalConv
from vaejax.models.norm import FrameGroupNorm, PixelNorm


class ResidualBlock(nn.Module):
    """x + conv(SiLU(conv(SiLU(x)))), self-modulated; with 'groupnorm' each SiLU follows a normalisation.

    Attributes:
      conv: 'smc' or 'groupnorm'.
      film: modulate by modality (FiLM, arXiv 1709.07871): one learned scale and shift a channel for images
        and one for videos, neutral at the start. It breaks "an image is a static video" on purpose.
      pixel_norm: RMS-normalise each pixel at the block's entrance.
      dtype: compute dtype.
    """

    conv: str = "smc"
    film: bool = False
    pixel_norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, is_video: bool) -> jax.Array:
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
        # The branch starts at 0, by its gain or its kernel, and the block as the identity.
        start = {"kernel_init": nn.initializers.zeros} if norm else {"gain_init": 0.0}
        return x + conv(**start, name="conv_1")(nn.silu(y))


class Film(nn.Module):
    """Feature-wise linear modulation by modality: (1 + scale) · x + shift, of image or of video."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, is_video: bool) -> jax.Array:
        """Maps (B, T, H, W, C) to the same shape."""
        table = self.param("modality", nn.initializers.zeros, (2, 2, x.shape[-1]))
        scale, shift = table[int(is_video)].astype(self.dtype)
        return x * (1 + scale) + shift


class FrameAttention(nn.Module):
    """Single-head self-attention within each frame, queries and keys RMS-normalised (arXiv 2302.05442).

    Without the normalisation its logits grow until a few pixels take all attention: the black dots that the
    notes traced to this place at 360p and 720p. It never looks across time.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, T, H, W, C) to the same shape; memory grows with (H·W)²."""
        b, t, h, w, c = x.shape
        y = PixelNorm(dtype=self.dtype, name="norm")(x)
        query, key, value = jnp.split(nn.Dense(3 * c, dtype=self.dtype, name="qkv")(y), 3, axis=-1)
        query = PixelNorm(dtype=self.dtype, name="query_norm")(query)
        key = PixelNorm(dtype=self.dtype, name="key_norm")(key)
        tokens = (b * t, h * w, 1, c)
        y = jax.nn.dot_product_attention(query.reshape(tokens), key.reshape(tokens), value.reshape(tokens))
        zeros = nn.initializers.zeros
        return x + nn.Dense(c, dtype=self.dtype, kernel_init=zeros, name="out")(y.reshape(x.shape))
