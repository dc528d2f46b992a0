"""Decodes photos to uint8 RGB as a viewer shows them: upright and opaque."""

import io
import math
import os
import warnings

import numpy as np
from PIL import Image, ImageOps

from vaejax.data.crop import Crop, Unreadable
from vaejax.data.jpeg_quality import jpeg_quality

EXTENSIONS = frozenset(
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


def _open(file: str | os.PathLike | bytes) -> Image.Image:
    return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)


def _shown_size(photo: Image.Image) -> tuple[int, int]:
    """Width and height after the EXIF orientation is applied; for TIFF, Pillow has already applied it."""
    sideways = photo.format != "TIFF" and photo.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (photo.height, photo.width) if sideways else photo.size


def read(file: str | os.PathLike | bytes, crop: Crop) -> np.ndarray:
    """Reads a crop of a photo as uint8 RGB (H, W, 3)."""
    with _open(file) as photo:
        shown = _shown_size(photo)
        left, top, right, bottom = crop.box(shown)
        # A JPEG much larger than the crop is decoded at 1/2, 1/4 or 1/8 of its size: several times faster.
        scale = _REDUCING_GAP * max(crop.width / (right - left), crop.height / (bottom - top))
        if scale < 1:
            photo.draft(None, (math.ceil(photo.width * scale), math.ceil(photo.height * scale)))
        return _resize(_rgb(photo), shown, crop)


def read_whole(file: str | os.PathLike | bytes) -> np.ndarray:
    """Reads a whole photo at its own size as uint8 RGB (H, W, 3)."""
    with _open(file) as photo:
        return np.asarray(_rgb(photo))


def pictures(file: str | os.PathLike | bytes) -> int:
    """Counts the pictures of a file; previews that a camera appends to a JPEG (MPO) do not count."""
    with _open(file) as photo:
        return 1 if photo.format == "MPO" else getattr(photo, "n_frames", 1)


def _rgb(photo: Image.Image) -> Image.Image:
    """Decodes the first picture of a file to upright RGB.

    Transparent pixels are blended over white, as viewers do; the color stored for them is arbitrary.
    """
    photo.load()
    photo = ImageOps.exif_transpose(photo)
    if photo.mode.startswith("I"):  # 16-bit grayscale, which Pillow's own conversion would clip at 255
        values = np.asarray(photo)
        if values.min() < 0 or values.max() > 65535:
            raise Unreadable(f"gray values from {values.min()} to {values.max()}; accepted: 0 to 65535")
        photo = Image.fromarray(np.round(values / 257).astype(np.uint8))
    elif photo.mode == "F":
        raise Unreadable("floating-point pixels, whose range is unknown; accepted: integer pixels")
    elif photo.has_transparency_data:
        photo = photo.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    return photo.convert("RGB")


def probe(file: str | os.PathLike | bytes) -> dict:
    """Decodes a whole photo; returns the result of media.probe without 'bits_per_pixel'."""
    with _open(file) as photo:
        codec, tables = (photo.format or "").lower(), getattr(photo, "quantization", None)
        turns = 0 if photo.format == "TIFF" else photo.getexif().get(0x0112, 1)
        width, height = _rgb(photo).size
    return {
        "width": width,
        "height": height,
        "frames": 1,
        "fps": None,
        "duration": 0.0,
        "rotation": {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}.get(turns, 0),
        "codec": codec,
        "quality": jpeg_quality(tables) if tables else None,
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
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box, reducing_gap=_REDUCING_GAP))
