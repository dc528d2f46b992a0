"""The panels of a run as a strip of small pictures: the original, then reconstructions by step."""

import functools
import os

import numpy as np
from PIL import Image

from vaejax.data.bucket import parse_buckets
from vaejax.errors import InputError
from vaejax.evaluate import page
from vaejax.rundir.panels import ERROR_GAIN, read_cells
from vaejax.watch.reader import Run

STEPS = 8  # most steps in a strip, from the first to the last
ROWS = 3  # most samples in a strip
WIDTH, HEIGHT = 128, 128  # largest size of a cell on the page, in CSS pixels
_SHARP = 2  # pixels of a picture per CSS pixel, for dense screens


def strip(run: Run, bucket: str) -> str:
    """An HTML table of a bucket's original, its reconstructions by step, and the linear codec; '' if none."""
    paths = run.panels.get(bucket, {})
    columns: dict[int, dict[str, str]] = {}
    for step in _spread(list(paths)):
        try:
            status = os.stat(paths[step])
            columns[step] = _columns(str(paths[step]), bucket, status.st_mtime_ns)
        except (OSError, ValueError, InputError):
            continue  # deleted in the meantime, or damaged
    if not columns:
        return ""
    latest = columns[max(columns)]
    psnr = dict(run.curve("eval", bucket, "psnr"))
    cells = [("original", latest["original"])]
    for step, pictures in columns.items():
        score = f"<br><small>{psnr[step]:.2f} dB</small>" if step in psnr else ""
        cells.append((f"step {step:,}{score}", pictures["reconstruction"]))
    if "linear" in latest:
        linear = run.latest("eval", bucket, "psnr_linear")
        cells.append((f"linear codec<br><small>{page.number(linear, 2)} dB</small>", latest["linear"]))
    cells.append((f"error x{ERROR_GAIN}<br><small>latest step</small>", latest["error"]))
    apart = {1, len(columns) + 1}  # a wider gap before the first step and after the last
    kinds = [" class=apart" if i in apart else "" for i in range(len(cells))]
    heads = "".join(f"<th{kind}>{label}</th>" for kind, (label, _) in zip(kinds, cells, strict=True))
    pictures = "".join(f"<td{kind}>{picture}</td>" for kind, (_, picture) in zip(kinds, cells, strict=True))
    return f"<table class=strip><tr>{heads}</tr><tr>{pictures}</tr></table>"


def _spread(steps: list[int]) -> list[int]:
    """At most STEPS of the steps, evenly spread, including the first and the last."""
    chosen = np.linspace(0, len(steps) - 1, min(STEPS, len(steps))).round().astype(int)
    return [steps[i] for i in chosen]


@functools.lru_cache(maxsize=512)
def _columns(path: str, bucket: str, modified: int) -> dict[str, str]:
    """The columns of a panel as <img> by name; `modified` is the file's time, which the cache needs.

    Raises:
      OSError, ValueError: if the panel cannot be read.
    """
    (shape,) = parse_buckets({bucket: {"batch": 1}}, 1, 1)
    cells = read_cells(path, shape)
    if shape.frames > 1:  # a sample has rows for its first, middle and last frame; takes the middle one
        shown = len({0, shape.frames // 2, shape.frames - 1})
        cells = cells[shown // 2 :: shown]
    names = ["original", "reconstruction", "linear", "error"]
    if cells.shape[1] % 2:  # two columns of alpha may follow
        names.remove("linear")
    scale = min(WIDTH / shape.width, HEIGHT / shape.height)
    size = max(1, round(scale * shape.width)), max(1, round(scale * shape.height))
    columns = {}
    for name, column in zip(names, cells[:ROWS].swapaxes(0, 1), strict=False):
        small = [Image.fromarray(cell).resize((_SHARP * size[0], _SHARP * size[1])) for cell in column]
        stacked = np.concatenate([np.asarray(one) for one in small])
        columns[name] = page.picture(stacked, size[0], "webp", quality=85)
    return columns
