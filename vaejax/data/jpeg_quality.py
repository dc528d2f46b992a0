"""The compression quality of a JPEG, estimated from its quantization tables.

Strongly compressed photos make the VAE spend latent channels on blocking and ringing artifacts. The setting
`data.min_quality` excludes such photos.
"""

from collections.abc import Mapping, Sequence

import numpy as np

# The tables of ITU-T T.81 annex K (row by row), which libjpeg scales by its quality setting.
_LUMINANCE = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 "
    "95 98 112 100 103 99"
)
_CHROMINANCE = (
    "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99 "
    + "99 " * 32
)


def _scaled_tables() -> np.ndarray:
    """The tables (luminance, chrominance) at quality 1 to 100, sorted along the last axis: (100, 2, 64)."""
    standard = np.array([_LUMINANCE.split(), _CHROMINANCE.split()], int)
    at = np.arange(1, 101)
    percent = np.where(at < 50, 5000 // at, 200 - 2 * at)
    return np.sort(np.clip((standard * percent[:, None, None] + 50) // 100, 1, 255), axis=-1)


_SCALED = _scaled_tables()


def jpeg_quality(tables: Mapping[int, Sequence[int]]) -> int:
    """Estimates the libjpeg (IJG) quality setting whose quantization tables are nearest to a file's.

    Entries are compared in sorted order, so row-major and zigzag tables give the same result. The distance is
    logarithmic: 1 to 2 is as far as 50 to 100.

    Args:
      tables: up to four tables of 64 entries, as in Pillow's `JpegImageFile.quantization`: luminance first,
        then chrominance if present.

    Returns:
      The quality, from 1 (worst) to 100.
    """
    given = np.sort([list(tables[key]) for key in sorted(tables)][:2], axis=-1)
    distance = np.abs(np.log(_SCALED[:, : len(given)]) - np.log(np.maximum(given, 1))).mean(axis=(1, 2))
    return 1 + int(np.argmin(distance))
