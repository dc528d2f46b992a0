"""The crop of a picture, and the error for files that cannot be read."""

from typing import NamedTuple

import numpy as np

MEDIA_CHANNELS = (3, 4)  # the numbers of channels with which photos and clips can be read


class Unreadable(Exception):
    """A file cannot be read, or lacks the requested size or frames; the message is a one-line reason."""


class Unavailable(Unreadable):
    """A file cannot be read for a reason outside it, such as a missing permission."""


class Crop(NamedTuple):
    """A crop of a displayed picture, resized to H x W. It is relative, so it applies to pictures of any size.

    The crop also says whether alpha is read.

    Attributes:
      height: H of the result, pixels.
      width: W of the result, pixels.
      zoom: scale of the picture relative to the smallest scale at which the picture covers H x W; at least 1.
        `max_upscale` limits the resulting scale.
      offset: position of the crop in the picture, from (0, 0) at the top left to (1, 1) at the bottom right,
        as (y, x).
      max_upscale: largest factor by which the picture may be enlarged.
      channels: C of the result: 3 for RGB over white, 4 for RGB and straight alpha.
    """

    height: int
    width: int
    zoom: float = 1.0
    offset: tuple[float, float] = (0.5, 0.5)
    max_upscale: float = 1.0
    channels: int = 3

    def box(self, shown: tuple[float, float]) -> tuple[float, float, float, float]:
        """The crop as (left, top, right, bottom), in pixels of a picture of size `shown` (width, height).

        Raises:
          Unreadable: if covering H x W would enlarge the picture by more than `max_upscale`.
        """
        cover = max(self.width / shown[0], self.height / shown[1])
        if cover > self.max_upscale * (1 + 1e-9):
            size = f"{shown[1]:g}x{shown[0]:g}, needed: {self.height}x{self.width} (HxW)"
            raise Unreadable(f"does not fit: {size}")
        scale = max(cover, min(cover * self.zoom, self.max_upscale))
        wide, high = min(self.width / scale, shown[0]), min(self.height / scale, shown[1])
        top, left = (shown[1] - high) * self.offset[0], (shown[0] - wide) * self.offset[1]
        return left, top, left + wide, top + high


def covers(height: int, width: int, shown_height, shown_width, max_upscale: float):
    """Whether a picture, enlarged by at most `max_upscale`, covers height x width; elementwise for arrays."""
    scale = np.maximum(height / np.maximum(shown_height, 1), width / np.maximum(shown_width, 1))
    return scale <= max_upscale * (1 + 1e-6)
