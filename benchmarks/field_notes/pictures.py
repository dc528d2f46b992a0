"""Held-out photos of the shipped media, and what trained models make of them."""

from typing import Any

import numpy as np
from PIL import Image

import vaejax
from benchmarks.field_notes.lab import Trained
from vaejax.data.kinds import demo

PHOTOS = ("coffee.png", "flower.jpg")  # those that the demo holds out


def held_out(side: int, count: int) -> np.ndarray:
    """Square crops of the demo's held-out photos, (count, side, side, 3) uint8."""
    crops = []
    for name in PHOTOS:
        photo = Image.open(demo.path(name)).convert("RGB")
        scale = side * 1.5 / min(photo.size)
        photo = photo.resize([round(n * scale) for n in photo.size], Image.Resampling.LANCZOS)
        pixels, step = np.asarray(photo), max(1, side // 4)
        rows, columns = (range(0, n - side + 1, step) for n in pixels.shape[:2])
        crops += [pixels[y : y + side, x : x + side] for y in rows for x in columns]
    chosen = np.linspace(0, len(crops) - 1, count).round().astype(int)
    return np.stack([crops[i] for i in chosen])


def reconstructed(trained: Trained, photos: np.ndarray) -> np.ndarray:
    """Photos (n, H, W, 3) uint8, encoded and decoded by a model."""
    codec = vaejax.load(trained.folder)
    return np.asarray(codec.decode(codec.encode(photos[:, None], normalize=False)))[:, 0]


def show(axes: Any, columns: dict[str, np.ndarray]) -> None:
    """Shows rows of pictures (n, H, W, 3), one row for each name."""
    rows = [np.concatenate(list(pictures), axis=1) for pictures in columns.values()]
    height = rows[0].shape[0]
    axes.imshow(np.concatenate(rows))
    axes.set_yticks([height * (i + 0.5) for i in range(len(rows))], list(columns))
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
