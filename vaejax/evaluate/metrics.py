"""Metrics of reconstructed frames and clips, and a measure of activations that warns of spots.

All functions are pure JAX and run on the device of their arrays, except `psnr_pooled`, which uses NumPy.
`psnr`, `squared_error`, `ssim` and `spots` describe each frame, `flicker` and `seam_error` each clip. The
score of a bucket is the mean over its frames or clips. `psnr_pooled` describes a whole set of frames: it is
the PSNR of their mean error, which the worst frames dominate.
"""

import jax
import jax.numpy as jnp
import numpy as np

# dB. The PSNR of each frame is capped at this value before the mean. Otherwise a single frame without error,
# such as a black one, would make the mean infinite. Other frames stay below the cap: even an error as small
# as that of rounding to 8 bits gives 59 dB.
PSNR_CEILING = 100.0
LEVEL = 2 / 255  # one 8-bit step in the range [-1, 1]
SPOT_FLOOR = 26 * LEVEL  # least error of a spot, a tenth of the range; the eye does not see fainter spots
SPOT_RATIO = 3.0  # least ratio of a spot's error to the largest error on a ring around it
SPOT_REACH = (8, 16)  # half-widths, in pixels, of the square rings around a pixel


def psnr(x: jax.Array, y: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio of every frame: 10 log10(2² / mean squared error), over H, W and C.

    Args:
      x: frames (B, T, H, W, C) in [-1, 1], a range of 2.
      y: frames like x. Neither is clipped or rounded.

    Returns:
      (B, T) float32, in dB; inf for identical frames.
    """
    return 10 * jnp.log10(4 / squared_error(x, y))


def psnr_of_parts(x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """`psnr` of RGB and of every further channel, by name; {} if there are no further channels.

    The names are 'psnr_rgb' and, for RGB with alpha, 'psnr_alpha'. With more than four channels the further
    ones are numbered: 'psnr_channel_3', 'psnr_channel_4' and so on.
    """
    c = x.shape[-1]
    if c <= 3:
        return {}
    parts = {"rgb": slice(3)} | {"alpha" if c == 4 else f"channel_{i}": slice(i, i + 1) for i in range(3, c)}
    return {f"psnr_{name}": psnr(x[..., part], y[..., part]) for name, part in parts.items()}


def squared_error(x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error of every frame over H, W and C, (B, T) float32; x and y as for `psnr`."""
    error = jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32))
    # Nested means: a float32 sum over all pixels of a large frame would lose digits.
    return error.mean((-2, -1)).mean(-1)


def psnr_pooled(squared_errors: np.ndarray) -> float:
    """The PSNR of a whole set: 10 log10(2² / mean of all squared errors), computed in float64.

    It gives bad frames more weight than the mean PSNR of the frames does, and it never exceeds that mean
    (Jensen's inequality).

    Args:
      squared_errors: `squared_error` of every frame of the set, any shape; all frames have the same size.

    Returns:
      dB; inf if every frame is exact.
    """
    mean = np.mean(np.asarray(squared_errors, np.float64))
    return float(10 * np.log10(4 / mean)) if mean else float("inf")


def ssim(x: jax.Array, y: jax.Array) -> jax.Array:
    """Structural similarity of every frame (Wang et al. 2004), the mean over H, W and C.

    The definition is scikit-image's with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False`: an
    11 x 11 Gaussian window per channel, only at positions inside the frame. SSIM compares mean luminances, so
    black must be 0. Frames are therefore mapped to [0, 1]; the result equals that for a range of 0 to 255
    with `data_range=255`, as in the literature.

    Args:
      x: frames (B, T, H, W, C) in [-1, 1].
      y: frames like x.

    Returns:
      (B, T) float32, at most 1; NaN if a frame is smaller than the window.
    """
    if min(x.shape[-3:-1]) < _WINDOW.size:
        return jnp.full(x.shape[:2], jnp.nan, jnp.float32)
    x, y = (x.astype(jnp.float32) + 1) / 2, (y.astype(jnp.float32) + 1) / 2
    # Centering each frame does not change variances, and reduces float32 cancellation in them.
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
    """Mean error of the differences between successive frames: |Δx - Δy|.

    It measures motion that the reconstruction adds or loses.

    Args:
      x: clips (B, T, H, W, C) in [-1, 1], T at least 2.
      y: clips like x.

    Returns:
      (B,) float32, the mean over T - 1 differences, H, W and C, in 8-bit levels (0 to 510); NaN for images.
    """
    error = jnp.diff(x.astype(jnp.float32) - y.astype(jnp.float32), axis=1)
    return jnp.abs(error).mean((-2, -1)).mean((-2, -1)) / LEVEL


