"""Scores of frames and clips, and the spot alarm of activations. Pure JAX: they run where the arrays are.

All but `psnr_pooled`, which adds up a whole set in float64. Scores are of one frame, where time matters of
one sample, and never of a batch: whoever reports a clip or a bucket takes the mean of its frames' scores (and
not the score of their mean error, which the worst frames rule: that is `psnr_pooled`).
"""

import jax
import jax.numpy as jnp
import numpy as np

# dB. PSNR has no upper bound, and one black frame rebuilt exactly would make a mean infinite: clip every
# frame at this before taking the mean. 8-bit rounding alone costs 59 dB, so nothing real reaches it.
PSNR_CEILING = 100.0
LEVEL = 2 / 255  # one of the 255 steps of an 8-bit value, in [-1, 1]
SPOT_FLOOR = 26 * LEVEL  # a tenth of the range: what is fainter is no spot to the eye
SPOT_RATIO = 3.0  # of a spot's error over all that surrounds it
SPOT_REACH = (8, 16)  # pixels from a spot's middle to its surroundings


def psnr(x: jax.Array, y: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of every frame: 10 log10(2² / mean squared error), over H, W and C.

    Args:
      x: frames (B, T, H, W, C) in [-1, 1], a range of 2.
      y: frames like x. Neither is clipped or rounded here.

    Returns:
      (B, T) float32, in dB; inf where the frames are identical.
    """
    return 10 * jnp.log10(4 / squared_error(x, y))


def squared_error(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error of every frame over H, W and C, (B, T) float32; x and y as for `psnr`."""
    error = jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32))
    # Means of means: a float32 sum over all pixels of a large frame would lose digits.
    return error.mean((-2, -1)).mean(-1)


def psnr_pooled(squared_errors: np.ndarray) -> float:
    """The PSNR of a whole set: 10 log10(2² / mean of all squared errors), added up in float64.

    Never above the mean of the frames' PSNR (Jensen's inequality), for which bad frames count less.

    Args:
      squared_errors: `squared_error` of every frame of the set, of one size each; any shape.

    Returns:
      dB; inf if every frame is exact.
    """
    mean = np.mean(np.asarray(squared_errors, np.float64))
    return float(10 * np.log10(4 / mean)) if mean else float("inf")


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


def flicker(x: jax.Array, y: jax.Array) -> jax.Array:
    """What changes from frame to frame and should not, or should and does not: |Δx - Δy|, Δ over time.

    Args:
      x: clips (B, T, H, W, C) in [-1, 1], T at least 2.
      y: clips like x.

    Returns:
      (B,) float32, the mean over T - 1 differences, H, W and C, in 8-bit levels (0 to 510); NaN for images.
    """
    error = jnp.diff(x.astype(jnp.float32) - y.astype(jnp.float32), axis=1)
    return jnp.abs(error).mean((-2, -1)).mean((-2, -1)) / LEVEL


def spots(x: jax.Array, y: jax.Array) -> jax.Array:
    """The share of every frame's pixels that belong to spots: errors that stand alone.

    A pixel's error is its largest over C of |x - y|. It belongs to a spot if its error exceeds SPOT_FLOOR,
    and SPOT_RATIO times the largest error on a square ring around it, at one of the distances SPOT_REACH. So
    a spot up to 16 pixels wide is counted whole; an error along an edge crosses the ring and is not counted,
    nor one that is spread. A star in the dark that a codec loses is counted too: it is a spot of the error.

    Args:
      x: frames (B, T, H, W, C) in [-1, 1].
      y: frames like x.

    Returns:
      (B, T) float32 in [0, 1]; NaN if a frame is smaller than 16 x 16.
    """
    reaches = [reach for reach in SPOT_REACH if 2 * reach <= min(x.shape[-3:-1])]
    if not reaches:
        return jnp.full(x.shape[:2], jnp.nan, jnp.float32)
    error = jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32)).max(-1)
    alone = [error > SPOT_RATIO * _largest_on_ring(error, reach) for reach in reaches]
    return ((error > SPOT_FLOOR) & jnp.any(jnp.stack(alone), axis=0)).mean((-2, -1), dtype=jnp.float32)


def seam_error(whole: jax.Array, parts: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What decoding in parts changes where parts meet, and what it changes elsewhere.

    Args:
      whole: frames (B, T, H, W, C) in [-1, 1] of latents that were decoded at once.
      parts: frames like whole, of the same latents, decoded in chunks or in tiles.
      at: booleans that broadcast to (T, H, W), true where parts meet.

    Returns:
      Twice (B,) float32: mean |whole - parts| at the seams and elsewhere, in 8-bit levels; 0 if nothing
      changes, NaN where there is no such pixel.
    """
    change = jnp.abs(whole.astype(jnp.float32) - parts.astype(jnp.float32)).mean(-1)
    at = jnp.broadcast_to(at, change.shape[1:])

    def mean(where):
        # By frames first, as above; the share of each frame's pixels is its weight.
        share = where.mean((-2, -1))
        frames = (change * where).mean((-2, -1))
        return frames.mean(-1) / share.mean() / LEVEL

    return mean(at), mean(~at)


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


def _largest_on_ring(error: jax.Array, reach: int) -> jax.Array:
    """The largest value (..., H, W) on the border of the square of 2 reach + 1 pixels around each pixel.

    What lies outside the frame is passed over.
    """
    ring = jnp.zeros_like(error)  # errors are not negative
    for along, across in ((-1, -2), (-2, -1)):
        along, across = along % error.ndim, across % error.ndim
        window = [1] * error.ndim
        window[along] = 2 * reach + 1
        line = jax.lax.reduce_window(error, 0.0, jax.lax.max, window, [1] * error.ndim, "SAME")
        padding = [(reach, reach) if axis == across else (0, 0) for axis in range(error.ndim)]
        padded, size = jnp.pad(line, padding), error.shape[across]
        for start in (0, 2 * reach):
            ring = jnp.maximum(ring, jax.lax.slice_in_dim(padded, start, start + size, axis=across))
    return ring


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
