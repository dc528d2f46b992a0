"""Overlapping tiles, for frames too large for one device.

If a network only convolves, tiles that overlap by twice the reach of its receptive field give the same
result as the whole frame: from each tile, only the part that does not depend on its cut edges is used. With
attention or group normalization every pixel depends on the whole frame. In that case, and with a smaller
overlap, tiles are blended linearly, and the result differs from that of the whole frame.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Float32

from vaejax.errors import InputError

Span = tuple[int, int]  # start and stop


class Tiles:
    """Overlapping square tiles that cover a frame.

    They are the fewest tiles with at least the given overlap. All have the same size and are spread evenly.

    Args:
      height, width: size of the frame.
      tile: side of a tile; a frame side of at most this length is not divided.
      overlap: smallest overlap of neighboring tiles, from 0 to tile - 1.
      margin: width of the unused strip along each cut edge of a tile, at most half of the overlap. Over the
        rest of the overlap, one tile fades into the other.

    Attributes:
      places: position of every tile: ((y0, y1), (x0, x1)), with y1 and x1 excluded.

    Raises:
      InputError: for an overlap that is negative or not smaller than the tile.
    """

    def __init__(self, height: int, width: int, tile: int, overlap: int, margin: int = 0):
        check_tile(tile, overlap)
        self._size, self._margin = (height, width), margin
        self._rows, self._columns = spans(height, tile, overlap), spans(width, tile, overlap)
        self.places = [(row, column) for row in self._rows for column in self._columns]

    def join(
        self, parts: Sequence[Float[np.ndarray, "B T y x C"]], factor: int = 1
    ) -> tuple[Float32[np.ndarray, "B T H W C"], float]:
        """Joins the results of all tiles into one frame.

        Args:
          parts: result of every tile, `factor` times as large, (B, T, y, x, C), in the order of `places`.
          factor: pixels of a result per pixel of the frame, along each side.

        Returns:
          The joined frame, (B, T, H·factor, W·factor, C) float32, and how much the tiles differ where they
          fade into each other: the weighted mean of |part - joined|. With a margin this difference is taken
          as 0, because a margin is used only if the tiles agree.
        """
        high, wide = (factor * size for size in self._size)
        joined = np.zeros((*parts[0].shape[:2], high, wide, parts[0].shape[-1]), np.float32)
        weights = list(self._weights(factor))
        for part, (place, weight) in zip(parts, weights, strict=True):
            joined[:, :, *place] += weight * part
        if self._margin:
            return joined, 0.0
        difference = total = 0.0
        for part, (place, weight) in zip(parts, weights, strict=True):
            fading = (weight > 0) & (weight < 1)
            if fading.any():
                error = fading * weight * np.abs(part - joined[:, :, *place])
                difference += float(error.mean(axis=(0, 1, 4)).sum())
                total += float((fading * weight).sum())
        return joined, difference / total if total else 0.0

    def _weights(self, factor: int) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
        """Yields slices and weights (tile, tile, 1) for every tile; the weights of each pixel add up to 1."""
        rows, columns = (_fades(s, factor, self._margin) for s in (self._rows, self._columns))
        for (y0, y1), row in zip(self._rows, rows, strict=True):
            for (x0, x1), column in zip(self._columns, columns, strict=True):
                place = slice(y0 * factor, y1 * factor), slice(x0 * factor, x1 * factor)
                yield place, (row[:, None] * column)[..., None]


def decode_tiled(
    decode: Callable[[np.ndarray], np.ndarray],
    latents: Float[np.ndarray, "b t h w c"],
    tile: int,
    overlap: int,
    factor: int,
) -> Float32[np.ndarray, "B T H W C"]:
    """Decodes whole clips in blended tiles.

    Args:
      decode: function from latents (b, t, h', w', c) to float32 pixels (B, T, H', W', C).
      latents: latents of whole clips, (b, t, h, w, c).
      tile: side of a tile, latent pixels.
      overlap: overlap of neighboring tiles, latent pixels.
      factor: pixels per latent pixel along each side.

    Returns:
      Pixels, (B, T, h·factor, w·factor, C) float32.

    Raises:
      InputError: for an overlap that is negative or not smaller than the tile.
    """
    h, w = latents.shape[2:4]
    tiles = Tiles(h, w, tile, overlap)
    parts = [decode(latents[:, :, y0:y1, x0:x1]) for (y0, y1), (x0, x1) in tiles.places]
    return tiles.join(parts, factor)[0]


def check_tile(tile: int, overlap: int) -> None:
    """Raises InputError for an overlap that is negative or not smaller than the tile."""
    if not 0 <= overlap < tile:
        raise InputError(f"overlap = {overlap} latent pixels; accepted: 0 or more, below the tile of {tile}")


def spans(size: int, tile: int, overlap: int) -> list[Span]:
    """The fewest evenly placed spans of length `tile` that cover 0 to `size`, with at least this overlap."""
    if size <= tile:
        return [(0, size)]
    count = -(-(size - overlap) // (tile - overlap))
    starts = [round(i * (size - tile) / (count - 1)) for i in range(count)]
    return [(start, start + tile) for start in starts]


def _fades(tiles: list[Span], factor: int, margin: int) -> list[np.ndarray]:
    """Weights of each tile's pixels along one side; in an overlap one tile fades linearly into the next."""
    weights = []
    for i, (start, stop) in enumerate(tiles):
        weight = np.ones((stop - start) * factor, np.float32)
        if i:
            before = (tiles[i - 1][1] - start) * factor
            weight[:before] *= _ramp(before, margin * factor)
        if i + 1 < len(tiles):
            after = (stop - tiles[i + 1][0]) * factor
            weight[len(weight) - after :] *= _ramp(after, margin * factor)[::-1]
        weights.append(weight)
    total = np.zeros(tiles[-1][1] * factor, np.float32)
    for (start, stop), weight in zip(tiles, weights, strict=True):
        total[start * factor : stop * factor] += weight
    return [
        weight / total[start * factor : stop * factor]
        for (start, stop), weight in zip(tiles, weights, strict=True)
    ]


def _ramp(length: int, margin: int) -> np.ndarray:
    """Weights that rise from 0 to 1 over an overlap of `length`, and are constant in its two margins."""
    margin = min(margin, length // 2)
    inner = length - 2 * margin
    rising = (np.arange(length) + 0.5 - margin) / inner if inner else np.arange(length) >= margin
    return np.clip(rising, 0, 1).astype(np.float32)
