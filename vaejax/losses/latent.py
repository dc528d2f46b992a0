"""Terms on the latent: what makes it easy to learn for a diffusion model, which no reconstruction tells."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LatentSettings:
    """How the latent's terms work; their weights stand with the others.

    Attributes:
      outlier_radius: standard deviations from which a latent pixel is an outlier.
      correlation: of neighbours, below which it costs.
      scales: of the equivariance term; one is drawn for each batch.
      rotate: the equivariance term also turns frames by a random multiple of 90 degrees (180 if not square).
      mask: probability that a sample's latent keeps its first channels only.
    """

    outlier_radius: float = 3.0
    correlation: float = 0.75
    scales: tuple[float, ...] = (0.5,)
    rotate: bool = False
    mask: float = 0.0


def outliers(z: jax.Array, radius: float) -> jax.Array:
    """Movie Gen's outlier penalty (arXiv 2410.13720, equation 1): what makes spots.

    Args:
      z: (b, t, h, w, c).
      radius: r.

    Returns:
      () mean over frames and pixels of max(|z - mean| - r |std|, 0), norms over channels, mean and standard
      deviation over the pixels of a frame.
    """
    mean, variance = z.mean((2, 3), keepdims=True), z.var((2, 3), keepdims=True)
    distance = jnp.sqrt(jnp.square(z - mean).sum(-1) + 1e-12)  # away from 0, where a root has no derivative
    return jax.nn.relu(distance - radius * jnp.sqrt(variance.sum(-1) + 1e-12)).mean()


def roughness(z: jax.Array, correlation: float) -> jax.Array:
    """What neighbouring latent pixels lack of a correlation, after SSVAE (arXiv 2512.05394).

    Args:
      z: (b, t, h, w, c).
      correlation: that costs nothing.

    Returns:
      () mean over samples, channels and axes (t, h, w longer than 1) of max(correlation - r, 0), r the
      correlation of a channel with itself one place further.
    """
    centred = z - z.mean((1, 2, 3), keepdims=True)
    variance = jnp.square(centred).mean((1, 2, 3)) + 1e-6
    lacking = []
    for axis in (1, 2, 3):
        size = z.shape[axis]
        if size > 1:
            here = jax.lax.slice_in_dim(centred, 0, size - 1, axis=axis)
            there = jax.lax.slice_in_dim(centred, 1, size, axis=axis)
            lacking.append(jax.nn.relu(correlation - (here * there).mean((1, 2, 3)) / variance))
    return jnp.stack(lacking).mean() if lacking else jnp.zeros(())


def masked(key: jax.Array, z: jax.Array, probability: float) -> jax.Array:
    """Channel-prefix masking: some samples keep 1 to c - 1 of their first channels, the rest set to 0.

    The first channels come to hold what matters most, as in DC-AE 1.5 (arXiv 2508.00413) and SSVAE.
    """
    key_which, key_kept = jax.random.split(key)
    b, c = z.shape[0], z.shape[-1]
    kept = jax.random.randint(key_kept, (b, 1), 1, c)
    kept = jnp.where(jax.random.bernoulli(key_which, probability, (b, 1)), kept, c)
    return z * (jnp.arange(c) < kept)[:, None, None, None]


def equivariance(
    decode: Callable[[jax.Array], jax.Array],
    z: jax.Array,
    x: jax.Array,
    key: jax.Array,
    settings: LatentSettings,
) -> jax.Array:
    """The L1 distance of a transformed clip from what its equally transformed latent decodes to.

    With scales of 1/2 and 1/4 it is scale equivariance (Skorokhodov et al., arXiv 2502.14831), with scales
    below 1 and `rotate` EQ-VAE's (arXiv 2502.09509).

    Args:
      decode: (b, t, h', w', c) to pixels.
      z: (b, t, h, w, c).
      x: (B, T, H, W, 3), what z was encoded from.
      key: draws the transformation.
      settings: which.

    Returns:
      () mean per pixel value.
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
        wanted = jax.image.resize(x, (*x.shape[:2], factor * h, factor * w, x.shape[-1]), "linear")
        return jnp.abs(wanted - decode(small)).mean()

    branches = [functools.partial(distance, scale) for scale in settings.scales]
    return jax.lax.switch(jax.random.randint(key_scale, (), 0, len(branches)), branches, z, x)
