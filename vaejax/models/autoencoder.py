"""The VAE: an encoder and a decoder over one latent space, each of some family."""

import dataclasses
import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vaejax.errors import InputError
from vaejax.models.constraints import on_tpu
from vaejax.models.design import Design
from vaejax.models.latent_shape import decoded_frames, latent_frames, latent_side
from vaejax.models.posterior import DiagonalGaussian


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The designs of an autoencoder's two halves.

    The halves usually share one design. They differ if a small decoder was distilled from a larger one.

    Attributes:
      encoder: design of the encoder.
      decoder: design of the decoder, with the same latent shape and pixel channels.

    Raises:
      InputError: if the halves have different latents or pixels.
    """

    encoder: Design
    decoder: Design

    def __post_init__(self):
        for name in ("latent_channels", "spatial_factor", "temporal_factor", "pixel_channels"):
            one, other = getattr(self.encoder, name), getattr(self.decoder, name)
            if one != other:
                raise InputError(
                    f"model.{name} = {other} in one half, {one} in the other; accepted: the same in both"
                )

    def replace(self, **changes: Any) -> "Architecture":
        """Returns the architecture with fields of both designs replaced, such as `dtype` and `remat`."""
        halves: Any = (self.encoder, self.decoder)
        return Architecture(*(dataclasses.replace(half, **changes) for half in halves))

    @property
    def latent_channels(self) -> int:
        """The number of latent channels c."""
        return self.encoder.latent_channels

    @property
    def spatial_factor(self) -> int:
        """The number of pixels per latent pixel along height and along width, fs."""
        return self.encoder.spatial_factor

    @property
    def temporal_factor(self) -> int:
        """The number of frames per latent frame, ft; the first latent frame holds one frame."""
        return self.encoder.temporal_factor

    @property
    def pixel_channels(self) -> int:
        """The number of pixel channels C."""
        return self.encoder.pixel_channels

    @property
    def dtype(self) -> str:
        """The compute dtype; 'bfloat16' if either half computes in bfloat16."""
        return "float32" if self.encoder.dtype == self.decoder.dtype == "float32" else "bfloat16"

    @property
    def uses_modality(self) -> bool:
        """Whether an image may be treated differently from a static video of it."""
        return self.encoder.uses_modality or self.decoder.uses_modality

    @property
    def is_local(self) -> bool:
        """Whether every pixel and latent depends only on a bounded part of the frame."""
        return self.encoder.is_local and self.decoder.is_local

    @property
    def example_shape(self) -> tuple[int, int, int, int, int]:
        """The shape (B, T, H, W, C) of a small clip with which parameters are initialized."""
        side = 4 * self.spatial_factor
        return 1, 1 + self.temporal_factor, side, side, self.pixel_channels

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Returns the latent's shape (t, h, w, c) for a clip (T, H, W); fractional sizes are rounded up."""
        return (
            latent_frames(frames, self.temporal_factor),
            latent_side(height, self.spatial_factor),
            latent_side(width, self.spatial_factor),
            self.latent_channels,
        )

    def padding(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Returns the frames, rows and columns by which a reconstruction exceeds its clip (T, H, W)."""
        t, h, w, _ = self.latent_shape(frames, height, width)
        s = self.spatial_factor
        return decoded_frames(t, self.temporal_factor) - frames, h * s - height, w * s - width


class Autoencoder(nn.Module):
    """A causal 3D VAE of videos; an image is a video of one frame."""

    architecture: Architecture

    def setup(self):
        """Builds the encoder and the decoder."""
        self.encoder = self.architecture.encoder.encoder()
        self.decoder = self.architecture.decoder.decoder()

    def encode(self, x: Float[Array, "B T H W C"], is_video: bool | None = None) -> DiagonalGaussian:
        """Encodes a clip, or the next chunk of a stream if the Flax collection "cache" is mutable.

        Args:
          x: pixels (B, T, H, W, C) in [-1, 1], T = 1 + ft·k for a clip or first chunk, ft·k for a later one.
            ft is the architecture's temporal_factor. H and W are multiples of its spatial_factor.
          is_video: whether FiLM treats x as video. None means T > 1; if a stream's first chunk is a single
            frame, pass True.

        Returns:
          The posterior over latents (b, t, h, w, c), t = 1 + k, or k for a later chunk.
        """
        return DiagonalGaussian.from_moments(self._applied(self.encoder, x, _is_video(x, is_video)))

    def decode(self, z: Float[Array, "b t h w c"], is_video: bool | None = None) -> Float[Array, "B T H W C"]:
        """Decodes latents, or the next chunk of a stream if the Flax collection "cache" is mutable.

        Args:
          z: latents (b, t, h, w, c); a clip or chunk may have any number t of latent frames.
          is_video: whether FiLM treats z as video. None means t > 1; if a stream's first chunk is a single
            latent frame, pass True.

        Returns:
          Float32 pixels (B, T, H, W, C), about in [-1, 1] but not clipped. T is 1 + ft·(t - 1), or ft·t for a
          later chunk; ft is the architecture's temporal_factor.
        """
        return self._applied(self.decoder, z, _is_video(z, is_video))

    def __call__(
        self, x: Float[Array, "B T H W C"], key: PRNGKeyArray
    ) -> tuple[Float[Array, "B T H W C"], DiagonalGaussian]:
        """Encodes a clip, samples the posterior with `key` and decodes the sample.

        Args:
          x: pixels (B, T, H, W, C) in [-1, 1].
          key: random key of the sample.

        Returns:
          The reconstruction (B, T, H, W, C) and the posterior over latents (b, t, h, w, c).
        """
        posterior = self.encode(x)
        return self.decode(posterior.sample(key), _is_video(x, None)), posterior

    def _applied(self, half: nn.Module, x: jax.Array, is_video: bool) -> jax.Array:
        """Applies a half to a clip or chunk.

        On TPUs a clip is processed as two chunks of a stream, its first frame and then the rest, unless
        activations are recorded. TPUs store frames in tiles of 8, so 1 + 16 frames would take as much memory
        and time as 24.
        """
        recorded = map(self.is_mutable_collection, ("params", "cache", "features", "activations"))
        if x.shape[1] == 1 or not on_tpu() or "cache" in self.variables or any(recorded):
            return half(x, is_video)
        half, variables = half.unbind()
        first, past = half.apply(variables, x[:, :1], is_video, mutable=["cache"])
        rest = half.apply({**variables, **past}, x[:, 1:], is_video)
        return jnp.concatenate([cast(jax.Array, first), cast(jax.Array, rest)], axis=1)


@functools.cache
def parameter_shapes(architecture: Architecture) -> dict[str, Any]:
    """Shapes of an autoencoder's parameters, the tree 'params' of `model.init`; cached, so do not modify it.

    Raises:
      ValueError, TypeError: if the architecture is invalid.
    """
    clip = jax.ShapeDtypeStruct(architecture.example_shape, jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(Autoencoder(architecture).init, key, clip, key)["params"]


def _is_video(x: jax.Array, is_video: bool | None) -> bool:
    return x.shape[1] > 1 if is_video is None else is_video
