"""Samples of several kinds as one picture."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def grid(shown: dict[str, np.ndarray], smallest: int = 96) -> np.ndarray:
    """A labelled row for each kind of sample (N, T, H, W, 3) uint8; of clips one for each of four frames."""
    gap, gutter, font = 4, 84, ImageFont.load_default(13)
    rows = []
    for label, samples in shown.items():
        times = np.linspace(0, samples.shape[1] - 1, min(4, samples.shape[1])).round().astype(int)
        rows += [(f"{label} t={t}" if len(times) > 1 else label, samples[:, t]) for t in times]
    scale = max(1, -(-smallest // rows[0][1].shape[2]))
    rows = [(label, frames.repeat(scale, 1).repeat(scale, 2)) for label, frames in rows]
    count, height, width, _ = rows[0][1].shape
    canvas = np.full((len(rows) * (height + gap) + gap, gutter + count * (width + gap), 3), 24, np.uint8)
    for i, (_, frames) in enumerate(rows):
        for j, frame in enumerate(frames):
            y, x = gap + i * (height + gap), gutter + j * (width + gap)
            canvas[y : y + height, x : x + width] = frame
    image = Image.fromarray(canvas)
    for i, (label, _) in enumerate(rows):
        middle = gap + i * (height + gap) + height / 2
        ImageDraw.Draw(image).text((gutter / 2, middle), label, (225, 225, 225), font, anchor="mm")
    return np.asarray(image)
