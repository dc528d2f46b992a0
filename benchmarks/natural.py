"""The media that the demo holds out, cut into tiles, so that each file gives one sample of an evaluation.

These are two photos, and the last fifth of three clips.
"""

import pathlib

import numpy as np
import screens
from PIL import Image

from vaejax import files
from vaejax.data import media
from vaejax.data.kinds import demo
from vaejax.data.split import HELD_OUT_TAIL

PHOTOS = ("coffee.png", "flower.jpg")
CLIPS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")


def write(folder: pathlib.Path) -> None:
    """Writes the tiles, unless the folder exists; a folder that exists is complete."""
    if folder.exists():
        return
    with files.atomic_folder(folder) as unfinished:
        for name in PHOTOS:
            picture = np.asarray(Image.open(demo.path(name)).convert("RGB"))[None]
            for i, (frame,) in enumerate(_tiles(picture)):
                Image.fromarray(frame).save(unfinished / f"{pathlib.Path(name).stem}_{i:02}.png")
        for name in CLIPS:
            for i, tile in enumerate(_tiles(_end(demo.path(name)))):
                file = unfinished / f"{pathlib.Path(name).stem}_{i:02}.mp4"
                screens.write_clip(file, map(Image.fromarray, tile))


def _end(path: str) -> np.ndarray:
    """The last fifth of a clip at the frame rate of `screens`, (T, H, W, 3) uint8."""
    frames, due = [], (1 - HELD_OUT_TAIL) * media.probe(path, "video")["duration"]
    for start, length, frame in media.stream(path, "video"):
        while start <= due < start + length:
            frames.append(frame)
            due += 1 / screens.FPS
    return np.stack(frames)


def _tiles(frames: np.ndarray) -> list[np.ndarray]:
    """Square tiles of frames (T, H, W, 3), a third of the shorter side or 96 pixels wide."""
    height, width = frames.shape[1:3]
    side = max(96, min(height, width) // 3 // 2 * 2)
    corners = [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
    return [frames[:, y : y + side, x : x + side] for y, x in corners]
