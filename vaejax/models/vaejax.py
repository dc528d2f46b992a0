"""vaejax's own family of autoencoders: its sizes, encoder and decoder."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vaejax.errors import InputError
from vaejax.models import dct_init
from vaejax.models.blocks import FrameAttention, ResidualBlock
from vaejax.models.constraints import place
from vaejax.models.conv import CausalConv, Triple
from vaejax.models.design import Design
from vaejax.models.monitor import record
from vaejax.models.posterior import LOG_VARIANCE_INIT
from vaejax.models.remat import submodule
from vaejax.models.resample import Downsample, Upsample, stem, unstem

SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"stem_factor": 4, "widths": (96, 96, 192), "encoder_blocks": 1, "decoder_blocks": 1},
    # For distillation: a decoder that works at a quarter of the resolution.
    "tiny_decoder": {"stem_factor": 4, "widths": (96, 192, 288), "encoder_blocks": 1, "decoder_blocks": 2},
    "small": {"stem_factor": 2, "widths": (96, 192, 192), "encoder_blocks": 2, "decoder_blocks": 3},
    # Multiples of 128 fill the tiles of TPUs and GPUs.
    "base": {"stem_factor": 2, "widths": (128, 256, 512), "encoder_blocks": 2, "decoder_blocks": 3},
    "large": {"stem_factor": 2, "widths": (256, 512, 1024), "encoder_blocks": 2, "decoder_blocks": 3},
}


@dataclasses.dataclass(frozen=True)
class VaejaxDesign(Design):
    """The hyperparameters of an encoder or a decoder of this family.

    Attributes:
      widths: channels of each level, highest resolution first; further levels repeat the last width.
      encoder_blocks, decoder_blocks: residual blocks per level.
      latent_channels: number of latent channels c.
      spatial_factor: fs, pixels per latent pixel along height and along width: 4, 8 or 16.
      temporal_factor: ft, frames per latent frame: 1, 2, 4 or 8; the first latent frame holds one frame.
      pixel_channels: number of pixel channels C: 3 for RGB.
      stem: 'haar' (wavelet bands) or 'patch' (plain pixels), see `resample.stem`.
      stem_factor: side of the pixel block that the stem moves into channels: 1, 2 or 4.
      conv: 'smc' (self-modulated convolutions) or 'groupnorm'.
      film: whether images and videos get different scales and shifts of activations, see `blocks.Film`.
      pixel_norm: whether every block first RMS-normalizes each pixel over its channels.
      attention: whether the lowest resolution has self-attention within each frame.
      qk_norm: whether this attention RMS-normalizes its queries and keys.
      remat: levels (0 is the highest resolution) whose blocks are recomputed in the backward pass.
      dtype: compute dtype, 'float32' or 'bfloat16'; parameters are float32.
    """

    widths: tuple[int, ...]
    encoder_blocks: int
    decoder_blocks: int
    latent_channels: int
    spatial_factor: int
    temporal_factor: int
    pixel_channels: int
    stem: str
    stem_factor: int
    conv: str
    film: bool
    pixel_norm: bool
    attention: bool
    qk_norm: bool
    remat: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, model: Any) -> "VaejaxDesign":
        """Builds the design from the section `model` of a configuration.

        If a field of `model` is empty or 0, the preset `SIZES[model.size]` may supply the value.

        Raises:
          InputError: if the family lacks the size, stem_factor does not divide spatial_factor, remat names a
            level that does not exist, or latent_channels exceeds the pixel values of a block,
            pixel_channels · spatial_factor².
        """
        fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(cls)}
        if model.size not in SIZES:
            raise InputError(f"model.size = {model.size!r}; accepted: {', '.join(map(repr, SIZES))}")
        size = SIZES[model.size]
        built = cls(**{name: value or size.get(name, value) for name, value in fields.items()})
        if built.spatial_factor % built.stem_factor:
            raise InputError(
                f"model.stem_factor = {built.stem_factor}; accepted: a divisor of model.spatial_factor ="
                f" {built.spatial_factor}"
            )
        if max(built.remat, default=0) > len(built.strides):
            raise InputError(f"model.remat = {built.remat}; accepted: levels 0 to {len(built.strides)}")
        most = built.pixel_channels * built.spatial_factor**2
        if built.latent_channels > most:
            raise InputError(
                f"model.latent_channels = {built.latent_channels}; accepted: at most {most}, which is"
                " model.pixel_channels * model.spatial_factor**2"
            )
        return built

    @property
    def strides(self) -> tuple[Triple, ...]:
        """Strides (st, sh, sw) from each level to the next; the first halve space, the last halve time."""
        spatial = int(math.log2(self.spatial_factor // self.stem_factor))
        temporal = int(math.log2(self.temporal_factor))
        count = max(spatial, temporal)
        space = [2] * spatial + [1] * (count - spatial)
        time = [1] * (count - temporal) + [2] * temporal
        return tuple((t, s, s) for t, s in zip(time, space, strict=True))

    def width(self, level: int) -> int:
        """Returns the number of channels of a level; level 0 has the highest resolution."""
        return self.widths[min(level, len(self.widths) - 1)]

    def encoder(self) -> "Encoder":
        """The encoder."""
        return Encoder(self)

    def decoder(self) -> "Decoder":
        """The decoder."""
        return Decoder(self)

    @property
    def levels(self) -> int:
        """The number of levels that `remat` can name."""
        return len(self.strides) + 1

    @property
    def uses_modality(self) -> bool:
        """Whether FiLM may treat an image differently from a static video of it."""
        return self.film

    @property
    def is_local(self) -> bool:
        """Whether every pixel and latent depends only on a bounded part of the frame."""
        return self.conv == "smc" and not self.attention

    @property
    def encoder_reach(self) -> int:
        """How far the receptive field of a latent pixel extends to each side, in latent pixels."""
        reach = 1  # conv_out
        for strides in reversed((None, *self.strides)):
            reach += 2 * self.encoder_blocks
            reach = reach * strides[1] if strides else reach
        return math.ceil((reach + 1) * self.stem_factor / self.spatial_factor)

    @property
    def decoder_reach(self) -> int:
        """How far the receptive field of a decoded pixel extends to each side, in latent pixels."""
        reach = 1  # conv_out
        for strides in (None, *self.strides):
            reach = math.ceil(reach / strides[1]) if strides else reach
            reach += 2 * self.decoder_blocks
        return reach + 1


class Encoder(nn.Module):
    """Maps pixels to the posterior's means and log-variances.

    The means are the sum of a linear path, initialized to a cosine transform, and a residual network.
    """

    design: VaejaxDesign

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], is_video: bool) -> Float[Array, "b t h w moments"]:
        """Maps pixels (B, T, H, W, C) to float32 means and log-variances (b, t, h, w, 2c)."""
        a = self.design
        plain = functools.partial(CausalConv, modulated=False, dtype=jnp.dtype(a.dtype))
        block = (a.temporal_factor, a.spatial_factor, a.spatial_factor)
        linear = Downsample(
            a.latent_channels,
            block,
            shortcut=False,
            modulated=False,
            kernel_init=dct_init.analysis,
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
            x = FrameAttention(a.qk_norm, x.dtype, name="attention")(x)
        x = plain(2 * a.latent_channels, kernel_init=nn.initializers.zeros, name="conv_out")(x)
        mean, log_variance = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return place(jnp.concatenate([linear + mean, log_variance + LOG_VARIANCE_INIT], axis=-1))


class Decoder(nn.Module):
    """Maps latents to pixels by a linear path plus a residual network that mirrors the encoder's."""

    design: VaejaxDesign

    @nn.compact
    def __call__(self, z: Float[Array, "b t h w c"], is_video: bool) -> Float[Array, "B T H W C"]:
        """Maps latents (b, t, h, w, c) to float32 pixels (B, T, H, W, C)."""
        a = self.design
        plain = functools.partial(CausalConv, modulated=False, dtype=jnp.dtype(a.dtype))
        block = (a.temporal_factor, a.spatial_factor, a.spatial_factor)
        linear = Upsample(
            a.pixel_channels,
            block,
            shortcut=False,
            modulated=False,
            kernel_init=dct_init.synthesis(*block[:2], a.pixel_channels),
            name="linear",
        )(z)
        lowest = len(a.strides)
        x = place(plain(a.width(lowest), name="conv_in")(place(z)))
        if a.attention:
            x = FrameAttention(a.qk_norm, x.dtype, name="attention")(x)
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
        x = plain(a.pixel_channels * a.stem_factor**2, kernel_init=nn.initializers.zeros, name="conv_out")(x)
        return place(linear + unstem(x.astype(jnp.float32), a.stem_factor, a.stem))


def _blocks(module: nn.Module, x: jax.Array, level: int, count: int, is_video: bool) -> jax.Array:
    """Applies the residual blocks of a level, recomputed in the backward pass if `remat` names the level."""
    a = module.design
    block = functools.partial(ResidualBlock, a.conv, a.film, a.pixel_norm, jnp.dtype(a.dtype))
    for i in range(count):
        x = submodule(module, block, f"level_{level}_block_{i}", x, is_video, again=level in a.remat)
    record(module, level, x)
    return x
