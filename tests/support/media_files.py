"""Photos and clips of known content: drawn pictures, converted to YUV by formula."""

import os
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
from PIL import Image

CORNERS = ((180, 40, 40), (40, 160, 60), (50, 60, 180), (200, 180, 60))  # top left, top right, bottom ...
KR_KB = {"601": (0.299, 0.114), "709": (0.2126, 0.0722)}
AV_MATRIX = {"709": 1, "601": 6, None: 2}
AV_RANGE = {"limited": 1, "full": 2, None: 0}


def corners(height: int = 64, width: int = 96) -> np.ndarray:
    """Four quadrants of known colors, (H, W, 3)."""
    out = np.zeros((height, width, 3), np.uint8)
    for i, color in enumerate(CORNERS):
        rows = slice(0, height // 2) if i < 2 else slice(height // 2, None)
        out[rows, slice(0, width // 2) if i % 2 == 0 else slice(width // 2, None)] = color
    return out


def write_photos(folder, count: int, size: int = 48) -> None:
    """Writes smooth random photos 00.png, 01.png, ... into a folder."""
    rng = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(rng.integers(256, size=(6, 6, 3), dtype=np.uint8))
        small.resize((size, size), Image.BICUBIC).save(folder / f"{i:02}.png")


def tag_png_as_hdr(path) -> None:
    """Adds a chunk to a PNG by which it is BT.2020 with PQ."""
    data, body = path.read_bytes(), b"cICP" + bytes([9, 16, 0, 1])
    chunk = struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(data[:33] + chunk + data[33:])  # behind the header


def corner_colors(picture: np.ndarray) -> np.ndarray:
    """The color at the center of each quadrant, (4, 3)."""
    h, w = picture.shape[:2]
    return np.array([picture[y, x] for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)], int)


def numbered(number: int) -> np.ndarray:
    """A 64x96 picture whose lower half shows a number as 8 bars, white for 1."""
    out = corners()
    for bit in range(8):
        out[32:, 12 * bit : 12 * bit + 12] = 225 if number >> bit & 1 else 25
    return out


def number_of(picture: np.ndarray) -> int:
    """The number in a picture drawn by `numbered`, at any size."""
    h, w = picture.shape[:2]
    bars = [picture[3 * h // 4, int((bit + 0.5) * w / 8)].mean() > 125 for bit in range(8)]
    return sum(int(on) << bit for bit, on in enumerate(bars))


def to_yuv(rgb: np.ndarray, matrix: str, span: str, bits: int = 8, halved: bool = True) -> list[np.ndarray]:
    """Y, Cb, Cr planes of 4:2:0 (or 4:4:4), by the formulas of BT.601 and BT.709."""
    kr, kb = KR_KB[matrix]
    r, g, b = np.moveaxis(rgb / 255.0, -1, 0)
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    top, step = 2**bits - 1, 2 ** (bits - 8)
    scale = [(top, 0), (top, 128 * step), (top, 128 * step)]
    if span == "limited":
        scale = [(219 * step, 16 * step), (224 * step, 128 * step), (224 * step, 128 * step)]
    planes = [plane * gain + shift for plane, (gain, shift) in zip((y, cb, cr), scale, strict=True)]
    h, w = y.shape
    if halved:
        planes[1:] = [plane.reshape(h // 2, 2, w // 2, 2).mean((1, 3)) for plane in planes[1:]]
    return [np.clip(np.round(plane), 0, top).astype(np.uint16 if bits > 8 else np.uint8) for plane in planes]


def write_clip(
    path,
    pictures,
    rate=25,
    *,
    codec="libx264",
    times=None,
    tick=None,
    matrix=None,
    span=None,
    drawn=None,
    bits=8,
    ratio=None,
    interlaced=False,
    audio=False,
    options=None,
    title=None,
    movflags=None,
):
    """Encodes pictures (H, W, 3) as 4:2:0, or 4:4:4 if H or W is odd; without pictures, only audio.

    `times` are the frames' timestamps in units of `tick` seconds; by default a frame lasts 1 / rate. `matrix`
    and `span` are the color tags written, None for none. `drawn` is the (matrix, span) of the pixels if it
    differs from the tags.
    """
    used = drawn or (matrix or "601", span or "limited")
    height, width = pictures[0].shape[:2] if pictures else (0, 0)
    with av.open(os.fspath(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        if title:
            container.metadata["title"] = title
        if audio:
            sound = container.add_stream("aac", rate=16000, layout="mono")
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
            silence.sample_rate = 16000
        if pictures:
            stream = container.add_stream(codec, rate=Fraction(rate))
            stream.width, stream.height = width, height
            stream.pix_fmt = f"yuv4{'44' if width % 2 or height % 2 else '20'}p{'10le' if bits == 10 else ''}"
            stream.options = dict(options or {})
            if codec == "libx264":
                stream.options = {"crf": "4", "g": "12", "x264-params": f"tff={interlaced:d}"} | (
                    options or {}
                )
            if codec == "libx265":
                stream.options = {"x265-params": "log-level=none:crf=4"}
            stream.codec_context.time_base = tick or 1 / Fraction(rate)
            if ratio:
                stream.codec_context.sample_aspect_ratio = ratio
            stream.codec_context.colorspace = AV_MATRIX[matrix]
            stream.codec_context.color_range = AV_RANGE[span]
        if audio:
            for packet in sound.encode(silence) + sound.encode():
                container.mux(packet)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame(width, height, stream.pix_fmt)
            halved = "420" in stream.pix_fmt
            for plane, values in zip(frame.planes, to_yuv(picture, *used, bits, halved), strict=True):
                rows = np.zeros((plane.height, plane.line_size), np.uint8)
                coded = np.ascontiguousarray(values).view(np.uint8)
                rows[:, : coded.shape[1]] = coded
                plane.update(rows)
            frame.colorspace, frame.color_range = AV_MATRIX[matrix], AV_RANGE[span]
            frame.time_base = tick or 1 / Fraction(rate)
            frame.pts = int(times[i]) if times else i
            for packet in stream.encode(frame):
                container.mux(packet)
        if pictures:
            for packet in stream.encode():
                container.mux(packet)
    return path


def turn(path, a: int, b: int, c: int, d: int) -> None:
    """Overwrites the display matrix of an mp4's track: x' = a x + c y, y' = b x + d y."""
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        tkhd = data.find(b"tkhd")
        at = tkhd + 8 + (36 if data[tkhd + 4] == 0 else 48)
        struct.pack_into(">9i", data, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
        file.seek(0)
        file.write(data)


def replace_bytes(path, old: bytes, new: bytes) -> None:
    """Replaces bytes in a file."""
    with open(path, "rb") as file:
        data = file.read()
    assert old in data
    with open(path, "wb") as file:
        file.write(data.replace(old, new))


def keep(path, share: float) -> None:
    """Truncates a file to a share of its bytes."""
    os.truncate(path, int(os.path.getsize(path) * share))


UNREADABLE = {"audio_only.mp4", "empty.mp4", "text.mp4", "truncated.jpg", "truncated.mp4"}


def make(folder) -> dict[str, str]:
    """Fills a folder with unusual and broken files; returns {name: path}."""
    os.makedirs(folder, exist_ok=True)
    _make_photos(folder)
    _make_clips(folder)
    return {name: os.path.join(folder, name) for name in sorted(os.listdir(folder))}


def _make_photos(folder) -> None:
    def save(pixels, name, **options):
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(os.path.join(folder, name), **options)

    picture, ramp = corners(), np.tile(np.linspace(0, 1, 96), (64, 1))
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    opaque = np.full((64, 96, 1), 255, np.uint8)
    opaque[:32, :48] = 0  # the top left corner is transparent
    save(np.concatenate([picture, opaque], -1), "alpha.png")
    save(Image.fromarray(picture).convert("CMYK"), "cmyk.jpg", quality=95, subsampling=0)
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed rotated by 90 degrees clockwise
    save(picture, "exif_rotated.jpg", quality=95, subsampling=0, exif=exif)
    save((255 * ramp).astype(np.uint8), "grey.png")
    save((65535 * ramp).astype(np.uint16), "grey16.png")
    save(Image.fromarray(picture).quantize(8), "palette.png", transparency=None)
    save(picture, "photo.webp", lossless=True)
    save(picture, "quality_5.jpg", quality=5)
    save(corners(12, 20), "tiny_20x12.jpg", quality=95, subsampling=0)
    save(noise, "truncated.jpg", quality=95)
    keep(os.path.join(folder, "truncated.jpg"), 0.6)


def _make_clips(folder) -> None:
    def clip(name, pictures, *arguments, **options):
        return write_clip(os.path.join(folder, name), pictures, *arguments, **options)

    numbers = [numbered(i) for i in range(50)]
    clip("with_audio.mp4", numbers, audio=True)
    clip("audio_only.mp4", [], audio=True)
    clip("one_frame.mp4", numbers[:1])
    clip("three_frames.mp4", numbers[:3])
    clip("ten_bit_23976.mp4", numbers, Fraction(24000, 1001), codec="libx265", bits=10)
    clip("non_square_pixels.mp4", numbers, ratio=Fraction(4, 3))
    times = list(np.cumsum([0, *(40, 40, 120, 20, 200) * 5]))
    clip("variable_rate.mp4", numbers[: len(times)], times=times, tick=Fraction(1, 1000))
    turn(
        clip("rotated_90.mp4", [corners()] * 10), 0, 1, -1, 0
    )  # as written by a phone held upright: clockwise
    clip("odd_size_51x35.mp4", [corners(35, 51)] * 5)
    # The fields of an interlaced picture show two instants: here the second is shifted by 8 columns.
    fields = [np.roll(numbered(0b10110011)[32:].repeat(2, 0), 8 * i, 1) for i in range(20)]
    even = np.arange(64)[:, None, None] % 2 == 0
    woven = [np.where(even, *pair) for pair in zip(fields[::2], fields[1::2], strict=True)]
    clip("interlaced.mp4", woven, interlaced=True)
    clip("non_utf8_metadata.avi", numbers, codec="mpeg4", options={"qscale": "2"}, title="ascii title")
    replace_bytes(
        os.path.join(folder, "non_utf8_metadata.avi"), b"ascii title", b"\xff\xfe\xe9\x80\xff title"
    )
    count = struct.pack("<I", 50)
    avi = clip("wrong_frame_count.avi", numbers, codec="mpeg4", options={"qscale": "2"})
    with open(avi, "r+b") as file:
        head = file.read(512)
        for at in (head.find(b"avih") + 8 + 16, head.find(b"strh") + 8 + 32):
            assert head[at : at + 4] == count
            file.seek(at)
            file.write(struct.pack("<I", 444))
    keep(clip("truncated.mp4", numbers), 0.6)  # its table of contents is at the end
    keep(clip("cut_short.mp4", numbers, movflags="faststart"), 0.6)  # here it is at the beginning
    for name, content in (("empty.mp4", ""), ("text.mp4", "this is not a video\n" * 50)):
        with open(os.path.join(folder, name), "w") as file:
            file.write(content)
