"""Many small photos, cut from the few that packages ship: enough to train and judge a generator."""

import pathlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from benchmarks.field_notes.pictures import PHOTOS as HELD_OUT
from vaejax import files
from vaejax.data import media
from vaejax.data.kinds import demo

SIDE = 96
PER_PHOTO = 60
EVERY = 0.5  # seconds between the frames that are taken from a clip
SHORTER = 384  # shorter side to which photos and frames are reduced first


def write(folder: pathlib.Path, save: Callable[[Image.Image, pathlib.Path, int], None] | None = None) -> None:
    """Writes the tiles as PNG, unless the folder exists.

    Args:
      folder: folder of the tiles.
      save: function of a tile, its path without suffix and its number, which saves it in another way.
    """
    if folder.exists():
        return
    with files.atomic_folder(folder) as unfinished:
        for number, (name, tile) in enumerate(_tiles()):
            if save:
                save(tile, unfinished / name, number)
            else:
                tile.save(unfinished / f"{name}.png")


def _tiles() -> Iterator[tuple[str, Image.Image]]:
    for name, picture in _pictures():
        scale = min(1.0, SHORTER / min(picture.size))
        picture = picture.resize([round(n * scale) for n in picture.size], Image.Resampling.LANCZOS)
        wide, high = (n // SIDE for n in picture.size)
        places = [(x * SIDE, y * SIDE) for y in range(high) for x in range(wide)][:PER_PHOTO]
        for i, (x, y) in enumerate(places):
            yield f"{name}_{i:02}", picture.crop((x, y, x + SIDE, y + SIDE))


def _pictures() -> Iterator[tuple[str, Image.Image]]:
    for name in demo.names():
        path = demo.path(name)
        stem = pathlib.Path(name).stem
        if media.kind_of(path) == "image" and name not in HELD_OUT:
            yield stem, Image.open(path).convert("RGB")
        elif media.kind_of(path) == "video":
            due = 0.0
            for start, _, frame in media.stream(path, "video"):
                if start >= due:
                    yield f"{stem}_{start:.1f}", Image.fromarray(np.asarray(frame))
                    due = start + EVERY
