"""HEIC photos, which pillow-heif reads; without it they are refused, with an error that names it."""

import io
from collections.abc import Sequence
from typing import Any

from vaejax.data.crop import Unreadable
from vaejax.runtime.content import Content, opened

try:
    import pillow_heif  # pyright: ignore[reportMissingImports]
except ImportError:
    VERSION = ""
else:
    VERSION = pillow_heif.__version__
    # With thumbnails, reading a large photo at reduced size would return its thumbnail. One thread
    # decodes, because worker processes already use all cores.
    pillow_heif.register_heif_opener(thumbnails=False, decode_threads=1)

KNOWN = frozenset({".heic", ".heif", ".hif"})
EXTENSIONS = KNOWN if VERSION else frozenset()
INSTALL = "pip install 'vaejax[heic]'"
_BRANDS = {"heic", "heix", "heim", "heis"}


def refuse(brands: Sequence[str]) -> None:
    """Raises Unreadable if the brands of a file, from its ftyp box, are those of a HEIC photo.

    FFmpeg would read only one tile of it. Pillow alone cannot read it.
    """
    if not _BRANDS.isdisjoint(brands):
        accepted = "a name that ends in .heic" if VERSION else f"{INSTALL}, which reads it"
        raise Unreadable(f"a HEIC photo; accepted: {accepted}")


def brands(file: Content) -> list[str]:
    """The brands in the ftyp box of a file; [] if it does not begin with one."""
    with opened(file) as stream:
        head = stream.read(512)
    if head[4:8] != b"ftyp":
        return []
    return split_brands((head[8:12] + head[16 : int.from_bytes(head[:4], "big")]).decode("latin-1"))


def split_brands(text: str) -> list[str]:
    """Splits a text into brands of four characters each."""
    return [text[i : i + 4] for i in range(0, len(text), 4)]


def check_whole(stream: Any) -> None:
    """Raises Unreadable if a HEIC file ends within a box: libheif would fill in missing tiles.

    Args:
      stream: the open file, whose position is kept.
    """
    kept, place, end = stream.tell(), 0, stream.seek(0, io.SEEK_END)
    while place < end:
        stream.seek(place)
        head = stream.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:  # the size follows the name, with 64 bits
            size = int.from_bytes(head[8:], "big")
        if size == 0:  # the box extends to the end of the file
            size = end - place
        if size < 8 or place + size > end:
            raise Unreadable("the file ends early")
        place += size
    stream.seek(kept)


def color_codes(info: dict[str, Any]) -> tuple[int, int] | None:
    """The color primaries and transfer characteristics (H.273) of a photo; None if it has an ICC profile."""
    codes = info.get("nclx_profile")
    if not codes or info.get("icc_profile"):
        return None
    return codes["color_primaries"], codes["transfer_characteristics"]
