"""Panels of original, reconstruction and error, as PNG, and as MP4 for videos.

A panel names its bucket, its step, and the PSNR of the samples that it shows. The error is the maximum over
channels of |original - reconstruction|, amplified four times. A spot in one channel is therefore as visible
as a gray one. The color scale goes from black (no error) through red and yellow to white (an error of a
quarter of the pixel range or more). Pixels with alpha lie over a checkerboard, and their alpha is shown
besides.
"""

import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vaejax import files
from vaejax.data.bucket import Bucket
from vaejax.rundir.picture import gray_alpha, visible

ERROR_GAIN = 4
MIN_CELL = 192  # minimum width of a cell in pixels; narrower frames are enlarged by a whole factor
MIN_SAMPLE = 96  # minimum width of a cell in grids of samples, in pixels
MAX_VIDEO = 4096  # longest side in pixels; browsers and hardware decoders play no larger H.264
_GAP = 4
_HEADER = 24
_FOOTER = 22
_GUTTER = 40
_BACKGROUND = 24
_INK = (225, 225, 225)


def write_panels(
    workdir: str | os.PathLike,
    step: int,
    bucket_name: str,
    original: np.ndarray,
    reconstruction: np.ndarray,
    linear: np.ndarray | None = None,
    fps: float = 8.0,
) -> np.ndarray:
    """Writes DIR/panels/STEP/BUCKET.png, and for videos BUCKET.mp4.

    The columns are original, reconstruction, linear codec (if given), the error of the reconstruction and,
    for samples with alpha, the alpha of original and reconstruction. The labels of reconstructions show the
    mean PSNR over the frames. There is one row per sample, except in the PNG of a video: it has up to three
    rows per sample, for the first, middle and last frame.

    Args:
      workdir: DIR, the folder of the run.
      step: number of updates done.
      bucket_name: BUCKET.
      original: samples, (N, T, H, W, C) uint8; C is 3 or 4.
      reconstruction: reconstructions of the samples, of the same shape.
      linear: reconstructions by a linear codec, the baseline, of the same shape; None omits the column.
      fps: frames per second of the MP4.

    Returns:
      The pixels of the PNG, (height, width, 3) uint8.

    Raises:
      ValueError: if the arrays are not uint8 of one shape (N, T, H, W, C).
    """
    columns = {"original": original, "reconstruction": reconstruction}
    if linear is not None:
        columns["linear codec"] = linear
    columns = {name: np.asarray(column) for name, column in columns.items()}
    for name, column in columns.items():
        if column.dtype != np.uint8 or column.ndim != 5 or column.shape != np.shape(original):
            raise ValueError(f"panel {name}: {column.dtype} {column.shape}; accepted: uint8 (N, T, H, W, C)")
    x, x_hat = columns["original"], columns["reconstruction"]
    scored = {name: _psnr(x, column) for name, column in columns.items() if name != "original"}
    columns = {name: visible(column) for name, column in columns.items()}
    columns[f"error x{ERROR_GAIN}"] = error_map(x, x_hat)
    if x.shape[-1] == 4:
        columns |= {"alpha": gray_alpha(x), "decoded alpha": gray_alpha(x_hat)}
        scored["decoded alpha"] = _psnr(x[..., 3:], x_hat[..., 3:])
    labels = [f"{name} {scored[name]:.2f} dB" if name in scored else name for name in columns]
    caption = f"{bucket_name}, step {step}; mean PSNR of the samples shown"

    frames = np.stack(list(columns.values()), axis=2)  # (N, T, columns, H, W, 3)
    samples, length = frames.shape[:2]
    if length == 1:
        png = _grid(frames[:, 0], labels, caption=caption)
    else:
        times = sorted({0, length // 2, length - 1})
        rows = frames[:, times].reshape(-1, *frames.shape[2:])
        png = _grid(rows, labels, [f"t={t}" for t in times] * samples, caption)
        panels = (_grid(frames[:, t], labels, caption=caption) for t in range(length))
        _write_mp4(_folder(workdir, step) / f"{bucket_name}.mp4", panels, fps)
    write_picture(workdir, step, bucket_name, png)
    return png


def write_picture(workdir: str | os.PathLike, step: int, name: str, picture: np.ndarray) -> None:
    """Writes a picture (H, W, 3) uint8 as panels/STEP/NAME.png in the run's folder, atomically."""
    with files.atomic_file(_folder(workdir, step) / f"{name}.png") as file:
        Image.fromarray(picture).save(file, "PNG")


def read_cells(path: str | os.PathLike, bucket: Bucket) -> np.ndarray:
    """The cells of a bucket's PNG panel, (rows, columns, height, width, 3) uint8.

    Raises:
      OSError: if there is no readable PNG.
      ValueError: if the picture is smaller than a cell, or too large for a panel.
    """
    try:
        with Image.open(path) as image:
            panel = np.asarray(image.convert("RGB"))
    except (SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises these for damaged files
        raise ValueError(str(error)) from error
    scale = max(1, -(-MIN_CELL // bucket.width))
    height, width = scale * bucket.height, scale * bucket.width
    rows = (len(panel) - _HEADER) // (height + _GAP)
    columns, left = divmod(panel.shape[1], width + _GAP)
    if not rows or not columns:
        raise ValueError(f"{path}: {panel.shape[1]}x{len(panel)} pixels; accepted: a panel of {bucket.name}")
    panel = panel[_HEADER:, left:][: rows * (height + _GAP)]
    cells = panel.reshape(rows, height + _GAP, columns, width + _GAP, 3).swapaxes(1, 2)
    return cells[:, :, :height, :width]


def error_map(original: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """The amplified error of two uint8 arrays (..., C) as colors, (..., 3) uint8."""
    error = np.abs(original.astype(np.int16) - reconstruction).max(axis=-1, keepdims=True)
    # Black, red, yellow, white: each third of the range fills one of R, G, B.
    heat = 3 * ERROR_GAIN * error - np.array([0, 255, 510], np.int16)
    return np.clip(heat, 0, 255).astype(np.uint8)


def _psnr(original: np.ndarray, decoded: np.ndarray) -> float:
    """Mean PSNR in dB over frames (N, T, H, W, C) uint8; an exact frame counts as 100 dB."""
    errors = []
    for x, x_hat in zip(original, decoded, strict=True):  # one sample at a time, for memory
        errors.append(np.square(x.astype(np.float32) - x_hat).mean((1, 2, 3)))
    return float(np.minimum(10 * np.log10(255**2 / np.maximum(errors, 1e-12)), 100).mean())


def _folder(workdir: str | os.PathLike, step: int) -> Path:
    directory = Path(workdir) / "panels" / str(step)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def sample_grid(samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """A picture (height, width, 3) uint8 of samples, in labeled rows.

    The images of a label take one row. Its clips take up to four rows, one for each of the frames shown.

    Args:
      samples: {label: samples}, with samples (N, T, H, W, C) uint8 of one shape for all labels.
    """
    rows, labels = [], []
    for label, clips in samples.items():
        length = clips.shape[1]
        times = np.linspace(0, length - 1, min(4, length)).round().astype(int)
        rows += [visible(clips[:, t]) for t in times]
        labels += [textwrap.fill(f"{label} t={t}" if length > 1 else label, 16) for t in times]
    return _grid(np.stack(rows), row_labels=labels, min_cell=MIN_SAMPLE)


def _grid(
    cells: np.ndarray,
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    caption: str = "",
    min_cell: int = MIN_CELL,
) -> np.ndarray:
    """A labeled grid of cells (rows, columns, H, W, 3) on a dark background; small cells are enlarged.

    `read_cells` relies on the places of the cells.
    """
    rows, columns, height, width, _ = cells.shape
    scale = max(1, -(-min_cell // width))
    cells = cells.repeat(scale, axis=2).repeat(scale, axis=3)
    height, width = scale * height, scale * width
    font = ImageFont.load_default(13)
    top = _HEADER if column_labels else _GAP
    widths = [font.getlength(line) for label in row_labels for line in label.splitlines()]
    left = max(_GUTTER, math.ceil(max(widths)) + 2 * _GAP) if widths else _GAP
    bottom = top + rows * (height + _GAP)
    size = (bottom + (_FOOTER if caption else 0), left + columns * (width + _GAP))
    canvas = np.full((*size, 3), _BACKGROUND, np.uint8)
    for i in range(rows):
        for j in range(columns):
            y, x = top + i * (height + _GAP), left + j * (width + _GAP)
            canvas[y : y + height, x : x + width] = cells[i, j]
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for j, label in enumerate(column_labels):
        draw.text((left + j * (width + _GAP) + width / 2, _HEADER / 2), label, _INK, font, anchor="mm")
    for i, label in enumerate(row_labels):
        draw.text((left / 2, top + i * (height + _GAP) + height / 2), label, _INK, font, anchor="mm")
    if caption:
        draw.text((left, bottom + (_FOOTER - _GAP) / 2), caption, _INK, font, anchor="lm")
    return np.asarray(image)


def _write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Writes frames (height, width, 3) uint8 as H.264 that browsers play: yuv420p, even sizes, BT.709."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12", "preset": "veryfast"}
        # Without this metadata players guess the color matrix from the frame size.
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709
        codec.color_range = 1  # limited
        for i, frame in enumerate(frames):
            frame = _fit_player(frame)
            if i == 0:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode())


def _fit_player(frame: np.ndarray) -> np.ndarray:
    """Shrinks a frame larger than MAX_VIDEO; makes its size even by repeating the last row or column."""
    if max(frame.shape) > MAX_VIDEO:
        image = Image.fromarray(frame)
        image.thumbnail((MAX_VIDEO, MAX_VIDEO))
        frame = np.asarray(image)
    return np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
