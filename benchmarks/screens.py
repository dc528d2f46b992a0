"""Photos and clips of screens: text, code, tables, charts, controls and windows, all drawn from a seed.

    python benchmarks/screens.py --out=FOLDER [--photos=400] [--clips=48] [--seed=0]

Photos are PNG, clips lossless H.264 (4:4:4, 12 frames per second). Words, colors, fonts, data and layout are
drawn anew for every file. In clips, pages scroll, text and charts appear bit by bit, and windows are dragged.
Equal arguments and versions give equal files. Requires matplotlib, for its fonts.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Iterator

import av
import numpy as np
from PIL import Image, ImageDraw
from screen_contents import Canvas, Content, Random, Theme, chart, code, controls, font, table, text, word

from vaejax import cli, files

FPS = 12
SHORTEST, LONGEST = 80, 128  # shorter side of a photo or clip, pixels
CONTENTS: tuple[Content, ...] = (text, code, table, chart, controls)
GROWING: tuple[Content, ...] = (text, text, code, code, chart)  # what a user types or plots
SCROLLED: tuple[Content, ...] = (text, text, code, table, controls)


def page(content: Content, rng: Random, width: int, height: int) -> Image.Image:
    """Draws a page of one kind of content, complete."""
    theme = Theme.drawn(rng)
    canvas = Canvas(width, height, theme.paper)
    for _ in content(canvas, rng, theme):
        pass
    return canvas.image


def window(rng: Random, width: int, height: int) -> Image.Image:
    """Draws a window: a title bar with buttons, above any content."""
    theme = Theme.drawn(rng)
    bar = theme.size + 5
    image = Image.new("RGB", (width, height), theme.accent(rng) if rng.random() < 0.5 else theme.faint)
    draw = ImageDraw.Draw(image)
    draw.text((5, bar / 2), word(rng, theme), theme.ink, font("DejaVuSans-Bold", theme.size), anchor="lm")
    for i in range(3):
        x = width - 7 - 10 * i
        draw.ellipse((x - 3, bar / 2 - 3, x + 3, bar / 2 + 3), fill=theme.accent(rng))
    image.paste(page(_any(rng, CONTENTS), rng, width - 2, max(1, height - bar - 1)), (1, bar))
    return image


def wallpaper(rng: Random, width: int, height: int) -> Image.Image:
    """Draws a smooth wallpaper from a few random colors."""
    colors = rng.integers(20, 236, (2, 3, 3)).astype(np.uint8)
    return Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC)


def photo(rng: Random) -> Image.Image:
    """Draws a screen: one page, or a desktop with windows."""
    width, height = _size(rng)
    if rng.random() < 0.7:
        return page(_any(rng, CONTENTS), rng, width, height)
    desktop = wallpaper(rng, width, height)
    for _ in range(rng.integers(1, 4)):
        size = [int(side * rng.uniform(0.45, 0.85)) for side in (width, height)]
        at = [
            int(rng.uniform(-0.1, 1) * (side - own)) for side, own in zip((width, height), size, strict=True)
        ]
        desktop.paste(window(rng, *size), (at[0], at[1]))
    return desktop


def clip(rng: Random, count: int) -> Iterator[Image.Image]:
    """Draws the frames of a clip: a page that scrolls, one that grows, or a window that is dragged."""
    width, height = _size(rng)
    return _any(rng, (_scrolled, _grown, _dragged))(rng, width, height, count)


def _scrolled(rng: Random, width: int, height: int, count: int) -> Iterator[Image.Image]:
    tall = page(_any(rng, SCROLLED), rng, width, 5 * height)
    speeds = np.repeat(rng.choice([0, 1, 2, 3, 5, 8], -(-count // 6)), 6)[:count] * rng.uniform(0.5, 1)
    speeds *= min(1, 4 * height / max(1, speeds.sum()))
    for y in np.cumsum(speeds).round().astype(int):
        yield tall.crop((0, y, width, y + height))


def _grown(rng: Random, width: int, height: int, count: int) -> Iterator[Image.Image]:
    content, theme = _any(rng, GROWING), Theme.drawn(rng)
    canvas = Canvas(width, height, theme.paper)
    steps = content(canvas, rng, theme)
    each = 0.2 if content is chart else rng.uniform(0.3, 2)  # words or bars per frame
    for _ in range(0 if content is chart else rng.integers(0, 20)):
        next(steps, None)
    for frame in range(count):
        for _ in range(int((frame + 1) * each) - int(frame * each)):
            next(steps, None)
        yield canvas.image.copy()


def _dragged(rng: Random, width: int, height: int, count: int) -> Iterator[Image.Image]:
    desktop = wallpaper(rng, width, height)
    if rng.random() < 0.5:
        desktop = page(_any(rng, CONTENTS), rng, width, height)
    moved = window(rng, int(0.7 * width), int(0.7 * height))
    corners = rng.uniform(-0.2, 0.5, (2 + count // 12, 2)) * (width, height)
    for frame in range(count):
        leg, share = divmod(frame / 12, 1)
        share = share * share * (3 - 2 * share)  # starts and stops smoothly
        x, y = corners[int(leg)] * (1 - share) + corners[int(leg) + 1] * share
        shown = desktop.copy()
        shown.paste(moved, (round(x), round(y)))
        yield shown


def write_clip(path: pathlib.Path, frames: Iterator[Image.Image]) -> None:
    """Writes frames as lossless H.264 with full chroma resolution, BT.709."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.pix_fmt = "yuv444p"
        stream.options = {"qp": "0", "x264-params": "cpu-independent=1"}
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709
        codec.color_range = 1  # limited
        for i, image in enumerate(frames):
            if not i:
                stream.width, stream.height = image.size
            frame = av.VideoFrame.from_image(image)
            container.mux(stream.encode(frame.reformat(format="yuv444p", dst_colorspace="ITU709")))
        container.mux(stream.encode())


def write(folder: pathlib.Path, photos: int, clips: int, seed: int, frames: int = 48) -> None:
    """Writes photos and clips, unless the folder exists; a folder that exists is complete.

    Args:
      folder: the folder.
      photos: number of photos.
      clips: number of clips.
      seed: seed of all files; every file has a generator of its own.
      frames: frames of every clip.
    """
    if folder.exists():
        return
    with files.atomic_folder(folder) as unfinished:
        for i in range(photos):
            photo(np.random.default_rng((seed, 0, i))).save(unfinished / f"photo_{i:04}.png")
        for i in range(clips):
            write_clip(unfinished / f"clip_{i:04}.mp4", clip(np.random.default_rng((seed, 1, i)), frames))


def _any(rng: Random, choices: tuple) -> Callable:
    return choices[rng.integers(len(choices))]


def _size(rng: Random) -> tuple[int, int]:
    """Draws an even width and height; the width is the larger one."""
    height = rng.integers(SHORTEST, LONGEST + 1)
    return int(height * rng.uniform(1, 1.6)) // 2 * 2, int(height) // 2 * 2


def main() -> int:
    """Parses the command line and writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=pathlib.Path, help="new folder for the media")
    parser.add_argument("--photos", type=cli.at_least(0), default=400, help="number of photos (default: 400)")
    parser.add_argument("--clips", type=cli.at_least(0), default=48, help="number of clips (default: 48)")
    parser.add_argument("--seed", type=cli.at_least(0), default=0, help="seed of all files (default: 0)")
    args = parser.parse_args()
    return cli.run(lambda: write(args.out, args.photos, args.clips, args.seed))


if __name__ == "__main__":
    sys.exit(main())
