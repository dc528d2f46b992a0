"""Corruptions of the latent that the decoder sees, which make latents easier for a diffusion model to learn.

They need no teacher. The encoder learns latents that survive them: smooth, redundant and predictable. The
decoder then reconstructs clean latents less well, so a second run trains it alone, without corruption.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

RATIOS = (0.25, 0.5, 0.75)  # shares of hidden blocks, of which each sample with hidden blocks draws one


@dataclasses.dataclass(frozen=True)
class Corruption:
    """Settings of the corruptions; the latent passes unchanged if all probabilities and `noise` are 0.

    Attributes:
      mask: probability that `masked` zeroes the last latent channels of a sample.
      noise: largest share of noise in a sample, see `noised`.
      noise_std: standard deviation of the noise, in standard deviations of each channel.
      blocks: probability that `hidden_blocks` hides blocks of a sample.
      block: side of these blocks, in latent frames and latent pixels.
      future: probability that `hidden_future` hides the last latent frames of a clip.
    """

    mask: float = 0.0
    noise: float = 0.0
    noise_std: float = 3.0
    blocks: float = 0.0
    block: int = 1
    future: float = 0.0

    @classmethod
    def of(cls, settings: Any) -> "Corruption":
        """Builds the settings from the section loss.latent of a configuration."""
        return cls(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(cls)})

    @property
    def hides(self) -> bool:
        """Whether the decoder sees a learned token in place of some latent pixels."""
        return self.blocks > 0 or self.future > 0

    def __call__(
        self, key: PRNGKeyArray, z: Float[Array, "b t h w c"], token: Float[Array, " c"] | None = None
    ) -> Float[Array, "b t h w c"]:
        """Corrupts latents.

        Args:
          key: random key.
          z: latents (b, t, h, w, c).
          token: learned token (c,) that replaces hidden latent pixels; required if `hides`.

        Returns:
          Latents of the same shape.
        """
        key_noise, key_blocks, key_future, key_mask = jax.random.split(key, 4)
        if self.noise:
            z = noised(key_noise, z, self.noise, self.noise_std)
        if self.blocks:
            z = _replaced(z, hidden_blocks(key_blocks, z.shape[:4], self.blocks, self.block), token)
        if self.future and z.shape[1] > 1:
            hidden = hidden_future(key_future, z.shape[0], z.shape[1], self.future)
            z = _replaced(z, hidden[:, :, None, None], token)
        return masked(key_mask, z, self.mask) if self.mask else z


def masked(key: PRNGKeyArray, z: Float[Array, "b t h w c"], probability: float) -> Float[Array, "b t h w c"]:
    """Zeroes the last channels of random samples; a random number of first channels, 1 to c - 1, is kept.

    Training with masking moves the most important content into the first channels, as in DC-AE 1.5 (arXiv
    2508.00413) and SSVAE (arXiv 2512.05394).

    Args:
      key: random key of the choice of samples and channels.
      z: latents (b, t, h, w, c).
      probability: probability that a sample is masked.

    Returns:
      Latents of the same shape.
    """
    key_which, key_kept = jax.random.split(key)
    b, c = z.shape[0], z.shape[-1]
    kept = jax.random.randint(key_kept, (b, 1), 1, c)
    kept = jnp.where(jax.random.bernoulli(key_which, probability, (b, 1)), kept, c)
    return z * (jnp.arange(c) < kept)[:, None, None, None]


def noised(
    key: PRNGKeyArray, z: Float[Array, "b t h w c"], share: float, std: float
) -> Float[Array, "b t h w c"]:
    """Interpolates every sample with noise: (1 - u) z + u n, as in l-DeTok (arXiv 2507.15856).

    Here n is Gaussian, with `std` times the standard deviation of each channel over the batch. The paper's
    noise has an absolute scale, which an encoder can escape by scaling up its latents.

    Args:
      key: random key of u and n.
      z: latents (b, t, h, w, c).
      share: upper bound of u, which is uniform from 0 and drawn for each sample.
      std: standard deviation of n, relative to that of the channel.

    Returns:
      Latents of the same shape.
    """
    key_share, key_noise = jax.random.split(key)
    u = jax.random.uniform(key_share, (z.shape[0], 1, 1, 1, 1), maxval=share)
    scale = std * jax.lax.stop_gradient(z.std((0, 1, 2, 3)))
    return (1 - u) * z + u * scale * jax.random.normal(key_noise, z.shape, z.dtype)


def hidden_blocks(
    key: PRNGKeyArray, shape: tuple[int, ...], probability: float, side: int
) -> Bool[Array, "b t h w"]:
    """Draws blocks of latent pixels to hide: SSVAE's latent masked reconstruction (arXiv 2512.05394).

    A sample hides none of its blocks or, with the given probability, each of them with one of RATIOS. An
    image is hidden like a frame of a clip.

    Args:
      key: random key.
      shape: shape (b, t, h, w) of the latents.
      probability: probability that a sample hides blocks.
      side: side of the blocks in latent frames and latent pixels; those at the end are cut off.

    Returns:
      True at hidden latent pixels.
    """
    key_which, key_ratio, key_block = jax.random.split(key, 3)
    b, *sizes = shape
    ratio = jax.random.choice(key_ratio, jnp.array(RATIOS), (b,))
    ratio *= jax.random.bernoulli(key_which, probability, (b,))
    hidden = jax.random.uniform(key_block, (b, *(-(-n // side) for n in sizes))) < ratio[:, None, None, None]
    for axis, size in enumerate(sizes, 1):
        hidden = jax.lax.slice_in_dim(jnp.repeat(hidden, side, axis), 0, size, axis=axis)
    return hidden


def hidden_future(key: PRNGKeyArray, b: int, t: int, probability: float) -> Bool[Array, "b t"]:
    """Draws a number of last latent frames to hide, 1 to t - 1, so that the decoder predicts what follows.

    PV-VAE (arXiv 2605.02134) leaves the last frames out before the encoder. The encoder here is causal, so
    hiding their latents is the same.

    Args:
      key: random key.
      b: number of clips.
      t: number of latent frames, at least 2.
      probability: probability that a clip hides frames.

    Returns:
      True at hidden latent frames.
    """
    key_which, key_count = jax.random.split(key)
    count = jax.random.randint(key_count, (b, 1), 1, t) * jax.random.bernoulli(key_which, probability, (b, 1))
    return jnp.arange(t) >= t - count


def _replaced(
    z: Float[Array, "b t h w c"], hidden: Bool[Array, "..."], token: Float[Array, " c"] | None
) -> Float[Array, "b t h w c"]:
    if token is None:
        raise ValueError("hidden latent pixels need a token")
    return jnp.where(hidden[..., None], token, z)
