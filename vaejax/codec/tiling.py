"""Frames by tiles that overlap: for those too large for one device.

Where the network only convolves, tiles that overlap by twice its receptive field give what the whole frame
gives: of each only that part is used which sees nothing of its cut edges. Attention and group normalisation
see all of a frame; there tiles are blended, linearly, and differ from the whole.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from vaejax.errors import InputError
from vaejax.models.autoencoder import Architecture

Span = tuple[int, int]


def is_exact(architecture: Architecture) -> bool:
    """Whether a network sees a bounded part of a frame around every pixel."""
    return architecture.conv == "smc" and not architecture.attention


def encoder_reach(architecture: Architecture) -> int:
    """Latent pixels, on each side of one, whose pixels its encoding depends on."""
    reach = 1  # conv_out
    for strides in reversed((None, *architecture.strides)):
        reach += 2 * architecture.encoder_blocks
        reach = reach * strides[1] if strides else reach
    return math.ceil((reach + 1) * architecture.stem_factor / architecture.spatial_factor)


def decoder_reach(architecture: Architecture) -> int:
    """Latent pixels, on each side of its own, on which the decoding of a pixel depends."""
    reach = 1  # conv_out
    for strides in (None, *architecture.strides):
        reach = math.ceil(reach / strides[1]) if strides else reach
        reach += 2 * architecture.decoder_blocks
    return reach + 1


class Tiles:
    """Where the tiles of a frame lie, and how what they give becomes one again.

    The fewest square tiles of this size that overlap by at least as much as asked are spread evenly, so all
    have the same size and every pixel is covered.

    Args:
      height, width: of the frame.
      tile: side of a tile; a smaller side of the frame is taken whole.
      overlap: of neighbouring tiles, from 0 to tile - 1.
      margin: how much of a tile's cut edges is not used, at most half of the overlap; in the rest of the
        overlap one tile fades into the other.

    Attributes:
      places: ((y0, y1), (x0, x1)) of every tile.

    Raises:
      InputError: for an overlap that leaves no tile.
    """

    def __init__(self, height: int, width: int, tile: int, overlap: int, margin: int = 0):
        check_tile(tile, overlap)
        self._size, self._margin = (height, width), margin
        self._rows, self._columns = spans(height, tile, overlap), spans(width, tile, overlap)
        self.places = [(row, column) for row in self._rows for column in self._columns]

    def joined(self, parts: Sequence[np.ndarray], factor: int = 1) -> tuple[np.ndarray, float]:
        """What the tiles give as one.

        Args:
          parts: (B, T, tile·factor, tile·factor, C) of every place, in their order.
          factor: pixels of a part by one of the frame.

        Returns:
          (B, T, H·factor, W·factor, C) float32, and by how much tiles disagree where they fade into each
          other: the mean of |part - joined|, by their shares; 0 with a margin, for there they agree.
        """
        high, wide = (factor * size for size in self._size)
        out = np.zeros((*parts[0].shape[:2], high, wide, parts[0].shape[-1]), np.float32)
        shares = list(self._shares(factor))
        for part, (where, share) in zip(parts, shares, strict=True):
            out[:, :, *where] += share * part
        if self._margin:
            return out, 0.0
        apart = weight = 0.0
        for part, (where, share) in zip(parts, shares, strict=True):
            fading = (share > 0) & (share < 1)
            if fading.any():
                apart += float((fading * share * np.abs(part - out[:, :, *where])).mean(axis=(0, 1, 4)).sum())
                weight += float((fading * share).sum())
        return out, apart / weight if weight else 0.0

    def _shares(self, factor: int):
        """(slices, share (tile, tile, 1)) of every place; the shares at a pixel add up to 1."""
        for (y0, y1), row in zip(self._rows, _shares(self._rows, factor, self._margin), strict=True):
            for (x0, x1), column in zip(
                self._columns, _shares(self._columns, factor, self._margin), strict=True
            ):
                where = slice(y0 * factor, y1 * factor), slice(x0 * factor, x1 * factor)
                yield where, (row[:, None] * column)[..., None]


def decode_tiled(
    decode: Callable[[np.ndarray], np.ndarray],
    latents: np.ndarray,
    tile: int,
    overlap: int,
    factor: int,
) -> np.ndarray:
    """Decodes whole clips by tiles that are blended.

    Args:
      decode: latents (b, t, h', w', c) to float32 pixels (B, T, H', W', 3).
      latents: (b, t, h, w, c).
      tile: side of a tile in latent pixels.
      overlap: of tiles, in latent pixels.
      factor: pixels a latent pixel, each way.

    Returns:
      (B, T, h·factor, w·factor, 3) float32.

    Raises:
      InputError: for an overlap that leaves no tile.
    """
    tiles = Tiles(*latents.shape[2:4], tile, overlap)
    return tiles.joined([decode(latents[:, :, y0:y1, x0:x1]) for (y0, y1), (x0, x1) in tiles.places], factor)[
        0
    ]


def check_tile(tile: int, overlap: int) -> None:
    """Raises InputError for an overlap that leaves no tile."""
    if not 0 <= overlap < tile:
        raise InputError(
            f"tiles of {tile} latent pixels that overlap by {overlap}; accepted: an overlap from 0 to below"
            " the tile"
        )


def spans(size: int, tile: int, overlap: int) -> list[Span]:
    """The fewest spans of `tile` that cover 0 to size and overlap by at least `overlap`, evenly spread."""
    if size <= tile:
        return [(0, size)]
    count = -(-(size - overlap) // (tile - overlap))
    starts = [round(i * (size - tile) / (count - 1)) for i in range(count)]
    return [(start, start + tile) for start in starts]


def _shares(tiles: list[Span], factor: int, margin: int) -> list[np.ndarray]:
    """Of every tile's pixels along a side: 1, falling in a straight line where its neighbour's rises."""
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
    """From 0 to 1 over an overlap, its margins flat."""
    margin = min(margin, length // 2)
    inner = length - 2 * margin
    rising = (np.arange(length) + 0.5 - margin) / inner if inner else np.arange(length) >= margin
    return np.clip(rising, 0, 1).astype(np.float32)
