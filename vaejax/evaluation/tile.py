"""Decoding by tiles that overlap, blended linearly: for frames too large to decode whole."""

from collections.abc import Callable

import numpy as np

from vaejax.errors import InputError


def decode_tiled(
    decode: Callable[[np.ndarray], np.ndarray], latents: np.ndarray, tile: int, overlap: int, factor: int
) -> np.ndarray:
    """Decodes tiles of the whole clip's length and blends them where they overlap.

    The fewest tiles of this size that overlap by at least as much as asked are spread evenly, so all have the
    same size and every pixel is covered.

    Args:
      decode: latents (b, t, h', w', c) to float32 pixels (B, T, H', W', 3).
      latents: (b, t, h, w, c).
      tile: side of a tile in latent pixels; a smaller side of the frame is decoded whole.
      overlap: of neighbouring tiles, in latent pixels, from 0 to tile - 1.
      factor: pixels a latent pixel, each way.

    Returns:
      (B, T, h·factor, w·factor, 3) float32.

    Raises:
      InputError: for an overlap that leaves no tile.
    """
    check_tile(tile, overlap)
    rows, columns = (spans(size, tile, overlap) for size in latents.shape[2:4])
    out = total = None
    for (y0, y1), row in zip(rows, _weights(rows, factor), strict=True):
        for (x0, x1), column in zip(columns, _weights(columns, factor), strict=True):
            decoded = decode(latents[:, :, y0:y1, x0:x1])
            if out is None:
                height, width = (factor * size for size in latents.shape[2:4])
                out = np.zeros((*decoded.shape[:2], height, width, decoded.shape[-1]), np.float32)
                total = np.zeros((height, width, 1), np.float32)
            weight = row[:, None, None] * column[:, None]
            there = slice(y0 * factor, y1 * factor), slice(x0 * factor, x1 * factor)
            out[:, :, *there] += weight * decoded
            total[there] += weight
    return out / total


def check_tile(tile: int, overlap: int) -> None:
    """Raises InputError for an overlap that leaves no tile."""
    if not 0 <= overlap < tile:
        raise InputError(
            f"tiles of {tile} latent pixels that overlap by {overlap}; accepted: an overlap from 0 to below"
            " the tile"
        )


def spans(size: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """The fewest spans of `tile` that cover 0 to size and overlap by at least `overlap`, evenly spread."""
    if size <= tile:
        return [(0, size)]
    count = -(-(size - overlap) // (tile - overlap))
    starts = [round(i * (size - tile) / (count - 1)) for i in range(count)]
    return [(start, start + tile) for start in starts]


def _weights(tiles: list[tuple[int, int]], factor: int) -> list[np.ndarray]:
    """Of every tile's pixels: 1, falling in a straight line where its neighbour's rises, never to 0."""
    weights = []
    for i, (start, stop) in enumerate(tiles):
        weight = np.ones((stop - start) * factor, np.float32)
        before = (tiles[i - 1][1] - start) * factor if i else 0
        after = (stop - tiles[i + 1][0]) * factor if i + 1 < len(tiles) else 0
        weight[:before] *= (np.arange(before) + 0.5) / max(before, 1)
        weight[len(weight) - after :] *= (np.arange(after)[::-1] + 0.5) / max(after, 1)
        weights.append(weight)
    return weights
