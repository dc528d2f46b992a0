"""Loss terms that make latents easier for a diffusion model to learn; see also `corruption`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class LatentSettings:
    """Settings of the latent terms; `Objective.weights` holds their weights.

    Attributes:
      outlier_radius: distance from the frame's mean, in standard deviations, beyond which a latent pixel is
        an outlier.
      correlation: correlation of neighboring latent pixels below which roughness is penalized.
      scales: scale factors of the equivariance term; each batch draws one.
      rotate: whether the equivariance term also rotates frames by a random multiple of 90 degrees; frames
        that are not square rotate by 0 or 180.
    """

    outlier_radius: float
    correlation: float
    scales: tuple[float, ...]
    rotate: bool

    @classmethod
    def of(cls, settings: Any) -> "LatentSettings":
        """Builds the settings from the section loss.latent of a configuration."""
        return cls(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(cls)})


def outliers(z: Float[Array, "b t h w c"], radius: float) -> Float[Array, ""]:
    """Computes Movie Gen's outlier penalty against bright spots (arXiv 2410.13720, equation 1).

    Args:
      z: latents (b, t, h, w, c).
      radius: r of the equation, in standard deviations.

    Returns:
      Mean () over all latent pixels of max(|z - mean| - r |std|, 0). The norms are over channels; mean and
      std are over the pixels of a frame.
    """
    mean, variance = z.mean((2, 3), keepdims=True), z.var((2, 3), keepdims=True)
    # 1e-12, because the square root has no finite derivative at 0.
    distance = jnp.sqrt(jnp.square(z - mean).sum(-1) + 1e-12)
    return jax.nn.relu(distance - radius * jnp.sqrt(variance.sum(-1) + 1e-12)).mean()


def roughness(z: Float[Array, "b t h w c"], correlation: float) -> Float[Array, ""]:
    """Computes a hinge on the correlation of neighboring latent pixels, after SSVAE (arXiv 2512.05394).

    Args:
      z: latents (b, t, h, w, c).
      correlation: target; higher correlations cost nothing.

    Returns:
      Mean () of max(correlation - r, 0) over samples, channels and the axes t, h and w, except axes of length
      1. Here r is the correlation of a channel with itself, shifted by one along the axis.
    """
    centered = z - z.mean((1, 2, 3), keepdims=True)
    variance = jnp.square(centered).mean((1, 2, 3)) + 1e-6
    penalties = []
    for axis in (1, 2, 3):
        size = z.shape[axis]
        if size > 1:
            here = jax.lax.slice_in_dim(centered, 0, size - 1, axis=axis)
            there = jax.lax.slice_in_dim(centered, 1, size, axis=axis)
            penalties.append(jax.nn.relu(correlation - (here * there).mean((1, 2, 3)) / variance))
    return jnp.stack(penalties).mean() if penalties else jnp.zeros(())


def equivariance(
    decode: Callable[[jax.Array], jax.Array],
    z: Float[Array, "b t h w c"],
    x: Float[Array, "B T H W C"],
    key: PRNGKeyArray,
    settings: LatentSettings,
) -> Float[Array, ""]:
    """Computes the L1 distance between a transformed clip and the decoded, equally transformed latent.

    Scales of 1/2 and 1/4 give scale equivariance (Skorokhodov et al., arXiv 2502.14831); scales below 1
    together with `rotate` give EQ-VAE (arXiv 2502.09509).

    Args:
      decode: function from latents (b, t, h', w', c) of any height and width to pixels.
      z: latents (b, t, h, w, c) of x.
      x: pixels (B, T, H, W, C) in [-1, 1].
      key: random key of the transformation.
      settings: the transformations to choose from.

    Returns:
      Mean () per pixel value.
    """
    key_turn, key_scale = jax.random.split(key)
    if settings.rotate:
        square = z.shape[2] == z.shape[3]
        turns = [functools.partial(jnp.rot90, k=k, axes=(2, 3)) for k in ((0, 1, 2, 3) if square else (0, 2))]
        turn = jax.random.randint(key_turn, (), 0, len(turns))
        z, x = jax.lax.switch(turn, turns, z), jax.lax.switch(turn, turns, x)
    factor = x.shape[2] // z.shape[2]

    def distance(scale: float, z, x):
        h, w = (max(1, round(scale * size)) for size in z.shape[2:4])
        small = jax.image.resize(z, (*z.shape[:2], h, w, z.shape[-1]), "linear")
        target = jax.image.resize(x, (*x.shape[:2], factor * h, factor * w, x.shape[-1]), "linear")
        return jnp.abs(target - decode(small)).mean()

    branches = [functools.partial(distance, scale) for scale in settings.scales]
    return jax.lax.switch(jax.random.randint(key_scale, (), 0, len(branches)), branches, z, x)
