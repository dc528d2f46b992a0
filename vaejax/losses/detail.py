"""Extra reconstruction terms: what an absolute error leaves blurred, each a mean per pixel value."""

import jax
import jax.numpy as jnp

from vaejax.models.resample import stem

SIGMA = 1.0  # pixels, of the high pass
CHARBONNIER = 1e-3


def high_pass(x: jax.Array, x_hat: jax.Array) -> jax.Array:
    """L1 of what a Gaussian blur of each frame removes (LiteVAE, arXiv 2405.14477).

    Args:
      x: (B, T, H, W, C).
      x_hat: the same shape.
    """
    error = x - x_hat
    return jnp.abs(error - _blur(error)).mean()


def wavelet(x: jax.Array, x_hat: jax.Array) -> jax.Array:
    """Charbonnier distance, sqrt(d² + ε²), of the high bands of each frame's Haar transform (2405.14477)."""
    bands = stem(x - x_hat, 2, "haar")[..., x.shape[-1] :]
    return (jnp.sqrt(jnp.square(bands) + CHARBONNIER**2) - CHARBONNIER).mean()


def temporal(x: jax.Array, x_hat: jax.Array) -> jax.Array:
    """L1 of the differences of successive frames: flicker and lost motion; 0 for images."""
    error = x - x_hat
    return jnp.abs(jnp.diff(error, axis=1)).mean() if x.shape[1] > 1 else jnp.zeros(())


TERMS = {"high_pass": high_pass, "wavelet": wavelet, "temporal": temporal}


def _blur(x: jax.Array) -> jax.Array:
    """A Gaussian blur of every frame, borders repeated."""
    reach = round(3 * SIGMA)
    kernel = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / SIGMA) ** 2)
    kernel /= kernel.sum()
    for axis in (2, 3):
        padding = [(reach, reach) if a == axis else (0, 0) for a in range(x.ndim)]
        padded, size = jnp.pad(x, padding, mode="edge"), x.shape[axis]
        x = sum(k * jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i, k in enumerate(kernel))
    return x
