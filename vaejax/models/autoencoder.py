"""The VAE: encoder, posterior, decoder, and its named sizes."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vaejax.models import dct_init as transform
from vaejax.models.blocks import FrameAttention, ResidualBlock
from vaejax.models.constraints import place
from vaejax.models.conv import CausalConv, Triple
from vaejax.models.latent_shape import decoded_frames, latent_frames, latent_side
from vaejax.models.posterior import DiagonalGaussian
from vaejax.models.remat import recomputed
from vaejax.models.resample import Downsample, Upsample, stem, unstem

SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"stem_factor": 4, "widths": (96, 96, 192), "encoder_blocks": 1, "decoder_blocks": 1},
    "small": {"stem_factor": 2, "widths": (96, 192, 192), "encoder_blocks": 2, "decoder_blocks": 3},
    "base": {"stem_factor": 2, "widths": (144, 288, 576), "encoder_blocks": 2, "decoder_blocks": 3},
    "large": {"stem_factor": 2, "widths": (192, 384, 768), "encoder_blocks": 4, "decoder_blocks": 4},
}
LOG_VARIANCE_INIT = -8.0  # a posterior this narrow lets reconstruction start at once; the KL widens it


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What an autoencoder is made of.

    Attributes:
      widths: channels of each level, highest resolution first; the last is repeated if levels need more.
      encoder_blocks, decoder_blocks: residual blocks a level.
      latent_channels: c of the latent.
      spatial_factor: 4, 8 or 16 pixels a latent pixel, each way.
      temporal_factor: 1, 2, 4 or 8 frames a latent frame.
      stem: 'haar' or 'patch'.
      stem_factor: pixels each way that the stem moves into channels: 1, 2 or 4.
      conv: 'smc' or 'groupnorm'.
      film: modulation by modality, see `blocks.Film`.
      pixel_norm: RMS normalisation of pixels in every block.
      attention: attention within each frame at the lowest resolution.
      remat: levels (0 is the highest resolution) whose blocks are recomputed in the backward pass.
      dtype: compute dtype, 'float32' or 'bfloat16'; parameters are float32.
    """

    widths: tuple[int, ...] = (96, 192, 384)
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    latent_channels: int = 16
    spatial_factor: int = 8
    temporal_factor: int = 4
    stem: str = "haar"
    stem_factor: int = 2
    conv: str = "smc"
    film: bool = False
    pixel_norm: bool = False
    attention: bool = False
    remat: tuple[int, ...] = ()
    dtype: str = "float32"

    @property
    def strides(self) -> tuple[Triple, ...]:
        """(st, sh, sw) from each level to the next; time is halved late, where features are cheap."""
        spatial = int(math.log2(self.spatial_factor // self.stem_factor))
        temporal = int(math.log2(self.temporal_factor))
        count = max(spatial, temporal)
        space = [2] * spatial + [1] * (count - spatial)
        time = [1] * (count - temporal) + [2] * temporal
        return tuple((t, s, s) for t, s in zip(time, space, strict=True))

    def width(self, level: int) -> int:
        """Channels of a level."""
        return self.widths[min(level, len(self.widths) - 1)]

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t, h, w, c) of the latent of a clip (T, H, W); started groups and blocks count as one."""
        return (
            latent_frames(frames, self.temporal_factor),
            latent_side(height, self.spatial_factor),
            latent_side(width, self.spatial_factor),
            self.latent_channels,
        )

    def padding(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Frames, rows and columns that a clip (T, H, W) lacks of the size that its latent decodes to."""
        t, h, w, _ = self.latent_shape(frames, height, width)
        s = self.spatial_factor
        return decoded_frames(t, self.temporal_factor) - frames, h * s - height, w * s - width


class Autoencoder(nn.Module):
    """A causal 3D VAE of videos, images being videos of one frame."""

    architecture: Architecture

    def setup(self):
        """Makes both halves."""
        self.encoder = Encoder(self.architecture)
        self.decoder = Decoder(self.architecture)

    def encode(self, x: jax.Array, is_video: bool | None = None) -> DiagonalGaussian:
        """Maps pixels (B, T, H, W, 3) in [-1, 1], T = 1 + ft·k, to a posterior over (b, 1 + k, h, w, c).

        With the "cache" collection mutable, x is the next chunk of a stream: 1 + ft·k frames first, then any
        multiples of ft. `is_video` matters to FiLM alone, for a stream whose first chunk is one frame.
        """
        return DiagonalGaussian.from_moments(self.encoder(x, _is_video(x, is_video)))

    def decode(self, z: jax.Array, is_video: bool | None = None) -> jax.Array:
        """Maps latents (b, 1 + k, h, w, c) to float32 pixels (B, 1 + ft·k, H, W, 3), about [-1, 1].

        With the "cache" collection mutable, z is the next chunk of a stream, of any number of latent frames.
        """
        return self.decoder(z, _is_video(z, is_video))

    def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, DiagonalGaussian]:
        """Encodes, samples with `key` and decodes (B, T, H, W, 3): the reconstruction and the posterior."""
        posterior = self.encode(x)
        return self.decode(posterior.sample(key), _is_video(x, None)), posterior


