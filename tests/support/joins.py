"""Clips joined from scenes of the demo's clips, with pans and fades between them that are no cuts."""

import functools
import os
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from vaejax.data import frames
from vaejax.data.kinds import demo

HEIGHT, WIDTH = 108, 192
BIKES = (0, 30, 76, 137, 187, 242)  # the first frames of the scenes in bikes.mp4, found by eye
PANNED = ("coffee.png", "chelsea.png", "astronaut.png", "china.jpg", "flower.jpg", "rocket.jpg")


@functools.cache
def scenes() -> list[np.ndarray]:
    """The eight scenes of the demo's clips, uint8 (T, H, W, C) each."""
    clips = {}
    for name in ("bigbuckbunny.mp4", "carphone_pristine.mp4", "bikes.mp4"):
        pictures = (frame.picture for frame in frames.frames_from(demo.path(name), 0.0))
        clips[name] = np.stack([p.reformat(WIDTH, HEIGHT, "rgb24").to_ndarray() for p in pictures])
    return [*list(clips.values())[:2], *np.split(clips["bikes.mp4"], BIKES[1:])]


@functools.cache
def photo(name: str) -> Image.Image:
    return Image.open(demo.path(name)).convert("RGB")


def pan(rng: np.random.Generator, count: int) -> np.ndarray:
    """A pan over a photo by 3 to 8 percent of the width a frame, blurred as by a shutter of 180 degrees."""
    picture = photo(PANNED[rng.integers(len(PANNED))])
    height = picture.height * 0.6
    width = min(height * WIDTH / HEIGHT, picture.width / 2)
    step, top = rng.uniform(0.03, 0.08) * width, rng.uniform(0, picture.height - height)
    count = min(count, int((picture.width - width) / step))
    out = np.zeros((count, HEIGHT, WIDTH, 3))
    for i in range(count):
        for part in range(4):
            left = min((i + part / 8) * step, picture.width - width)
            box = (left, top, left + width, top + height)
            out[i] += np.asarray(picture.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box)) / 4
    return out.astype(np.uint8)


def faded(scene: np.ndarray) -> np.ndarray:
    """The middle of a scene darkened to black and back within a second."""
    count = len(scene)
    share = np.abs(np.linspace(-1, 1, count))
    return (scene * share[:, None, None, None]).astype(np.uint8)


def joined(seed: int, parts: int = 8, numbered: bool = False) -> tuple[np.ndarray, list[int]]:
    """A random clip, and the frames after its joins.

    Args:
      seed: seed of the scenes, their spans, pans and fades.
      parts: number of parts.
      numbered: whether each part shows its number, which `numbers` reads.

    Returns:
      uint8 (T, H, W, C), and the index of the first frame of every part but the first.
    """
    rng, last, made = np.random.default_rng(seed), -1, []
    for number in range(parts):
        count, kind = int(rng.integers(8, 40)), rng.random()
        if kind < 0.2 and last >= 0:
            last, part = -1, pan(rng, count)
        else:
            last = int(rng.choice([i for i in range(len(scenes())) if i != last]))
            start = rng.integers(max(1, len(scenes()[last]) - count))
            part = scenes()[last][start : start + count]
            part = faded(part) if kind > 0.85 and len(part) > 16 else part.copy()
        if numbered:
            for bit in range(4):
                part[:, -8:, 48 * bit : 48 * bit + 48] = 225 if number >> bit & 1 else 25
        made.append(part)
    return np.concatenate(made), np.cumsum([len(part) for part in made])[:-1].tolist()


def numbers(sample: np.ndarray) -> set[int]:
    """The numbers of the parts that a sample (T, H, W, C) of a whole `numbered` clip shows, at any size."""
    height, width = sample.shape[1:3]
    row, columns = round((1 - 3 / HEIGHT) * height), ((np.arange(4) + 0.5) / 4 * width).astype(int)
    bits = sample[:, row, columns].mean(-1) > 125
    return set((bits @ (1 << np.arange(4))).tolist())


def write(path, pictures: np.ndarray, rate=25, times=None) -> None:
    """Encodes pictures as H.264; `times` are their times in milliseconds."""
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23"}
        tick = Fraction(1, 1000) if times is not None else 1 / Fraction(rate)
        stream.codec_context.time_base = tick
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.time_base, frame.pts = tick, i if times is None else int(times[i])
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
