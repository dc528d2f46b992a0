"""Photos and clips with alpha: pictures that are cut out as discs, with arbitrary colors around them."""

import os
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

# Encoder of a clip with alpha -> its pixel format and options.
ENCODERS = {
    "qtrle": ("argb", {}),
    "png": ("rgba", {}),
    "prores_ks": ("yuva444p10le", {}),
    "libvpx-vp9": ("yuva420p", {"crf": "4", "b": "0"}),
    "libvpx": ("yuva420p", {"b": "9000000", "qmin": "0", "qmax": "4", "auto-alt-ref": "0"}),
}
_ACCURATE = Interpolation.LANCZOS | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


def disc(height: int, width: int, at=(0.5, 0.5), radius: float = 0.35) -> np.ndarray:
    """A disc with an edge of four pixels, (H, W) uint8; place and radius are shares of height and width."""
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - at[0] * height, x - at[1] * width)
    return np.round(255 * (np.clip(radius * min(height, width) - distance, -2, 2) / 4 + 0.5)).astype(np.uint8)


def cutout(height: int = 64, width: int = 96, seed: int = 0, shift: int = 0) -> np.ndarray:
    """A smooth random photo with a disc as its alpha, which `shift` moves to the right, (H, W, 4) uint8."""
    small = np.random.default_rng(seed).integers(256, size=(5, 7, 3), dtype=np.uint8)
    photo = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return np.dstack([photo, disc(height, width, (0.5, 0.4 + shift / width))])


def whitened(rgba: np.ndarray) -> np.ndarray:
    """The pictures with white where they are transparent."""
    return np.where(rgba[..., 3:] > 0, rgba, [255, 255, 255, 0]).astype(np.uint8)


def over(rgba: np.ndarray, background) -> np.ndarray:
    """The pictures, or pictures of floats, over a background, (..., 3) float64."""
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + np.asarray(background, float) * (1 - alpha)


def write_photos(folder, count: int, size: int = 48) -> None:
    """Writes photos with discs of random place and radius as 00.png, 01.png, ... into a folder."""
    rng = np.random.default_rng(1)
    for i in range(count):
        picture = cutout(size, size, seed=i)
        picture[..., 3] = disc(size, size, rng.uniform(0.3, 0.7, 2), rng.uniform(0.2, 0.4))
        Image.fromarray(picture).save(folder / f"{i:02}.png")


def write_clip(path, pictures, encoder: str, rate: int = 25, tags=(1, 1, 1), pix_fmt: str = ""):
    """Encodes pictures (H, W, 4); `tags` are the numbers of matrix, primaries and transfer curve."""
    usual, options = ENCODERS[encoder]
    pix_fmt = pix_fmt or usual
    with av.open(os.fspath(path), "w") as out:
        stream = out.add_stream(encoder, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.options = pix_fmt, dict(options)
        codec, reformatter = stream.codec_context, VideoReformatter()
        codec.colorspace, codec.color_primaries, codec.color_trc = tags
        matrix = {}
        if pix_fmt.startswith("yuv"):
            codec.color_range = 1
            # VP8 has no tags, so the matrix is the one that is assumed for small frames, BT.601.
            matrix = {"dst_colorspace": 5 if encoder == "libvpx" else tags[0], "dst_color_range": 1}
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgba")
            frame = reformatter.reformat(frame, format=pix_fmt, interpolation=_ACCURATE, **matrix)
            frame.color_primaries, frame.color_trc = tags[1:]
            frame.pts, frame.time_base = i, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path
