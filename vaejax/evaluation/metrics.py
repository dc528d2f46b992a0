"""PSNR and SSIM of frames, and the spot alarm of activations. Pure JAX: they run where the arrays are.

Every score is of one frame; whoever reports a clip or a bucket takes the mean of its frames' scores (and not
the score of their mean error, which the worst frames rule).
"""

import jax
import jax.numpy as jnp
import numpy as np

# dB. PSNR has no upper bound, and one black frame rebuilt exactly would make a mean infinite: clip every
# frame at this before taking the mean. 8-bit rounding alone costs 59 dB, so nothing real reaches it.
PSNR_CEILING = 100.0


def psnr(x: jax.Array, y: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of every frame: 10 log10(2² / mean squared error), over H, W and C.

    Args:
      x: frames (B, T, H, W, C) in [-1, 1], a range of 2.
      y: frames like x. Neither is clipped or rounded here.

    Returns:
      (B, T) float32, in dB; inf where the frames are identical.
    """
    error = jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32))
    # Means of means: a float32 sum over all pixels of a large frame would lose digits.
    mse = error.mean((-2, -1)).mean(-1)
    return 10 * jnp.log10(4 / mse)


def ssim(x: jax.Array, y: jax.Array) -> jax.Array:
    """Structural similarity of every frame (Wang et al. 2004), the mean over H, W and C.

    Scikit-image's definition with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`: an
    11 x 11 Gaussian window and no statistics from beyond the border, each channel by itself. SSIM compares
    luminances, so it depends on where zero is: frames are taken to [0, 1] first, which gives the numbers of
    8-bit frames with `data_range=255`, those that others report.

    Args:
      x: frames (B, T, H, W, C) in [-1, 1].
      y: frames like x.

    Returns:
      (B, T) float32, at most 1; NaN if a frame is smaller than the window.
    """
    if min(x.shape[-3:-1]) < _WINDOW.size:
        return jnp.full(x.shape[:2], jnp.nan, jnp.float32)
    x, y = (x.astype(jnp.float32) + 1) / 2, (y.astype(jnp.float32) + 1) / 2
    # Variances do not care where zero is: with zero at the frame's mean, float32 cancellation is least.
    zero_x, zero_y = x.mean((-3, -2), keepdims=True), y.mean((-3, -2), keepdims=True)
    x, y = x - zero_x, y - zero_y
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + zero_x, mean_y + zero_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean((-2, -1)).mean(-1)


def activation_spread(x: jax.Array) -> jax.Array:
    """Largest over median length of the channel vectors of all pixels: the alarm for coloured spots.

    Around 1 to 10 in a healthy level; a spot is a few pixels whose activations are many times larger than
    the rest, by which they smuggle statistics through a normalisation.

    Args:
      x: activations (B, T, H, W, C).

    Returns:
      A float32 scalar; inf if more than half of the pixels are zero, NaN if all are.
    """
    norm = jnp.linalg.norm(x.astype(jnp.float32), axis=-1)
    return norm.max() / jnp.median(norm)


def _window(sigma: float = 1.5, radius: int = 5) -> np.ndarray:
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return weights / weights.sum()


_WINDOW = _window()


def _blur(x: jax.Array) -> jax.Array:
    """Gaussian means (..., H-10, W-10, C) of the windows that lie within the frame.

    Shifted sums and not a convolution: accelerators round a float32 convolution's inputs to bfloat16 or
    TF32, and the differences above cannot bear that.
    """
    for axis in (-3, -2):
        length = x.shape[axis] - _WINDOW.size + 1
        shifted = (jax.lax.slice_in_dim(x, k, k + length, axis=axis % x.ndim) for k in range(_WINDOW.size))
        x = sum(float(weight) * part for weight, part in zip(_WINDOW, shifted, strict=True))
    return x
