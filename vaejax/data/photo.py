"""Decodes photos to uint8 sRGB as a viewer shows them: upright, with their color profile applied.

Transparent pixels are blended over white, unless alpha is asked for.
"""

import io
import math
import os
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vaejax.data import alpha, color, heic
from vaejax.data.crop import Crop, Unreadable
from vaejax.data.jpeg_quality import jpeg_quality
from vaejax.runtime.content import Content, opened

EXTENSIONS = heic.EXTENSIONS | frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".avif",
        ".jp2",
        ".ppm",
    }
)

# Pillow warns of photos above 89 megapixels, but reads them. Above 179 megapixels it raises an error, and the
# photo counts as unreadable.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Pillow first shrinks by whole factors, to at least this many times the target size, and then resizes. This
# is faster and gives nearly the same result.
_REDUCING_GAP = 3.0
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_AVIF_HEADER = 2**16  # bytes of an AVIF file in which its colr box is searched


def _open(file: Content) -> Image.Image:
    try:
        photo: Any = Image.open(file if isinstance(file, str | os.PathLike) else opened(file))
    except Image.UnidentifiedImageError:
        heic.refuse(heic.brands(file))
        raise
    _note_codes(photo)
    return photo


def _note_codes(photo: Any) -> None:
    """Adds the color codes of an image file to its `info`; Pillow leaves them out."""
    readers = {"PNG": _png_codes, "AVIF": _avif_codes}
    if photo.format in readers:
        position = photo.fp.tell()
        photo.info["cicp"] = readers[photo.format](photo.fp)
        photo.fp.seek(position)
    if photo.format == "HEIF":
        heic.check_whole(photo.fp)
        photo.info["cicp"] = heic.color_codes(photo.info)


def _shown_size(photo: Image.Image, exif: Image.Exif) -> tuple[int, int]:
    """Width and height after the EXIF orientation is applied; for TIFF, Pillow has already applied it."""
    sideways = photo.format != "TIFF" and exif.get(_ORIENTATION, 1) in (5, 6, 7, 8)
    return (photo.height, photo.width) if sideways else photo.size


def read(file: Content, crop: Crop) -> np.ndarray:
    """Reads a crop of a photo as uint8 (H, W, C)."""
    with _open(file) as photo:
        shown = _shown_size(photo, photo.getexif())
        left, top, right, bottom = crop.box(shown)
        # A JPEG much larger than the crop is decoded at 1/2, 1/4 or 1/8 of its size: several times faster.
        scale = _REDUCING_GAP * max(crop.width / (right - left), crop.height / (bottom - top))
        if scale < 1:
            photo.draft(None, (math.ceil(photo.width * scale), math.ceil(photo.height * scale)))
        return _resize(_decoded(photo, crop.channels), shown, crop)


def read_whole(file: Content, channels: int = 3) -> np.ndarray:
    """Reads a whole photo at its own size as uint8 (H, W, C); C is 3 or 4, see media.read."""
    with _open(file) as photo:
        return _pixels(_decoded(photo, channels))


def read_image(image: Image.Image, channels: int = 3) -> np.ndarray:
    """Converts an open or in-memory image to uint8 (H, W, C), as `read_whole` does for a file."""
    if getattr(image, "fp", None):  # not yet loaded
        _note_codes(image)
    return _pixels(_decoded(image, channels))


def pictures(file: Content) -> int:
    """Counts the pictures of a file; previews that a camera appends to a JPEG (MPO) do not count."""
    with _open(file) as photo:
        return 1 if photo.format == "MPO" else getattr(photo, "n_frames", 1)


def _decoded(photo: Image.Image, channels: int) -> Image.Image:
    """Decodes the first picture of a file to upright sRGB, in Pillow's mode RGB or, for 4 channels, RGBA.

    Without alpha, transparent pixels are blended over white, as viewers do; the color stored for them is
    arbitrary.
    """
    if photo.format == "TIFF":
        _check_samples(photo)
    conversion = _tagged_conversion(photo)
    profile = photo.info.get("icc_profile") if conversion is None else None
    inverted = photo.format == "TIFF" and photo.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # type: ignore[attr-defined]
    photo.load()
    if photo.getexif().get(_ORIENTATION, 1) != 1:
        photo = ImageOps.exif_transpose(photo)  # which would copy any photo
    if photo.mode.startswith("I"):  # 16-bit grayscale, which Pillow's own conversion would clip at 255
        photo = _eight_bits(photo, inverted)
    elif photo.mode == "F":
        raise Unreadable("floating-point pixels, whose range is unknown; accepted: integer pixels")
    opacity = None
    if photo.has_transparency_data:
        opacity = photo.convert("RGBA").getchannel("A")
    photo = _srgb(photo, profile, conversion)
    if opacity is None and channels == 3:
        return photo
    photo = Image.merge("RGBA", (*photo.split(), opacity or Image.new("L", photo.size, alpha.OPAQUE)))
    if channels == 4:
        return photo
    return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")


def _pixels(photo: Image.Image) -> np.ndarray:
    """The pixels of a picture that `_decoded` returns."""
    pixels = np.asarray(photo)
    return alpha.whitened(pixels) if photo.mode == "RGBA" else pixels


