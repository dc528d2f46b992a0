"""Resizes RGBA pictures with straight alpha, as PNG stores it.

The color stored for a transparent pixel is arbitrary and must not reach its neighbors. So colors are first
multiplied by alpha, resized like alpha itself, and then divided by the resized alpha, all in float32. Where
nothing is left to see, the color is white, as it is when the picture is blended over white.
"""

import numpy as np
from PIL import Image

OPAQUE, CLEAR = 255, 255  # the alpha of opaque pixels; the red, green and blue of fully transparent ones


def resized(
    rgba: np.ndarray,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
    reducing_gap: float | None = None,
) -> np.ndarray:
    """Crops and resizes a picture with an antialiased Lanczos filter.

    Args:
      rgba: (H, W, 4) uint8.
      size: width and height of the result.
      box: the crop (left, top, right, bottom) in pixels of the picture; None: all of it.
      reducing_gap: see Pillow's `Image.resize`.

    Returns:
      (height, width, 4) uint8.
    """

    def scaled(plane: np.ndarray) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(plane))
        return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box, reducing_gap))

    if rgba[..., 3].min() == OPAQUE:
        return with_alpha(scaled(rgba[..., :3]), OPAQUE)
    alpha = rgba[..., 3] / np.float32(OPAQUE)
    visible = scaled(alpha)
    straight = np.round(OPAQUE * visible).clip(0, OPAQUE).astype(np.uint8)
    divisor = np.where(straight > 0, visible, 1)
    color = np.stack([scaled(rgba[..., i] * alpha) / divisor for i in range(3)], axis=-1)
    return whitened(with_alpha(np.round(color).clip(0, 255).astype(np.uint8), straight))


def whitened(rgba: np.ndarray) -> np.ndarray:
    """The picture (H, W, 4) uint8 with white in place of the colors that cannot be seen."""
    return np.where((rgba[..., 3:] == 0) & [True, True, True, False], np.uint8(CLEAR), rgba)


def with_alpha(rgb: np.ndarray, alpha: np.ndarray | int) -> np.ndarray:
    """Adds alpha, a number or (H, W) uint8, to a picture (H, W, 3) uint8."""
    plane = np.broadcast_to(np.asarray(alpha, np.uint8), rgb.shape[:2])
    return np.concatenate([rgb, plane[..., None]], axis=-1)
