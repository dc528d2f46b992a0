"""Pictures of any color space, as a viewer and a player show them."""

import io
import shutil
import struct
import subprocess
import zlib

import av
import numpy as np
import pytest
import skimage.color
import tifffile
from PIL import Image, ImageCms

from tests.support.icc_profile import cmyk_profile, matrix_profile, primaries_to_xyz_d50
from tests.support.media_files import write_clip
from vaejax.data import color, media
from vaejax.data.crop import Unreadable

D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
SRGB = (D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3 = (D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE = (D65, (0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
PROPHOTO = (D50, (0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001))
SPACES = {
    "Display P3": (P3, 2.2),
    "Adobe RGB": (ADOBE, 2.19921875),
    "ProPhoto": (PROPHOTO, 1.8),
    "swapped channels": ((D65, SRGB[3], SRGB[2], SRGB[1]), 2.2),
}


def patches():
    """Random colors, (8, 12, 3) uint8, most of which every color space can hold."""
    return np.random.default_rng(0).integers(40, 216, (8, 12, 3), np.uint8)


def by_formula(rgb, primaries, gamma):
    """RGB of a color space with a power curve as sRGB, in float64."""
    to_srgb = np.linalg.inv(primaries_to_xyz_d50(*SRGB)) @ primaries_to_xyz_d50(*primaries)
    return encoded((rgb / 255) ** gamma @ to_srgb.T)


def encoded(linear):
    """Linear values as sRGB from 0 to 255."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def shown(path):
    with Image.open(path) as photo:
        width, height = photo.size
    return media.read(path, "image", frames=1, height=height, width=width)[0].astype(int)


@pytest.mark.parametrize("extension", [".png", ".tif", ".webp", ".jpg"])
@pytest.mark.parametrize("space", SPACES)
def test_a_profile_is_applied(tmp_path, space, extension):
    primaries, gamma = SPACES[space]
    profile = matrix_profile(primaries_to_xyz_d50(*primaries), gamma)
    rgb = np.kron(patches(), np.ones((8, 8, 1), np.uint8))
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 100, "subsampling": 0}}.get(extension, {})
    Image.fromarray(rgb).save(tmp_path / f"photo{extension}", icc_profile=profile, **options)
    wanted = by_formula(rgb.astype(float), primaries, gamma)
    # A rounding step in the dark is several levels where a gamut is far wider; JPEG adds its own.
    error = np.abs(shown(tmp_path / f"photo{extension}") - wanted)
    assert error.mean() < (2 if extension == ".jpg" else 0.6) and np.quantile(error, 0.99) < 6


def test_the_profiles_of_gray_and_transparent_photos_are_applied(tmp_path):
    gray = np.tile(np.arange(0, 256, 4, np.uint8), (16, 1))
    wanted = by_formula(np.repeat(gray[..., None], 3, -1).astype(float), SRGB, 1.8)
    Image.fromarray(gray).save(tmp_path / "gray.png", icc_profile=matrix_profile([], 1.8, b"GRAY"))
    assert np.abs(shown(tmp_path / "gray.png") - wanted).max() <= 2
    profile = matrix_profile(primaries_to_xyz_d50(*P3), 2.2)
    rgba = Image.fromarray(patches()).convert("RGBA")
    rgba.putalpha(128)
    rgba.save(tmp_path / "clear.png", icc_profile=profile)
    wanted = (by_formula(patches().astype(float), P3, 2.2) * 128 + 255 * 127) / 255
    assert np.abs(shown(tmp_path / "clear.png") - wanted).max() <= 2


@pytest.mark.parametrize("extension", [".tif", ".jpg"])
def test_the_profile_of_a_cmyk_photo_is_applied_and_that_of_another_kind_is_not(tmp_path, extension):
    inks = np.stack(np.meshgrid(*[(0, 1)] * 4, indexing="ij"), axis=-1)
    lab = [100, 0, 0] + inks @ [[-30, -25, -30], [-38, 45, 0], [-8, -5, 50], [-70, 0, 0]]
    lab[..., 0] = np.clip(lab[..., 0], 30, 100)
    patches = np.kron(255 * inks.reshape(4, 4, 4), np.ones((16, 16, 1))).astype(np.uint8)
    photo = Image.frombytes("CMYK", patches.shape[1::-1], patches.tobytes())
    path = tmp_path / f"photo{extension}"
    options = {"quality": 100, "subsampling": 0} if extension == ".jpg" else {}
    photo.save(path, icc_profile=cmyk_profile(lab), **options)
    xyz = skimage.color.lab2xyz(lab.reshape(4, 4, 3).astype(float), illuminant="D50")
    wanted = encoded(xyz @ np.linalg.inv(primaries_to_xyz_d50(*SRGB)).T)
    assert np.abs(shown(path)[8::16, 8::16] - wanted).max() <= 6  # the profile rounds to 8 bits
    photo.save(path, **options)
    plain = shown(path)
    photo.save(path, icc_profile=matrix_profile(primaries_to_xyz_d50(*P3), 2.2), **options)
    np.testing.assert_array_equal(shown(path), plain)


def test_srgb_and_damaged_profiles_change_nothing(tmp_path):
    rgb = patches()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, content in {"srgb": profile, "damaged": profile[:200], "empty": b"x"}.items():
        Image.fromarray(rgb).save(tmp_path / f"{name}.png", icc_profile=content)
        np.testing.assert_array_equal(shown(tmp_path / f"{name}.png"), rgb)


def with_chunks(path, rgb, *chunks):
    """Writes a PNG with chunks after its header."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "PNG")
    data = out.getvalue()
    extra = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
    path.write_bytes(data[:33] + extra + data[33:])
    return path


def numbers(*values):
    return struct.pack(f">{len(values)}I", *(round(100_000 * value) for value in values))


def test_the_color_chunks_of_png_are_applied_in_their_order(tmp_path):
    rgb, path = patches(), tmp_path / "photo.png"
    gamma, chromaticities = (b"gAMA", numbers(1 / 1.8)), (b"cHRM", numbers(*np.ravel(ADOBE)))
    srgb, p3 = (b"sRGB", b"\0"), (b"cICP", bytes([12, 13, 0, 1]))
    x = rgb.astype(float)
    assert np.abs(shown(with_chunks(path, rgb, gamma)) - by_formula(x, SRGB, 1.8)).max() <= 1
    assert np.abs(shown(with_chunks(path, rgb, gamma, chromaticities)) - by_formula(x, ADOBE, 1.8)).max() <= 1
    np.testing.assert_array_equal(shown(with_chunks(path, rgb, srgb, gamma, chromaticities)), rgb)
    linear = np.where(x / 255 <= 0.04045, x / 255 / 12.92, ((x / 255 + 0.055) / 1.055) ** 2.4)
    wanted = by_formula(255 * linear, P3, 1.0)
    assert np.abs(shown(with_chunks(path, rgb, p3, srgb, gamma)) - wanted).max() <= 1
    impossible = (b"cHRM", numbers(*[0.3] * 8))
    np.testing.assert_array_equal(shown(with_chunks(path, rgb, gamma, impossible)), rgb)


def test_the_color_codes_of_avif_are_applied(tmp_path):
    rgb, path = np.full((64, 96, 3), (40, 200, 90), np.uint8), tmp_path / "photo.avif"
    with av.open(str(path), "w", format="avif") as out:
        stream = out.add_stream("libsvtav1", rate=1)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        codec = stream.codec_context
        codec.color_primaries, codec.color_trc, codec.colorspace, codec.color_range = 12, 13, 1, 2
        plain = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        frame = plain.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=2)
        frame.pts = 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    x = np.float64(rgb[0, 0]) / 255
    wanted = by_formula(255 * ((x + 0.055) / 1.055) ** 2.4, P3, 1.0)
    assert np.abs(shown(path)[32, 48] - wanted).max() <= 5


# HDR --------------------------------------------------------------------------------------------------------


def hdr_clip(path, gray_levels, transfer):
    """A BT.2020 clip of 10 bits, limited range, with a column for each level in [0, 1]."""
    luma = np.round(64 + 876 * np.repeat(gray_levels, 16)).astype(np.uint16)
    luma = np.tile(luma, (32, 1))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = luma.shape[1], 32, "yuv420p10le"
        stream.options = {"qp": "0", "x264-params": "log=0"}
        codec = stream.codec_context
        codec.color_primaries = codec.colorspace = 9
        codec.color_trc, codec.color_range = transfer, 1
        frame = av.VideoFrame(luma.shape[1], 32, "yuv420p10le")
        for plane, values in zip(
            frame.planes, (luma, *[np.full((16, luma.shape[1] // 2), 512, np.uint16)] * 2), strict=True
        ):
            rows = np.zeros((plane.height, plane.line_size // 2), np.uint16)
            rows[:, : values.shape[1]] = values
            plane.update(rows.tobytes())
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def columns(path, count):
    frame = media.read(path, "video", frames=1, height=32, width=16 * count)[0]
    return frame[16, 8::16].astype(int)


def test_hlg_becomes_bt709_with_203_nits_as_white(tmp_path):
    signal = np.array([0.0, 0.25, 0.5, 0.6, 0.7, 0.75, 0.9, 1.0])
    found = columns(hdr_clip(tmp_path / "clip.mp4", signal, color.HLG), len(signal))
    assert (np.ptp(found, axis=1) <= 1).all()
    scene = np.where(
        signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    )
    nits = 1000 * scene**1.2
    wanted = 255 * (nits / 203) ** (1 / 2.4)
    dark = nits < 0.9 * 203
    np.testing.assert_allclose(found[dark, 0], wanted[dark], atol=1)
    bright = found[~dark, 0]
    assert (np.diff(bright) >= 0).all() and bright[0] == 250 and bright[-1] == 255
    assert media.probe(tmp_path / "clip.mp4", "video")["hdr"]


def test_pq_becomes_bt709_with_203_nits_as_white(tmp_path):
    nits = np.array([0.0, 1.0, 10.0, 50.0, 100.0, 180.0, 1000.0, 4000.0])
    m, n = 2523 / 32, 1305 / 8192
    y = (nits / 10_000) ** n
    signal = ((107 / 128 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** m
    found = columns(hdr_clip(tmp_path / "clip.mp4", signal, color.PQ), len(signal))[:, 0]
    np.testing.assert_allclose(found[:6], 255 * (nits[:6] / 203) ** (1 / 2.4), atol=1)
    assert found[6] == found[7] == 255


@pytest.mark.skipif(
    b"zscale"
    not in subprocess.run([shutil.which("ffmpeg") or "true", "-filters"], capture_output=True).stdout,
    reason="needs an ffmpeg with zscale",
)
def test_colors_of_hlg_are_those_of_zscale(tmp_path):
    rgb = np.zeros((64, 128, 3), np.uint8)
    for i, patch in enumerate(
        [(190, 0, 0), (0, 190, 0), (0, 0, 190), (190, 190, 0), (120, 160, 90), (90, 90, 180)]
    ):
        rgb[:, 16 * i : 16 * i + 16] = patch
    write_clip(tmp_path / "sdr.mp4", [rgb] * 3)
    to_hlg = "zscale=tin=bt709:pin=bt709:min=bt709:rangein=tv:t=arib-std-b67:p=2020:m=2020_ncl:r=tv:npl=203"
    linear = "zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,tonemap=clip:desat=0"
    back = f"{linear},zscale=t=bt709:m=bt709:r=tv,format=rgb24"
    run = ["ffmpeg", "-v", "error", "-y", "-i"]
    tags = ["-color_primaries", "bt2020", "-color_trc", "arib-std-b67", "-colorspace", "bt2020nc", "-qp", "0"]
    hlg, again = str(tmp_path / "hlg.mp4"), str(tmp_path / "back.rgb")
    subprocess.run(
        [*run, str(tmp_path / "sdr.mp4"), "-vf", f"{to_hlg},format=yuv420p10le", *tags, hlg], check=True
    )
    subprocess.run([*run, hlg, "-frames:v", "1", "-vf", back, "-f", "rawvideo", again], check=True)
    wanted = np.fromfile(again, np.uint8).reshape(rgb.shape)
    found = media.read(hlg, "video", frames=1, height=64, width=128)[0]
    at = slice(8, 96, 16)
    assert np.abs(found[32, at].astype(int) - wanted[32, at]).max() <= 8


def test_a_wide_gamut_clip_becomes_bt709(tmp_path):
    path = tmp_path / "clip.mp4"
    rgb = np.kron(patches()[:4], np.ones((16, 16, 1), np.uint8))
    write_clip(path, [rgb] * 2)
    plain = media.read(path, "video", frames=1, height=64, width=192)[0].astype(float)
    found = color.clip_conversion(12, 1)(np.round(plain * 256).astype(np.uint16))
    assert color.clip_conversion(1, 1) is None
    to_srgb = np.linalg.inv(primaries_to_xyz_d50(*SRGB)) @ primaries_to_xyz_d50(*P3)
    wanted = 255 * np.clip((plain / 255) ** 2.4 @ to_srgb.T, 0, 1) ** (1 / 2.4)
    assert np.abs(found - wanted).max() <= 1


# TIFF -------------------------------------------------------------------------------------------------------


def samples(*shape):
    return np.random.default_rng(0).integers(0, 65536, shape, np.uint16)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_16_bit_gray_tiff_is_read_right(tmp_path, photometric, byteorder):
    gray = samples(24, 32)
    tifffile.imwrite(tmp_path / "gray.tif", gray, photometric=photometric, byteorder=byteorder)
    if photometric == "miniswhite" and byteorder == ">":
        with pytest.raises(Unreadable, match="not an image that Pillow can read"):
            media.read(tmp_path / "gray.tif", "image", frames=1, height=24, width=32)
        return
    values = gray if photometric == "minisblack" else 65535 - gray
    assert np.abs(shown(tmp_path / "gray.tif")[..., 0] - values / 257).max() <= 0.5


@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"compression": "zlib", "predictor": True}])
def test_16_bit_rgb_tiff_is_read_right(tmp_path, layout):
    rgb = samples(32, 48, 3)
    tifffile.imwrite(tmp_path / "rgb.tif", rgb, photometric="rgb", **layout)
    assert np.abs(shown(tmp_path / "rgb.tif") - rgb / 257).max() <= 1


@pytest.mark.parametrize(
    ("array", "options", "reason"),
    [
        (
            samples(3, 24, 32),
            {"photometric": "rgb", "planarconfig": "separate"},
            "16-bit samples in separate planes",
        ),
        (samples(24, 32).astype(np.uint32), {}, "32-bit samples"),
        (samples(24, 32).astype(np.int32), {}, "signed samples"),
        (samples(24, 32).astype(np.int16), {}, "signed samples"),
        (samples(24, 32).astype(np.int8), {}, "signed samples"),
        (samples(24, 32).astype(np.float32), {}, "floating-point samples"),
    ],
)
def test_samples_that_would_be_scrambled_are_refused_by_name(tmp_path, array, options, reason):
    tifffile.imwrite(tmp_path / "photo.tif", array, **options)
    with pytest.raises(Unreadable, match=reason):
        shown(tmp_path / "photo.tif")


def test_planes_of_8_bits_are_read_right(tmp_path):
    planes = np.random.default_rng(0).integers(0, 256, (3, 32, 48), np.uint8)
    tifffile.imwrite(tmp_path / "rgb.tif", planes, photometric="rgb", planarconfig="separate", tile=(16, 16))
    np.testing.assert_array_equal(shown(tmp_path / "rgb.tif"), planes.transpose(1, 2, 0))
