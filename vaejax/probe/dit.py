"""The diffusion transformer (DiT, arXiv 2212.09748) for latents of images and clips."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

FREQUENCIES = 256  # channels of the sinusoidal embedding of a time


class DiT(nn.Module):
    """Diffusion transformer that predicts a velocity from noisy latents.

    Attributes:
      width: channels of a token; a multiple of 4 and of `heads`.
      depth: number of blocks.
      heads: number of attention heads.
      patch: side of a token in latent pixels, 1 or 2; a token covers one latent frame.
      attention: 'full' over all tokens, or 'factorised': blocks alternate between attention over space and
        over time (Latte, arXiv 2401.03048, variant 1). For images, all blocks attend over space.
      classes: number of classes; 0 for an unconditional model.
      dtype: compute dtype; parameters, normalization, softmax and the output are float32.
    """

    width: int
    depth: int
    heads: int
    patch: int = 1
    attention: str = "full"
    classes: int = 0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array, times: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """Predicts velocities of latents (b, t, h, w, c) at times (b,) in [0, 1], given class labels (b,)."""
        _, t, h, w, c = x.shape
        dtype = jnp.dtype(self.dtype)
        tokens = nn.Dense(self.width, dtype=dtype, name="embed")(patchify(x, self.patch))
        tokens += embed_positions(t, h // self.patch, w // self.patch, self.width).astype(dtype)
        condition = nn.Dense(self.width, kernel_init=_NORMAL, name="time_in")(embed_times(times))
        condition = nn.Dense(self.width, kernel_init=_NORMAL, name="time_out")(nn.silu(condition))
        if self.classes:
            condition += nn.Embed(self.classes, self.width, embedding_init=_NORMAL, name="label")(labels)
        condition = nn.silu(condition).astype(dtype)[:, None, None]
        for i in range(self.depth):
            axis = "full" if self.attention == "full" else "time" if i % 2 and t > 1 else "space"
            tokens = Block(self.heads, axis, dtype, name=f"block_{i}")(tokens, condition)
        shift, scale = _modulation(condition, 2)
        tokens = _normalized(tokens) * (1 + scale) + shift
        out = nn.Dense(self.patch**2 * c, kernel_init=nn.initializers.zeros, dtype=dtype, name="out")(tokens)
        return unpatchify(out.astype(jnp.float32), h, w, self.patch)


class Block(nn.Module):
    """Transformer block: attention and an MLP, each shifted, scaled and gated by the condition.

    A newly initialized block is the identity, because its gates are 0.

    Attributes:
      heads: number of attention heads.
      axis: 'full', 'space' or 'time', the axes over which tokens attend.
      dtype: compute dtype.
    """

    heads: int
    axis: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """Maps tokens (b, t, s, d), s per latent frame, and a condition (b, 1, 1, d) to tokens."""
        width = x.shape[-1]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = _modulation(condition, 6)
        h = _normalized(x) * (1 + scale_1) + shift_1
        x = x + gate_1 * Attention(self.heads, self.axis, self.dtype, name="attention")(h)
        h = _normalized(x) * (1 + scale_2) + shift_2
        h = nn.Dense(4 * width, kernel_init=_XAVIER, dtype=self.dtype, name="mlp_in")(h)
        h = nn.Dense(width, kernel_init=_XAVIER, dtype=self.dtype, name="mlp_out")(nn.gelu(h))
        return x + gate_2 * h


class Attention(nn.Module):
    """Softmax attention with RMS-normalized queries and keys (QK-norm, arXiv 2302.05442).

    Attributes:
      heads: number of heads, each of width d / heads.
      axis: 'full', 'space' or 'time', the axes over which tokens attend.
      dtype: compute dtype; the softmax is in float32.
    """

    heads: int
    axis: str = "full"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens (b, t, s, d), s per latent frame, to tokens of that shape."""
        b, t, s, width = x.shape
        if self.axis == "time":
            x = x.swapaxes(1, 2)
        sequences = (b, t * s) if self.axis == "full" else (b * x.shape[1], x.shape[2])
        qkv = nn.Dense(3 * width, kernel_init=_XAVIER, dtype=self.dtype, name="qkv")(x)
        qkv = qkv.reshape(*sequences, 3, self.heads, width // self.heads)
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        query = nn.RMSNorm(dtype=self.dtype, name="query_norm")(query)
        key = nn.RMSNorm(dtype=self.dtype, name="key_norm")(key)
        x = jax.nn.dot_product_attention(query, key, value).reshape(*x.shape)
        x = nn.Dense(width, kernel_init=_XAVIER, dtype=self.dtype, name="out")(x)
        return x.swapaxes(1, 2) if self.axis == "time" else x


def patchify(x: jax.Array, patch: int) -> jax.Array:
    """Maps latents (b, t, h, w, c) to tokens (b, t, h/patch · w/patch, patch² · c)."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t, h // patch, patch, w // patch, patch, c).swapaxes(3, 4)
    return x.reshape(b, t, (h // patch) * (w // patch), patch**2 * c)


def unpatchify(tokens: jax.Array, h: int, w: int, patch: int) -> jax.Array:
    """Inverts `patchify`: maps tokens (b, t, s, patch² · c) to latents (b, t, h, w, c)."""
    b, t, _, _ = tokens.shape
    x = tokens.reshape(b, t, h // patch, w // patch, patch, patch, -1).swapaxes(3, 4)
    return x.reshape(b, t, h, w, -1)


def embed_positions(t: int, h: int, w: int, width: int) -> jax.Array:
    """Sinusoidal position embeddings (t, h·w, width).

    Half of the channels encode the row and half the column. For clips, an embedding of the frame index is
    added to all channels.
    """
    rows, columns = (_waves(np.arange(n), width // 2) for n in (h, w))
    grid = [np.broadcast_to(rows[:, None], (h, w, width // 2)), np.broadcast_to(columns, (h, w, width // 2))]
    space = np.concatenate(grid, -1).reshape(1, h * w, width)
    time = _waves(np.arange(t), width)[:, None] if t > 1 else 0
    return jnp.asarray(space + time, jnp.float32)


def embed_times(times: jax.Array) -> jax.Array:
    """Sinusoidal embedding (b, FREQUENCIES) of times (b,) in [0, 1]; time 1 is step 1000 of DiT."""
    waves = np.exp(-math.log(10_000) * np.arange(FREQUENCIES // 2) / (FREQUENCIES // 2))
    angles = 1000 * times[:, None] * waves.astype(np.float32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def _waves(positions: np.ndarray, width: int) -> np.ndarray:
    angles = positions[:, None] / 10_000 ** (np.arange(width // 2) / (width // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def _normalized(x: jax.Array) -> jax.Array:
    """Layer normalization without scale and bias, in float32; callers scale and shift by the condition."""
    return nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=x.dtype)(x)


def _modulation(condition: jax.Array, parts: int) -> list[jax.Array]:
    """`parts` zero-initialized linear maps of the condition, as a submodule of the caller."""
    width = condition.shape[-1]
    zeros = nn.initializers.zeros
    linear = nn.Dense(parts * width, kernel_init=zeros, dtype=condition.dtype, name="modulation")
    return jnp.split(linear(condition), parts, axis=-1)


_NORMAL = nn.initializers.normal(0.02)
_XAVIER = nn.initializers.xavier_uniform()
