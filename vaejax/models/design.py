"""The interface of a family of autoencoders; models/families.py lists the families."""

import abc
from typing import Any

import flax.linen as nn


class Design(abc.ABC):
    """Hyperparameters from which a family builds its encoder and its decoder.

    A subclass is a frozen dataclass whose fields include the attributes below. Its encoder is a module that
    maps pixels (B, T, H, W, C) in [-1, 1] and the flag is_video to float32 moments (b, t, h, w, 2c): means,
    then log-variances. Its decoder maps latents (b, t, h, w, c) and is_video to float32 pixels. Both are
    causal, and both continue a stream if the Flax collection "cache" is mutable, see `conv.causal_convolve`.
    On TPUs clips are processed as streams, so the cache holds floating-point arrays, which have gradients.
    They call `constraints.place` on activations, which splits these among devices, and `monitor.record` on
    the output of every level.

    Attributes:
      latent_channels: number of latent channels c.
      spatial_factor: fs, pixels per latent pixel along height and along width.
      temporal_factor: ft, frames per latent frame; the first latent frame holds one frame.
      pixel_channels: number of pixel channels C: 3 for RGB.
      remat: levels (0 is the highest resolution) whose blocks are recomputed in the backward pass.
      dtype: compute dtype, 'float32' or 'bfloat16'; parameters are float32.
    """

    latent_channels: int
    spatial_factor: int
    temporal_factor: int
    pixel_channels: int
    remat: tuple[int, ...]
    dtype: str

    @classmethod
    @abc.abstractmethod
    def of(cls, model: Any) -> "Design":
        """Builds the design from the section `model` of a configuration.

        If a field of `model` is empty or 0, the family's preset for `model.size` may supply the value.

        Raises:
          InputError: if the settings do not fit together.
        """

    @abc.abstractmethod
    def encoder(self) -> nn.Module:
        """The module that maps pixels to moments."""

    @abc.abstractmethod
    def decoder(self) -> nn.Module:
        """The module that maps latents to pixels."""

    @property
    @abc.abstractmethod
    def levels(self) -> int:
        """The number of levels that `remat` can name."""

    @property
    def channels_fastest(self) -> bool:
        """The order of pixels that layers take as channels: (position, channel), else (channel, position)."""
        return True

    @property
    def uses_modality(self) -> bool:
        """Whether an image may be treated differently from a static video of it."""
        return False

    @property
    @abc.abstractmethod
    def is_local(self) -> bool:
        """Whether every pixel and latent depends only on a bounded part of the frame."""

    @property
    @abc.abstractmethod
    def encoder_reach(self) -> int:
        """How far the receptive field of a latent pixel extends to each side, in latent pixels."""

    @property
    @abc.abstractmethod
    def decoder_reach(self) -> int:
        """How far the receptive field of a decoded pixel extends to each side, in latent pixels.

        The distance is counted from the latent pixel that covers the decoded pixel.
        """
