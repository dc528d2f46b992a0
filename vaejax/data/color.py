"""Converts colors to sRGB (photos) or BT.709 (clips), as a viewer or a player shows them.

ICC profiles go through littleCMS. Color spaces given by code points (ITU-T H.273) or by PNG's gAMA and cHRM
chunks go through tables and one matrix: decode to linear light, change the primaries, encode.

HDR becomes SDR in one way: 203 nits, the reference white of ITU-R BT.2408, become white. The shoulder
`compress` makes room for brighter values, up to 1000 nits. HLG gets the OOTF of BT.2100 for a display of 1000
nits, applied to each channel, as FFmpeg's zscale does.
"""

import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageCms

WHITE, PEAK = 203.0, 1000.0  # nits
_KNEE = 0.9  # the linear value, relative to white, above which HDR values are compressed

# H.273 ColourPrimaries -> (x, y) of white, red, green and blue.
_D65 = (0.3127, 0.3290)
_BT709 = (_D65, (0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_PRIMARIES = {
    1: _BT709,
    4: ((0.310, 0.316), (0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: (_D65, (0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    7: (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    8: ((0.310, 0.316), (0.681, 0.319), (0.243, 0.692), (0.145, 0.049)),
    9: (_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.314, 0.351), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: (_D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: (_D65, (0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
PQ, HLG = 16, 18  # H.273 TransferCharacteristics of HDR
_WIDE = {9, 11, 12}  # primaries that a clip is converted from; players treat all others as BT.709

Transfer = Callable[[np.ndarray], np.ndarray]


def _srgb_decode(v: np.ndarray) -> np.ndarray:
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def _srgb_encode(x: np.ndarray) -> np.ndarray:
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)


def _pq_decode(v: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084, relative to `WHITE`."""
    m, n, c1, c2, c3 = 2523 / 32, 1305 / 8192, 107 / 128, 2413 / 128, 2392 / 128
    p = v ** (1 / m)
    return 10_000 / WHITE * (np.maximum(p - c1, 0) / (c2 - c3 * p)) ** (1 / n)


def _hlg_decode(v: np.ndarray) -> np.ndarray:
    """ARIB STD-B67 with the per-channel OOTF for `PEAK` (gamma 1.2), relative to `WHITE`."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(v <= 0.5, v**2 / 3, (np.exp((v - c) / a) + b) / 12)
    return PEAK / WHITE * scene**1.2


def _power(gamma: float) -> Transfer:
    return lambda v: v**gamma


# H.273 TransferCharacteristics -> decoder.
_DECODERS = {
    4: _power(2.2),
    5: _power(2.8),
    8: _power(1.0),
    13: _srgb_decode,
    PQ: _pq_decode,
    HLG: _hlg_decode,
}
_DISPLAY = _power(2.4)  # BT.1886, by which displays decode SDR video


def compress(x: np.ndarray) -> np.ndarray:
    """Compresses linear values from [0, PEAK / WHITE] to [0, 1]; values up to 0.9 stay as they are.

    Larger values follow an extended Reinhard curve that begins with slope 1 and ends at 1.
    """
    t, end = (x - _KNEE) / (1 - _KNEE), (PEAK / WHITE - _KNEE) / (1 - _KNEE)
    t = np.clip(t, 0, end)
    return np.where(x <= _KNEE, x, _KNEE + (1 - _KNEE) * t * (1 + t / end**2) / (1 + t))


def _to_xyz(primaries: Sequence[tuple[float, float]]) -> np.ndarray:
    """The matrix from linear RGB to XYZ, adapted from the white of the primaries to D65 (Bradford)."""

    def xyz(point: tuple[float, float]) -> np.ndarray:
        x, y = point
        return np.array([x / y, 1.0, (1 - x - y) / y])

    white, *colors = primaries
    columns = np.stack([xyz(color) for color in colors], axis=1)
    matrix = columns * np.linalg.solve(columns, xyz(white))
    gains = (_BRADFORD @ xyz(_D65)) / (_BRADFORD @ xyz(white))
    return np.linalg.solve(_BRADFORD, gains[:, None] * (_BRADFORD @ matrix))


class Conversion:
    """Converts RGB (..., 3) of uint8, or of swscale's uint16, to uint8.

    Args:
      decode: function from values in [0, 1] to linear light, 1 for white.
      primaries: (x, y) of white, red, green and blue.
      encode: function from linear light in [0, 1] to values in [0, 1].
      white: the input value of white: 255 for uint8; 255 * 256 for the uint16 that swscale makes from YUV.
      hdr: whether to compress linear values above white.
    """

    def __init__(
        self,
        decode: Transfer,
        primaries: Sequence[tuple[float, float]],
        encode: Transfer,
        white: int = 255,
        hdr: bool = False,
    ):
        values = np.minimum(np.arange(256 if white == 255 else 2**16) / white, 1)
        self._decoded = decode(values).astype(np.float32)
        self._matrix = np.linalg.solve(_to_xyz(_BT709), _to_xyz(primaries)).T.astype(np.float32)
        self._top = PEAK / WHITE if hdr else 1.0
        # The table is indexed by the square root of linear values, which keeps dark values apart.
        linear = self._top * (np.arange(2**16) / (2**16 - 1)) ** 2
        encoded = encode(np.clip(compress(linear) if hdr else linear, 0, 1))
        self._encoded = np.round(255 * encoded).astype(np.uint8)

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """Returns uint8 of the same shape."""
        linear = np.clip(self._decoded[rgb] @ self._matrix, 0, self._top)
        return self._encoded[np.round(np.sqrt(linear / self._top) * (2**16 - 1)).astype(np.uint16)]


@functools.cache
def clip_conversion(primaries: int, transfer: int) -> Conversion | None:
    """The conversion of a clip's uint16 RGB to BT.709 by its H.273 codes; None if it is not needed."""
    hdr = transfer in (PQ, HLG)
    if not hdr and primaries not in _WIDE:
        return None
    if hdr and primaries not in _PRIMARIES:
        primaries = 9  # untagged: all HDR systems have BT.2020
    decode = _DECODERS[transfer] if hdr else _DISPLAY
    return Conversion(decode, _PRIMARIES[primaries], _power(1 / 2.4), 255 * 256, hdr)


@functools.cache
def code_conversion(primaries: int, transfer: int) -> Conversion | None:
    """The conversion of a photo's uint8 RGB to sRGB by its H.273 codes; None if it is sRGB, or unknown.

    Viewers take the SDR curves of video for that of sRGB.
    """
    decode = _DECODERS.get(transfer, _srgb_decode)
    if primaries not in _PRIMARIES or (primaries == 1 and decode is _srgb_decode):
        return None
    return Conversion(decode, _PRIMARIES[primaries], _srgb_encode, hdr=transfer in (PQ, HLG))


@functools.lru_cache(64)
def gamma_conversion(gamma: float, chromaticities: tuple[float, ...] | None) -> Conversion | None:
    """The conversion of uint8 RGB by PNG's gAMA (such as 0.45455) and cHRM (white, red, green, blue: x, y).

    None if a number is impossible, such as a gamma of 0.
    """
    numbers = chromaticities or tuple(np.ravel(_BT709))
    primaries = list(zip(numbers[::2], numbers[1::2], strict=True))
    if not 0.01 <= gamma <= 10 or any(y <= 0 for _, y in primaries):
        return None
    try:
        return Conversion(_power(1 / gamma), primaries, _srgb_encode)
    except np.linalg.LinAlgError:
        return None


# ICC profiles -----------------------------------------------------------------------------------------------


@functools.lru_cache(64)
def icc_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform of a photo in Pillow's `mode` to sRGB, mode 'RGB'.

    None if the profile is sRGB up to rounding, or if viewers ignore it because it is damaged or for another
    color mode.
    """
    space = {"L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}.get(mode, "RGB ")
    try:
        source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != space.strip():
            return None
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        transform = ImageCms.buildTransform(source, _srgb_profile(), mode, "RGB", intent)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode == "RGB":
        levels = np.linspace(0, 255, 18).round()
        cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).astype(np.uint8).reshape(18, -1, 3)
        shown = ImageCms.applyTransform(Image.fromarray(cube), transform)
        if np.abs(np.asarray(shown).astype(int) - cube).max() <= 1:
            return None
    return transform


@functools.cache
def lab_transform() -> ImageCms.ImageCmsTransform:
    """The transform of a CIELAB photo without a profile to sRGB."""
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), _srgb_profile(), "LAB", "RGB")


@functools.cache
def _srgb_profile() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@functools.cache
def srgb_icc() -> bytes:
    """An sRGB profile, the same bytes each time: littleCMS writes the time of day into its header."""
    profile = bytearray(_srgb_profile().tobytes())
    profile[24:36] = bytes(12)  # date and time
    profile[84:100] = bytes(16)  # the checksum
    return bytes(profile)