class Encoder(nn.Module):
    """Pixels to the moments of the posterior."""

    architecture: Architecture

    @nn.compact
    def __call__(self, x: jax.Array, is_video: bool) -> jax.Array:
        """Maps (B, T, H, W, 3) to (b, t, h, w, 2c) float32."""
        a = self.architecture
        plain = functools.partial(CausalConv, modulated=False, dtype=jnp.dtype(a.dtype))
        block = (a.temporal_factor, a.spatial_factor, a.spatial_factor)
        linear = Downsample(
            a.latent_channels,
            block,
            shortcut=False,
            modulated=False,
            kernel_init=transform.analysis,
            name="linear",
        )(x)
        x = place(plain(a.width(0), name="conv_in")(stem(x, a.stem_factor, a.stem)))
        for level, strides in enumerate((None, *a.strides)):
            if strides:
                down = Downsample(
                    a.width(level), strides, modulated=a.conv == "smc", dtype=x.dtype, name=f"down_{level}"
                )
                x = place(down(x))
            x = _blocks(self, x, level, a.encoder_blocks, is_video)
        if a.attention:
            x = FrameAttention(x.dtype, name="attention")(x)
        x = plain(2 * a.latent_channels, kernel_init=nn.initializers.zeros, name="conv_out")(x)
        mean, log_variance = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return place(jnp.concatenate([linear + mean, log_variance + LOG_VARIANCE_INIT], axis=-1))


class Decoder(nn.Module):
    """Latents to pixels: the encoder's mirror."""

    architecture: Architecture

    @nn.compact
    def __call__(self, z: jax.Array, is_video: bool) -> jax.Array:
        """Maps (b, t, h, w, c) to (B, T, H, W, 3) float32."""
        a = self.architecture
        plain = functools.partial(CausalConv, modulated=False, dtype=jnp.dtype(a.dtype))
        block = (a.temporal_factor, a.spatial_factor, a.spatial_factor)
        linear = Upsample(
            3,
            block,
            shortcut=False,
            modulated=False,
            kernel_init=transform.synthesis(*block[:2]),
            name="linear",
        )(z)
        lowest = len(a.strides)
        x = place(plain(a.width(lowest), name="conv_in")(place(z)))
        if a.attention:
            x = FrameAttention(x.dtype, name="attention")(x)
        for level in range(lowest, -1, -1):
            x = _blocks(self, x, level, a.decoder_blocks, is_video)
            if level:
                up = Upsample(
                    a.width(level - 1),
                    a.strides[level - 1],
                    modulated=a.conv == "smc",
                    dtype=x.dtype,
                    name=f"up_{level}",
                )
                x = place(up(x))
        x = plain(3 * a.stem_factor**2, kernel_init=nn.initializers.zeros, name="conv_out")(x)
        return place(linear + unstem(x.astype(jnp.float32), a.stem_factor, a.stem))


def _blocks(module: nn.Module, x: jax.Array, level: int, count: int, is_video: bool) -> jax.Array:
    """The residual blocks of a level, recomputed in the backward pass where asked; sows activation norms."""
    a = module.architecture
    block = functools.partial(ResidualBlock, a.conv, a.film, a.pixel_norm, jnp.dtype(a.dtype))
    differentiated = not module.is_initializing() and not module.is_mutable_collection("cache")
    for i in range(count):
        name = f"level_{level}_block_{i}"
        if level in a.remat and differentiated:
            alone = block(parent=None)
            params = module.variables["params"][name]
            x = recomputed(lambda params, x, b=alone: b.apply({"params": params}, x, is_video), params, x)
        else:
            x = block(name=name)(x, is_video)
    if module.is_mutable_collection("activations") and not module.is_initializing():
        norms = jnp.linalg.norm(x.astype(jnp.float32), axis=-1)
        module.sow("activations", f"level_{level}", norms, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return x


def _is_video(x: jax.Array, is_video: bool | None) -> bool:
    return x.shape[1] > 1 if is_video is None else is_video
