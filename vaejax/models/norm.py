"""Normalizations within a frame. None mixes frames, so splitting a clip into chunks changes no result."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class PixelNorm(nn.Module):
    """RMS normalization over the channels of each pixel (arXiv 1710.10196, section 4.2), with learned scale.

    Attributes:
      dtype: dtype of the result; the mean square is computed in float32.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        """Maps (..., C) to the same shape, with unit mean square over C before the scale."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        return (x * scale).astype(self.dtype)


class FrameGroupNorm(nn.Module):
    """Group normalization of each frame alone (arXiv 1803.08494), with statistics in float32.

    Attributes:
      groups: maximum number of groups; the largest divisor of C up to this maximum is used.
      dtype: dtype of the result.
    """

    groups: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        """Maps (B, T, H, W, C) to the same shape."""
        b, t, *rest = x.shape
        groups = max(g for g in range(1, self.groups + 1) if x.shape[-1] % g == 0)
        frames = x.reshape(b * t, *rest)
        return nn.GroupNorm(groups, dtype=self.dtype, name="norm")(frames).reshape(x.shape)
