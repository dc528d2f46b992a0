"""Photos and clips of the scenes of the source `synthetic`, as files.

Photos are PNG, clips lossless H.264 (4:4:4, 12 frames per second). Equal arguments and versions give equal
files.
"""

import pathlib

import numpy as np
import screens

from vaejax import files
from vaejax.data.kinds.synthetic import Scene

SHORTEST, LONGEST = 80, 128  # sides of a photo or clip, pixels


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
            size = _size(rng)
            Scene(rng).draw(0, size).save(unfinished / f"{i:04}.png")
        for i in range(clips):
            rng = np.random.default_rng((seed, 1, i))
            size, scene = _size(rng), Scene(rng)
            pictures = (scene.draw(time / screens.FPS, size) for time in range(length))
            screens.write_clip(unfinished / f"{i:04}.mp4", pictures)


def _size(rng: np.random.Generator) -> tuple[int, int]:
    width, height = rng.integers(SHORTEST // 2, LONGEST // 2 + 1, 2) * 2
    return int(width), int(height)
