"""Photos and clips of flat shapes that move and turn, drawn from a seed.

Their edges are sharp and their areas flat, which no linear codec describes well, but a network learns in
minutes. Photos are PNG, clips lossless H.264 (4:4:4, 12 frames per second). Equal arguments and versions give
equal files.
"""

import pathlib
from typing import NamedTuple

import numpy as np
import screens
from PIL import Image, ImageDraw

from vaejax import files

SHORTEST, LONGEST = 80, 128  # sides of a photo or clip, pixels
OVERSAMPLING = 4  # so that edges are smooth
Color = tuple[int, int, int]


class Shape(NamedTuple):
    """An ellipse or a polygon.

    Attributes:
      color: its color.
      corners: number of corners; 0 is an ellipse.
      place: its center, as shares of width and height.
      radius: its largest radius, as a share of the shorter side.
      aspect: its smallest radius, as a share of the largest.
      angle: its angle in radians.
      speed: change of its place per frame.
      spin: change of its angle per frame.
    """

    color: Color
    corners: int
    place: np.ndarray
    radius: float
    aspect: float
    angle: float
    speed: np.ndarray
    spin: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> "Shape":
        """Draws a shape at random."""
        return cls(
            color=_color(rng),
            corners=int(rng.choice([0, 3, 4, 5])),
            place=rng.uniform(size=2),
            radius=rng.uniform(0.06, 0.3),
            aspect=rng.uniform(0.3, 1),
            angle=rng.uniform(0, 2 * np.pi),
            speed=rng.normal(0, 0.02, 2),
            spin=rng.normal(0, 0.08),
        )

    def outline(self, time: int, width: int, height: int) -> list[tuple[float, float]]:
        """The corners of the shape in a frame; it bounces off the borders."""
        corners = self.corners or 48
        angles = 2 * np.pi * np.arange(corners) / corners
        points = np.stack([np.cos(angles), self.aspect * np.sin(angles)], 1)
        turn = self.angle + time * self.spin
        points @= np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        place = 1 - np.abs((self.place + time * self.speed) % 2 - 1)
        return [tuple(point) for point in self.radius * min(width, height) * points + place * (width, height)]


def frames(rng: np.random.Generator, width: int, height: int, count: int) -> list[Image.Image]:
    """Draws the frames of a clip, or one of a photo."""
    paper, shapes = _color(rng), [Shape.drawn(rng) for _ in range(rng.integers(3, 9))]
    drawn = []
    for time in range(count):
        image = Image.new("RGB", (OVERSAMPLING * width, OVERSAMPLING * height), paper)
        canvas = ImageDraw.Draw(image)
        for shape in shapes:
            canvas.polygon(shape.outline(time, *image.size), fill=shape.color)
        drawn.append(image.resize((width, height), Image.Resampling.BOX))
    return drawn


def write(folder: pathlib.Path, photos: int, clips: int, seed: int, length: int = 36) -> None:
    """Writes photos and clips, unless the folder exists; a folder that exists is complete.

    Args:
      folder: the folder.
      photos: number of photos.
      clips: number of clips.
      seed: seed of what is drawn.
      length: frames of a clip.
    """
    if folder.exists():
        return
    with files.atomic_folder(folder) as unfinished:
        for i in range(photos):
            rng = np.random.default_rng((seed, 0, i))
            frames(rng, *_size(rng), 1)[0].save(unfinished / f"{i:04}.png")
        for i in range(clips):
            rng = np.random.default_rng((seed, 1, i))
            screens.write_clip(unfinished / f"{i:04}.mp4", iter(frames(rng, *_size(rng), length)))


def _size(rng: np.random.Generator) -> tuple[int, int]:
    width, height = rng.integers(SHORTEST // 2, LONGEST // 2 + 1, 2) * 2
    return int(width), int(height)


def _color(rng: np.random.Generator) -> Color:
    red, green, blue = map(int, rng.integers(0, 256, 3))
    return red, green, blue
