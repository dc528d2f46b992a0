"""The autoencoders of Wan 2.1 and Wan 2.2 (arXiv 2503.20314): their sizes, encoder and decoder."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from vaejax.errors import InputError
from vaejax.models.constraints import place
from vaejax.models.conv import first_chunk
from vaejax.models.design import Design
from vaejax.models.monitor import record
from vaejax.models.posterior import LOG_VARIANCE_INIT
from vaejax.models.remat import submodule
from vaejax.models.wan_blocks import (
    Downsample,
    FrameAttention,
    ResidualBlock,
    Upsample,
    WanConv,
    average_down,
    normalized,
    patchify,
    repeat_up,
    unpatchify,
)

SIZES: Mapping[str, Mapping[str, Any]] = {
    "wan2.1": {
        "encoder_widths": (96, 192, 384, 384),
        "decoder_widths": (96, 192, 384, 384),
        "encoder_blocks": 2,
        "decoder_blocks": 3,
        "latent_channels": 16,
        "temporal_downsample": (False, True, True),
        "patch": 1,
        "averaging": False,
    },
    "wan2.2": {
        "encoder_widths": (160, 320, 640, 640),
        "decoder_widths": (256, 512, 1024, 1024),
        "encoder_blocks": 2,
        "decoder_blocks": 3,
        "latent_channels": 48,
        "temporal_downsample": (False, True, True),
        "patch": 2,
        "averaging": True,
    },
    "tiny": {
        "encoder_widths": (32, 64, 96, 96),
        "decoder_widths": (32, 64, 96, 96),
        "encoder_blocks": 1,
        "decoder_blocks": 2,
        "latent_channels": 16,
        "temporal_downsample": (False, True, True),
        "patch": 1,
        "averaging": False,
    },
}
# Settings of other families, and their values if unset.
UNUSED = {"widths": (), "encoder_blocks": 0, "decoder_blocks": 0, "stem_factor": 0}
UNUSED |= dict.fromkeys(("film", "pixel_norm", "attention"), False) | {"qk_norm": True}
UNUSED |= {"conv": "smc", "stem": "haar"}


@dataclasses.dataclass(frozen=True)
class WanDesign(Design):
    """The hyperparameters of an encoder or a decoder of Wan.

    Attributes:
      encoder_widths, decoder_widths: channels of each level, highest resolution first, as many as there are
        levels. Every level has half the height and width of the one before it.
      encoder_blocks, decoder_blocks: residual blocks per level.
      latent_channels: number of latent channels c.
      temporal_downsample: for each level but the last, whether the next one has half the frames.
      patch: side of the pixel block that is moved into channels first: 1 (Wan 2.1) or 2 (Wan 2.2).
      averaging: whether every level has a shortcut that averages or repeats (Wan 2.2).
      pixel_channels: number of pixel channels C: 3 for RGB.
      remat: levels (0 is the highest resolution) whose blocks are recomputed in the backward pass.
      dtype: compute dtype, 'float32' or 'bfloat16'; parameters are float32.
    """

    encoder_widths: tuple[int, ...]
    decoder_widths: tuple[int, ...]
    encoder_blocks: int
    decoder_blocks: int
    latent_channels: int
    temporal_downsample: tuple[bool, ...]
    patch: int
    averaging: bool
    pixel_channels: int
    remat: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, model: Any) -> "WanDesign":
        """Builds the design of size `model.size` from the section `model` of a configuration.

        Raises:
          InputError: if the family lacks the size, or other settings contradict it.
        """
        if model.size not in SIZES:
            sizes = ", ".join(map(repr, SIZES))
            raise InputError(f"model.size = {model.size!r}; accepted with model.family = 'wan': {sizes}")
        built = cls(
            **SIZES[model.size],
            pixel_channels=model.pixel_channels,
            remat=tuple(model.remat),
            dtype=model.dtype,
        )
        fixed = {
            name: getattr(built, name) for name in ("latent_channels", "spatial_factor", "temporal_factor")
        }
        for name, value in (fixed | UNUSED).items():
            if getattr(model, name) != value:
                raise InputError(
                    f"model.{name} = {getattr(model, name)!r}; accepted: {value!r}, with model.family = 'wan'"
                    f" and model.size = {model.size!r}"
                )
        if max(built.remat, default=0) >= built.levels:
            raise InputError(f"model.remat = {built.remat}; accepted: levels 0 to {built.levels - 1}")
        return built

    @property
    def spatial_factor(self) -> int:
        """The number of pixels per latent pixel along height and along width, fs."""
        return self.patch * 2 ** (self.levels - 1)

    @property
    def temporal_factor(self) -> int:
        """The number of frames per latent frame, ft; the first latent frame holds one frame."""
        return 2 ** sum(self.temporal_downsample)

    @property
    def levels(self) -> int:
        """The number of levels that `remat` can name."""
        return len(self.encoder_widths)

    def encoder(self) -> "Encoder":
        """The encoder."""
        return Encoder(self)

    def decoder(self) -> "Decoder":
        """The decoder."""
        return Decoder(self)

    @property
    def channels_fastest(self) -> bool:
        """The order of pixels that layers take as channels: (channel, position), see `patchify`."""
        return False

    @property
    def is_local(self) -> bool:
        """False, because attention makes every latent depend on the whole frame."""
        return False

    @property
    def encoder_reach(self) -> int:
        """How far the receptive field of a latent pixel extends to each side, in latent pixels.

        Attention, which has no bounds, is left out.
        """
        reach = 1 + 4  # conv_out, and the two blocks of the middle
        for level in reversed(range(self.levels)):
            # Beyond the block of 2x2 pixels that a coarser pixel covers.
            reach = 2 * reach + 1 if level + 1 < self.levels else reach
            reach += 2 * self.encoder_blocks
        return math.ceil((reach + 1) * self.patch / self.spatial_factor)

    @property
    def decoder_reach(self) -> int:
        """How far the receptive field of a decoded pixel extends to each side, in latent pixels.

        Attention, which has no bounds, is left out.
        """
        reach = 1  # conv_out
        for level in range(self.levels):
            reach = math.ceil((reach + 1) / 2) if level else reach
            reach += 2 * self.decoder_blocks
        return reach + 4 + 1  # the two blocks of the middle, and conv_in


def _moments_bias(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Initializes the bias of the last layer (2c,): 0 for the means, LOG_VARIANCE_INIT for log-variances."""
    return jnp.repeat(jnp.array([0, LOG_VARIANCE_INIT], dtype), shape[0] // 2)


class Encoder(nn.Module):
    """Maps pixels to the posterior's means and log-variances."""

    design: WanDesign

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"], is_video: bool) -> Float[Array, "b t h w moments"]:
        """Maps pixels (B, T, H, W, C) to float32 means and log-variances (b, t, h, w, 2c)."""
        d = self.design
        conv = functools.partial(WanConv, dtype=jnp.dtype(d.dtype))
        x = place(conv(d.encoder_widths[0], name="conv_in")(patchify(x, d.patch)))
        layers = d.encoder_blocks + 1
        for level in range(d.levels):
            if d.averaging:
                features, x = AveragingDown(d, level, name=f"down_blocks_{level}")(x)
            else:
                names = [f"down_blocks_{layers * level + i}" for i in range(layers)]
                features, x = _down(self, x, level, names)
            record(self, level, features)
        x = Middle(d, name="mid_block")(x)
        x = normalized(self, "norm_out", functools.partial(conv, 2 * d.latent_channels), "conv_out", x)
        x = conv(2 * d.latent_channels, (1, 1, 1), bias_init=_moments_bias, name="quant_conv")(x)
        return place(x.astype(jnp.float32))


class Decoder(nn.Module):
    """Maps latents to pixels."""

    design: WanDesign

    @nn.compact
    def __call__(self, z: Float[Array, "b t h w c"], is_video: bool) -> Float[Array, "B T H W C"]:
        """Maps latents (b, t, h, w, c) to float32 pixels (B, T, H, W, C)."""
        d = self.design
        conv = functools.partial(WanConv, dtype=jnp.dtype(d.dtype))
        x = conv(d.latent_channels, (1, 1, 1), name="post_quant_conv")(place(z))
        x = place(conv(d.decoder_widths[-1], name="conv_in")(x))
        x = Middle(d, name="mid_block")(x)
        for level in reversed(range(d.levels)):
            features, x = Up(d, level, name=f"up_blocks_{d.levels - 1 - level}")(x)
            record(self, level, features)
        pixels = d.pixel_channels * d.patch**2
        x = normalized(self, "norm_out", functools.partial(conv, pixels), "conv_out", x)
        return place(unpatchify(x.astype(jnp.float32), d.patch))


class Middle(nn.Module):
    """Attention within each frame, between two residual blocks, at the lowest resolution."""

    design: WanDesign

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w C"]) -> Float[Array, "b t h w C"]:
        """Maps (b, t, h, w, C) to the same shape."""
        d = self.design
        apply = functools.partial(submodule, self, again=d.levels - 1 in d.remat)
        block = functools.partial(ResidualBlock, x.shape[-1], jnp.dtype(d.dtype))
        x = apply(block, "resnets_0", x)
        x = apply(functools.partial(FrameAttention, jnp.dtype(d.dtype)), "attentions_0", x)
        return apply(block, "resnets_1", x)


class AveragingDown(nn.Module):
    """A level of Wan 2.2's encoder: what `_down` computes, plus a shortcut that averages."""

    design: WanDesign
    level: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> tuple[jax.Array, jax.Array]:
        """Maps (B, T, H, W, C) to the level's own activations, and to those that the next level gets."""
        d, level = self.design, self.level
        names = [*(f"resnets_{i}" for i in range(d.encoder_blocks)), "downsampler"]
        last = level + 1 == d.levels
        time = 1 if last else 1 + d.temporal_downsample[level]
        features, y = _down(self, x, level, names)
        shortcut = average_down(x, d.encoder_widths[level], time, 1 if last else 2, first_chunk(self))
        return features, place(y + shortcut)


class Up(nn.Module):
    """A level of the decoder: residual blocks, then upsampling unless it is level 0.

    In Wan 2.1 upsampling halves the channels; Wan 2.2 keeps them, and has a shortcut that repeats.
    """

    design: WanDesign
    level: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> tuple[jax.Array, jax.Array]:
        """Maps (b, t, h, w, c) to the level's own activations, and to those that the next level gets."""
        d, level, start = self.design, self.level, x
        width, dtype = d.decoder_widths[level], jnp.dtype(d.dtype)
        block = functools.partial(ResidualBlock, width, dtype)
        for i in range(d.decoder_blocks):
            x = submodule(self, block, f"resnets_{i}", x, again=level in d.remat)
        if level == 0:
            return x, x
        temporal = d.temporal_downsample[level - 1]
        if not d.averaging:
            return x, place(Upsample(width // 2, temporal, dtype, name="upsamplers_0")(x))
        y = Upsample(width, temporal, dtype, name="upsampler")(x)
        return x, place(y + repeat_up(start, width, 1 + temporal, 2, first_chunk(self)))


def _down(module: nn.Module, x: jax.Array, level: int, names: Sequence[str]) -> tuple[jax.Array, jax.Array]:
    """Applies residual blocks and then, unless the level is the last, downsampling, under these names.

    Returns:
      The result of the blocks, and that of downsampling.
    """
    d = module.design
    *blocks, downsampler = names
    block = functools.partial(ResidualBlock, d.encoder_widths[level], jnp.dtype(d.dtype))
    for name in blocks:
        x = submodule(module, block, name, x, again=level in d.remat)
    if level + 1 == d.levels:
        return x, x
    return x, place(Downsample(d.temporal_downsample[level], jnp.dtype(d.dtype), name=downsampler)(x))
