"""Normalisations that never look across time, so that streaming stays exact."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class PixelNorm(nn.Module):
    """RMS normalisation over the channels of each pixel (arXiv 1710.10196, section 4.2), with learned scale.

    Attributes:
      dtype: of the result; the mean square is taken in float32.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., C) to (..., C) of unit mean square."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        return (x * scale).astype(self.dtype)


class FrameGroupNorm(nn.Module):
    """Group normalisation of every frame by itself (arXiv 1803.08494), statistics in float32.

    Attributes:
      groups: at most this many groups; fewer where the channels do not divide.
      dtype: of the result.
    """

    groups: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, T, H, W, C) to the same shape."""
        b, t, *rest = x.shape
        groups = max(g for g in range(1, self.groups + 1) if x.shape[-1] % g == 0)
        frames = x.reshape(b * t, *rest)
        return nn.GroupNorm(groups, dtype=self.dtype, name="norm")(frames).reshape(x.shape)
