"""The cut: which part of a picture goes into a frame, and the error of a picture that cannot give it."""

from typing import NamedTuple


class Unreadable(Exception):
    """A file that cannot give what was asked of it; the message is a one-line reason."""


class Cut(NamedTuple):
    """What is cut out of a displayed picture.

    Attributes:
      height: H of the result, pixels.
      width: W of the result, pixels.
      zoom: at least 1; how much smaller the crop is than the largest that fits. Limited by `max_upscale`.
      offset: (y, x) in [0, 1], where the crop sits in the room that it leaves.
      max_upscale: the most a displayed pixel may be enlarged.
    """

    height: int
    width: int
    zoom: float = 1.0
    offset: tuple[float, float] = (0.5, 0.5)
    max_upscale: float = 1.0

    def box(self, shown: tuple[float, float]) -> tuple[float, float, float, float]:
        """The crop (left, top, right, bottom), in pixels of a displayed picture of width and height `shown`.

        Raises:
          Unreadable: if the picture is too small.
        """
        cover = max(self.width / shown[0], self.height / shown[1])
        if cover > self.max_upscale * (1 + 1e-9):
            raise Unreadable(f"does not fit: {shown[0]:g}x{shown[1]:g} for {self.height}x{self.width} (HxW)")
        scale = max(cover, min(cover * self.zoom, self.max_upscale))
        wide, high = min(self.width / scale, shown[0]), min(self.height / scale, shown[1])
        top, left = (shown[1] - high) * self.offset[0], (shown[0] - wide) * self.offset[1]
        return left, top, left + wide, top + high
