"""The synthetic source: flat shapes that move and turn, drawn from a seed, so that nothing is decoded.

It times a run without its data, and shows that a run trains at all. Edges are sharp and areas flat, which no
linear codec describes well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from vaejax.config.accepts import is_whole
from vaejax.data.crop import Crop
from vaejax.data.split import Split
from vaejax.data.table import Record, Source, unmeasured
from vaejax.errors import InputError

if TYPE_CHECKING:
    from vaejax.config.schema import DataConfig

SECONDS = 10.0  # duration of a clip
MARGIN = 2  # width and height of a scene, relative to those of the largest crop
OVERSAMPLING = 2  # of the canvas on which shapes are drawn, for smooth edges
Color = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class SyntheticSource(Source):
    """Scenes of shapes; record i is drawn from (seed, i), in any size and at any frame rate.

    Attributes:
      seed: seed of the scenes.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("photos", "clips", "seed")
    seed: int = 0

    @classmethod
    def open(
        cls, label: str, weight: float, fields: Mapping[str, Any], data: "DataConfig", key: str, split: Split
    ) -> Self:
        """Lists 'photos' and 'clips' scenes, 10,000 each by default.

        The last ones, a fraction data.holdout, are held out.
        """
        asked = {"photos": 10_000, "clips": 10_000, "seed": 0, **fields}
        for name, value in asked.items():
            if not is_whole(value) or value < 0:
                raise InputError(f"{key}.{name} = {value!r}; accepted: a whole number, 0 or more")
        if not asked["photos"] + asked["clips"]:
            raise InputError(f"{key}: photos and clips are both 0; accepted: at least one of them above 0")
        tables = []
        for kind, count in (("image", asked["photos"]), ("video", asked["clips"])):
            held_out = np.arange(count) >= count - round(count * data.holdout)
            tables.append(unmeasured(f"synthetic/{kind}", "", kind, held_out, SECONDS))
        return cls(label, weight, pa.concat_tables(tables).combine_chunks(), seed=asked["seed"])

    def read(
        self, record: Record, frames: int, fps: float, crop: Crop, moment: float
    ) -> tuple[np.ndarray, float]:
        """Draws a sample."""
        start = moment * max(0.0, record.stop - (frames - 1) / fps)
        scene = Scene(np.random.default_rng((self.seed, int(record.kind == "video"), record.position)))
        size = MARGIN * crop.width, MARGIN * crop.height
        pictures = [
            np.asarray(scene.draw(start + i / fps, size, crop.box(size), crop)) for i in range(frames)
        ]
        return np.stack(pictures), start


class Shape(NamedTuple):
    """An ellipse or a polygon.

    Attributes:
      color: its color.
      corners: number of corners; 0 is an ellipse.
      place: its center, as shares of width and height.
      radius: its largest radius, as a share of the shorter side.
      aspect: its smallest radius, as a share of the largest.
      angle: its angle in radians.
      speed: change of its place per second.
      spin: change of its angle per second.
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
            speed=rng.normal(0, 0.24, 2),
            spin=rng.normal(0, 0.96),
        )

    def outline(self, time: float, width: float, height: float) -> np.ndarray:
        """The corners (n, 2) of the shape at a time in seconds; it bounces off the borders."""
        corners = self.corners or 48
        angles = 2 * np.pi * np.arange(corners) / corners
        points = np.stack([np.cos(angles), self.aspect * np.sin(angles)], 1)
        turn = self.angle + time * self.spin
        points @= np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        place = 1 - np.abs((self.place + time * self.speed) % 2 - 1)
        return self.radius * min(width, height) * points + place * (width, height)


class Scene:
    """A background and three to eight shapes.

    Args:
      rng: random numbers that decide on colors, shapes and their motion.
    """

    def __init__(self, rng: np.random.Generator):
        self._paper, self._shapes = _color(rng), [Shape.drawn(rng) for _ in range(rng.integers(3, 9))]

    def draw(
        self,
        time: float,
        size: tuple[float, float],
        box: tuple[float, float, float, float] | None = None,
        crop: Crop | None = None,
    ) -> Image.Image:
        """Draws the scene at a time in seconds.

        Args:
          time: seconds from its beginning.
          size: width and height of the scene, in pixels.
          box: the part to draw, (left, top, right, bottom) in pixels; None draws all of it.
          crop: size and channels of the result; None draws RGB at the scene's size.
        """
        left, top, right, bottom = box or (0, 0, *size)
        width, height = (crop.width, crop.height) if crop else map(int, size)
        mode = "RGBA" if crop and crop.channels == 4 else "RGB"
        image = Image.new(mode, (OVERSAMPLING * width, OVERSAMPLING * height), self._paper)
        canvas = ImageDraw.Draw(image)
        scale = np.array([image.width / (right - left), image.height / (bottom - top)])
        for shape in self._shapes:
            outline = (shape.outline(time, *size) - (left, top)) * scale
            canvas.polygon(list(map(tuple, outline)), fill=shape.color)
        return image.reduce(OVERSAMPLING)


def _color(rng: np.random.Generator) -> Color:
    red, green, blue = map(int, rng.integers(0, 256, 3))
    return red, green, blue