def _srgb(photo: Image.Image, profile: bytes | None, conversion: color.Conversion | None) -> Image.Image:
    """Converts a picture without its transparency to sRGB."""
    if photo.mode in ("1", "L", "LA", "La"):
        photo = photo.convert("L")
    elif photo.mode not in ("CMYK", "LAB"):
        photo = _in_rgb(photo)
    if conversion is not None:
        return Image.fromarray(conversion(np.asarray(_in_rgb(photo))))
    transform = color.icc_transform(profile, photo.mode) if profile else None
    if transform is None and profile and photo.mode == "L":  # some gray photos carry an RGB profile
        transform = color.icc_transform(profile, "RGB")
        photo = photo.convert("RGB") if transform else photo
    if transform is not None:
        return transform.apply(photo)
    if photo.mode == "LAB":
        return color.lab_transform().apply(photo)
    return _in_rgb(photo)


def _in_rgb(photo: Image.Image) -> Image.Image:
    """The picture in Pillow's mode RGB, without the copy that Pillow makes of one that has this mode."""
    return photo if photo.mode == "RGB" else photo.convert("RGB")


def _tagged_conversion(photo: Image.Image) -> color.Conversion | None:
    """The conversion by H.273 codes, or by gAMA and cHRM for a PNG without codes, profile or sRGB chunk."""
    codes = photo.info.get("cicp")
    if codes is not None:
        return color.code_conversion(*codes)
    if photo.format != "PNG":
        return None
    if "icc_profile" in photo.info or "srgb" in photo.info or "gamma" not in photo.info:
        return None
    return color.gamma_conversion(photo.info["gamma"], photo.info.get("chromaticity"))


def _png_codes(file) -> tuple[int, int] | None:
    """The color primaries and transfer characteristics in the cICP chunk of a PNG, or None."""
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"cICP" and length == 4:
            primaries, transfer, _, _ = file.read(4)
            return primaries, transfer
        file.seek(length + 4, io.SEEK_CUR)
    return None


def _avif_codes(file) -> tuple[int, int] | None:
    """The color primaries and transfer characteristics in the colr box of an AVIF file, or None."""
    file.seek(0)
    _, found, codes = file.read(_AVIF_HEADER).partition(b"colrnclx")
    return (int.from_bytes(codes[:2], "big"), int.from_bytes(codes[2:4], "big")) if found else None


# Tags of TIFF.
_BITS, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 262, 284, 339
_WHITE_IS_ZERO, _SEPARATE, _UNSIGNED, _UNDEFINED = 0, 2, 1, 4


def _check_samples(photo: Image.Image) -> None:
    """Raises Unreadable for a TIFF whose samples Pillow would scramble or clip."""
    tags: Any = photo.tag_v2  # type: ignore[attr-defined]
    bits, formats = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))
    if any(kind not in (_UNSIGNED, _UNDEFINED) for kind in formats):
        names = {2: "signed", 3: "floating-point"}
        kind = next(names.get(kind, "complex") for kind in formats if kind not in (_UNSIGNED, _UNDEFINED))
        raise Unreadable(f"{kind} samples; accepted: unsigned samples of 1 to 16 bits")
    if max(bits) > 16:
        raise Unreadable(f"{max(bits)}-bit samples; accepted: unsigned samples of 1 to 16 bits")
    if max(bits) > 8 and len(bits) > 1 and tags.get(_PLANES, 1) == _SEPARATE:
        raise Unreadable(
            f"{max(bits)}-bit samples in separate planes; accepted: interleaved samples, or 8 bits"
        )


def _eight_bits(photo: Image.Image, inverted: bool) -> Image.Image:
    """Converts 16-bit grayscale to 8 bits. `inverted`: 0 is white; Pillow does not undo this at 16 bits."""
    values = np.asarray(photo)
    if values.min() < 0 or values.max() > 65535:
        raise Unreadable(f"gray values from {values.min()} to {values.max()}; accepted: 0 to 65535")
    levels = np.round(values / 257).astype(np.uint8)
    return Image.fromarray(255 - levels if inverted else levels)


def probe(file: Content, decode: bool = True) -> dict:
    """Decodes a whole photo, or reads its header; returns media.probe without 'bits_per_pixel'."""
    with _open(file) as photo:
        codec, tables = (photo.format or "").lower(), getattr(photo, "quantization", None)
        # Of a PNG, getexif decodes the pixels, in case its EXIF data come after them.
        exif = photo.getexif() if decode else Image.Image.getexif(photo)
        turns = 0 if photo.format == "TIFF" else exif.get(_ORIENTATION, 1)
        turns = photo.info.get("original_orientation") or turns  # pillow-heif has already turned the photo
        codes = photo.info.get("cicp")
        hdr = codes is not None and codes[1] in (color.PQ, color.HLG)
        width, height = _decoded(photo, channels=3).size if decode else _shown_size(photo, exif)
    return {
        "width": width,
        "height": height,
        "frames": 1,
        "fps": None,
        "duration": 0.0,
        "rotation": {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}.get(turns, 0),
        "codec": codec,
        "quality": jpeg_quality(tables) if tables else None,
        "hdr": hdr,
        "cuts": None,
    }


def _resize(image: Image.Image, shown: tuple[float, float], crop: Crop) -> np.ndarray:
    """Crops and resizes a picture to uint8 (H, W, C).

    The crop refers to the size `shown`, (width, height). `image` is smaller if a JPEG was decoded at a
    fraction of its size.
    """
    x, y = image.width / shown[0], image.height / shown[1]
    left, top, right, bottom = crop.box(shown)
    box = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
    size = (crop.width, crop.height)
    if image.mode == "RGBA":
        return alpha.resized(np.asarray(image), size, box, _REDUCING_GAP)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box, reducing_gap=_REDUCING_GAP))
