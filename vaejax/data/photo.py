"""Photos as uint8 frames, what a viewer would show: upright, opaque, RGB."""

import io
import math
import warnings

import numpy as np
from PIL import Image, ImageOps

from vaejax.data import jpeg_quality as quality
from vaejax.data.crop import Cut, Unreadable

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

# Photos above 89 megapixels are legitimate here; above 179 Pillow refuses and they count as unreadable.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_REDUCING_GAP = 3.0  # shrink by whole factors first, to 3x the target: fast, and hardly different


def _open(source) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _shown_size(photo: Image.Image) -> tuple[int, int]:
    """Width and height after the EXIF orientation (which Pillow applies to TIFF by itself)."""
    sideways = photo.format != "TIFF" and photo.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return photo.size[::-1] if sideways else photo.size


def read(source, cut: Cut) -> np.ndarray:
    """Reads a photo, uint8 (H, W, 3)."""
    with _open(source) as photo:
        shown = _shown_size(photo)
        left, top, right, bottom = cut.box(shown)
        # A JPEG much larger than needed decodes at 1/2, 1/4 or 1/8 size, several times faster.
        scale = _REDUCING_GAP * max(cut.width / (right - left), cut.height / (bottom - top))
        if scale < 1:
            photo.draft(None, tuple(math.ceil(side * scale) for side in photo.size))
        return _resize(_rgb(photo), shown, cut)


def whole(source) -> np.ndarray:
    """Reads a photo at its own size, uint8 (H, W, 3)."""
    with _open(source) as photo:
        return np.asarray(_rgb(photo))


def pictures(source) -> int:
    """Counts the pictures of a file; what a camera puts behind a JPEG (MPO) is no other picture."""
    with _open(source) as photo:
        return 1 if photo.format == "MPO" else getattr(photo, "n_frames", 1)


def _rgb(photo: Image.Image) -> Image.Image:
    """Decodes the first picture of a file to RGB, upright.

    Transparency is laid over white, as a page or a photo viewer shows it: what lies under it is arbitrary.
    """
    photo.load()
    photo = ImageOps.exif_transpose(photo)
    if photo.mode.startswith("I"):  # Pillow's own conversion clips 16 bits to 255
        values = np.asarray(photo)
        if values.min() < 0 or values.max() > 65535:
            raise Unreadable(f"pixels of {values.min()} to {values.max()} have no known range")
        photo = Image.fromarray(np.round(values / 257).astype(np.uint8))
    elif photo.mode == "F":
        raise Unreadable("floating-point pixels have no known range")
    elif photo.has_transparency_data:
        photo = photo.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    return photo.convert("RGB")


def probe(source) -> dict:
    """Decodes a photo and says what is in it; see media.probe."""
    with _open(source) as photo:
        codec, tables = photo.format.lower(), getattr(photo, "quantization", None)
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
        "quality": quality.jpeg_quality(tables) if tables else None,
    }


def _resize(image: Image.Image, shown: tuple[float, float], cut: Cut) -> np.ndarray:
    """Crops and resizes in one resampling; `image` may have other (not square) pixels than `shown`."""
    x, y = image.width / shown[0], image.height / shown[1]
    left, top, right, bottom = cut.box(shown)
    box = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
    size = (cut.width, cut.height)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box, reducing_gap=_REDUCING_GAP))