def spots(x: jax.Array, y: jax.Array) -> jax.Array:
    """The share of each frame's pixels that belong to spots, which are small isolated errors.

    The error of a pixel is the maximum of |x - y| over C. A pixel belongs to a spot if its error exceeds
    SPOT_FLOOR, and exceeds SPOT_RATIO times the largest error on a square ring around it. One ring with a
    half-width in SPOT_REACH is enough. So a spot up to 16 pixels wide is counted whole in a frame of at least
    32 x 32. An error along an edge crosses the ring and is not counted, nor is a diffuse error. A star that
    the codec loses from a dark sky counts as a spot.

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
    """The change caused by decoding in parts, at the seams between parts and elsewhere.

    Args:
      whole: frames (B, T, H, W, C) in [-1, 1], decoded at once.
      parts: frames like `whole`, decoded from the same latents in chunks or tiles.
      at: booleans that broadcast to (T, H, W), true at the seams.

    Returns:
      Two arrays (B,) float32: mean |whole - parts| at the seams, and elsewhere, in 8-bit levels. An array is
      NaN if it is a mean over no pixels.
    """
    change = jnp.abs(whole.astype(jnp.float32) - parts.astype(jnp.float32)).mean(-1)
    at = jnp.broadcast_to(at, change.shape[1:])

    def mean(where):
        # The mean over the selected pixels is mean(change * where) / mean(where). `squared_error` explains
        # why the means are nested.
        share = where.mean((-2, -1))
        frames = (change * where).mean((-2, -1))
        return frames.mean(-1) / share.mean() / LEVEL

    return mean(at), mean(~at)


def activation_spread(x: jax.Array) -> jax.Array:
    """The largest L2 norm of a pixel's channel vector divided by the median norm; it warns of colored spots.

    It is about 1 to 10 in a healthy layer. Spots appear if a few pixels have far larger activations than the
    rest: a network can use such pixels to carry statistics through a normalization layer.

    Args:
      x: activations (B, T, H, W, C).

    Returns:
      A float32 scalar; inf if more than half of the pixels are zero, NaN if all are.
    """
    norm = jnp.linalg.norm(x.astype(jnp.float32), axis=-1)
    return norm.max() / jnp.median(norm)


def _largest_on_ring(error: jax.Array, reach: int) -> jax.Array:
    """For each pixel, the largest value on the border of a square around it, (..., H, W).

    The sides of the square are 2 reach + 1 pixels long. Positions outside the frame are ignored.
    """
    ring = jnp.zeros_like(error)  # the maximum may start at 0, because no error is below 0
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
    """The Gaussian-weighted mean of every window that is inside the frame, (..., H-10, W-10, C).

    It adds shifted copies instead of convolving: accelerators round the inputs of a float32 convolution to
    bfloat16 or TF32, which is too coarse for the differences in `ssim`.
    """
    for axis in (-3, -2):
        length = x.shape[axis] - _WINDOW.size + 1
        shifted = (jax.lax.slice_in_dim(x, k, k + length, axis=axis % x.ndim) for k in range(_WINDOW.size))
        x = sum((float(w) * part for w, part in zip(_WINDOW, shifted, strict=True)), jnp.zeros((), x.dtype))
    return x
