"""With four channels, photos and clips keep their alpha, and hidden colors stay hidden."""

import io
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from tests.support import cutouts, media_files
from tests.support.cutouts import cutout, over, whitened
from tests.support.small_run import small_config
from vaejax.data import alpha, media
from vaejax.data.bucket import Bucket, buckets_of
from vaejax.data.pipeline import read_batches, train_stream
from vaejax.data.sampler import Sampler
from vaejax.data.sources import open_sources
from vaejax.errors import InputError

RGBA = cutout()
FRAMES = np.stack([cutout(shift=2 * t) for t in range(12)])


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(file, kind="image", frames=1, height=64, width=96, **options):
    return media.read(file, kind, frames=frames, height=height, width=width, channels=4, **options)


def lanczos(size: int, wanted: int) -> np.ndarray:
    """The matrix (wanted, size) of an antialiased Lanczos filter of three lobes."""
    scale = max(1, size / wanted)
    distance = ((np.arange(wanted)[:, None] + 0.5) * size / wanted - 0.5 - np.arange(size)) / scale
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return weights / weights.sum(1, keepdims=True)


def resized(rgba: np.ndarray, height: int, width: int) -> np.ndarray:
    """Alpha and the colors multiplied by it, filtered in float64, then divided; (height, width, 4)."""
    a = rgba[..., 3:] / 255
    planes = np.concatenate([rgba[..., :3] * a, a], -1)
    rows, columns = lanczos(rgba.shape[0], height), lanczos(rgba.shape[1], width)
    planes = np.einsum("yh,hwc,xw->yxc", rows, planes, columns)
    with np.errstate(all="ignore"):
        return np.concatenate([planes[..., :3] / planes[..., 3:], 255 * planes[..., 3:]], -1).clip(0, 255)


# Photos


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True, "exact": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_a_photo_keeps_its_alpha(kind, options):
    file = saved(Image.fromarray(RGBA), kind, **options)
    np.testing.assert_array_equal(read(file)[0], whitened(RGBA))
    ((_, _, whole),) = media.stream(file, "image", 4)
    np.testing.assert_array_equal(whole, whitened(RGBA))


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_a_photo_of_a_lossy_format_keeps_its_alpha(kind):
    options = {"quality": 100, "subsampling": "4:4:4"} if kind == "AVIF" else {"quality": -1, "chroma": 444}
    if kind == "HEIF":
        pytest.importorskip("pillow_heif")
    found = read(saved(Image.fromarray(RGBA), kind, **options))[0].astype(int)
    assert np.abs(found[..., 3] - RGBA[..., 3]).max() <= 2
    assert np.abs(found - whitened(RGBA))[RGBA[..., 3] > 32].max() <= 6


def test_transparency_of_grays_palettes_and_single_colors_is_alpha():
    gray = Image.fromarray(RGBA).convert("LA")
    wanted = np.asarray(gray)
    np.testing.assert_array_equal(read(saved(gray, "PNG"))[0], whitened(wanted[..., [0, 0, 0, 1]]))
    colors = np.array([(200, 30, 60), (20, 180, 90), (50, 60, 210)], np.uint8)
    index, opacity = np.indices((64, 96)).sum(0) // 8 % 3, np.array([0, 128, 255], np.uint8)
    palette = Image.frombytes("P", index.shape[::-1], index.astype(np.uint8).tobytes())
    palette.putpalette(colors.tobytes())
    wanted = whitened(np.dstack([colors[index], opacity[index]]))
    np.testing.assert_array_equal(read(saved(palette, "PNG", transparency=opacity.tobytes()))[0], wanted)
    one = whitened(np.dstack([colors[index], np.where(index == 1, 0, 255)]).astype(np.uint8))
    np.testing.assert_array_equal(read(saved(palette, "GIF", transparency=1))[0], one)
    key = saved(Image.fromarray(colors[index]), "PNG", transparency=tuple(colors[1].tolist()))
    np.testing.assert_array_equal(read(key)[0], one)


def test_colors_are_managed_beside_alpha(tmp_path):
    """A PNG with a gamma of 1.0: linear light, which becomes sRGB; its alpha is not a color."""
    data = saved(Image.fromarray(RGBA), "PNG")
    body = b"gAMA" + (100_000).to_bytes(4, "big")
    chunk = (4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    x = RGBA[..., :3] / 255
    srgb = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055) * 255
    found = read(data[:33] + chunk + data[33:])[0]
    np.testing.assert_array_equal(found[..., 3], RGBA[..., 3])
    assert np.abs(found[..., :3] - srgb)[RGBA[..., 3] > 0].max() <= 1


def test_media_without_alpha_are_opaque_and_otherwise_as_with_three_channels(tmp_path):
    photo, clip = tmp_path / "photo.jpg", tmp_path / "clip.mp4"
    Image.fromarray(RGBA[..., :3]).save(photo, quality=90)
    media_files.write_clip(clip, list(FRAMES[..., :3]))
    for path, kind, frames in ((photo, "image", 1), (clip, "video", 5)):
        for size in ({"height": 64, "width": 96}, {"height": 20, "width": 24, "zoom": 1.3}):
            rgb = media.read(path, kind, frames=frames, **size)
            found = media.read(path, kind, frames=frames, channels=4, **size)
            np.testing.assert_array_equal(found, np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], -1))


# Resizing


@pytest.mark.parametrize(("height", "width"), [(23, 31), (40, 96), (64, 60)])
def test_colors_are_weighted_by_alpha_when_a_photo_shrinks(height, width):
    found, wanted = alpha.resized(RGBA, (width, height)).astype(float), resized(RGBA, height, width)
    assert np.abs(found[..., 3] - wanted[..., 3]).max() <= 0.5 + 1e-3
    seen = found[..., 3] > 0
    assert 0.2 < seen.mean() < 0.8
    assert np.abs(found - wanted)[..., :3][seen & (wanted[..., 3] > 1)].max() <= 0.5 + 1e-2
    assert np.all(found[~seen] == (255, 255, 255, 0))


def test_no_hidden_color_bleeds_into_a_visible_one():
    """Green on hidden magenta: blending would show both; so would dividing 8-bit products at faint edges."""
    picture = np.full((96, 96, 4), (255, 0, 255, 0), np.uint8)
    mask = cutouts.disc(96, 96)
    picture[mask > 0, :3] = (20, 200, 90)
    picture[..., 3] = mask
    file = saved(Image.fromarray(picture), "PNG")
    for size in (96, 64, 33, 24):  # below a third, Pillow first shrinks by a whole factor
        found = read(file, height=size, width=size)[0]
        assert np.all(found[found[..., 3] > 0, :3] == (20, 200, 90))
        assert len(np.unique(found[..., 3])) > 5


def test_a_crop_of_a_photo_is_that_of_the_resized_photo():
    file = saved(Image.fromarray(RGBA), "PNG")
    found = read(file, height=20, width=20, zoom=2.0, offset=(1.0, 0.5))[0]
    whole = resized(RGBA, 40, 60)[-20:, 20:40]
    assert np.abs(found[..., 3] - whole[..., 3]).max() <= 0.5 + 1e-3
    assert np.abs(found - whole)[found[..., 3] > 1, :3].max() <= 0.5 + 1e-2


# Clips


@pytest.mark.parametrize(
    ("encoder", "extension", "tolerance"),
    [
        ("qtrle", "mov", 0),
        ("png", "mov", 0),
        ("prores_ks", "mov", 2),
        ("libvpx-vp9", "webm", 8),
        ("libvpx-vp9", "mkv", 8),
        ("libvpx", "webm", 8),
    ],
)
def test_a_clip_keeps_its_alpha(tmp_path, encoder, extension, tolerance):
    path = cutouts.write_clip(tmp_path / f"clip.{extension}", FRAMES, encoder)
    wanted = whitened(FRAMES).astype(int)
    visible = FRAMES[..., 3] > 32
    for first, count in ((0, 12), (7, 4)):  # from the start, and after a seek
        found = read(path, "video", count, start=first / 25).astype(int)
        error = np.abs(found - wanted[first : first + count])
        assert error[..., 3].max() <= tolerance
        assert error[..., :3][visible[first : first + count]].max() <= 3 * tolerance
    whole = np.stack([frame for _, _, frame in media.stream(path, "video", 4)])
    np.testing.assert_array_equal(whole, read(path, "video", 12))
    assert media.probe(path, "video")["frames"] == 12
    opaque = media.read(path, "video", frames=12, height=64, width=96)
    assert np.abs(opaque - over(FRAMES, 255))[visible].max() <= 3 * tolerance + 1
    assert np.abs(opaque[FRAMES[..., 3] == 0] - 255.0).max() <= 3 * tolerance


def test_a_clip_is_resized_and_cropped_like_a_photo(tmp_path):
    path = cutouts.write_clip(tmp_path / "clip.mov", FRAMES, "png")
    found = read(path, "video", 12, height=32, width=32, fps=25)
    photos = [read(saved(Image.fromarray(frame), "PNG"), height=32, width=32)[0] for frame in FRAMES]
    np.testing.assert_array_equal(found, photos)


def test_a_palette_of_a_clip_may_have_alpha(tmp_path):
    colors, opacity = np.array([(200, 30, 60), (20, 180, 90)], np.uint8), np.array([0, 255], np.uint8)
    index = (np.indices((64, 96)).sum(0) // 8 % 2).astype(np.uint8)
    with av.open(str(tmp_path / "clip.mov"), "w") as out:
        stream = out.add_stream("png", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "pal8"
        argb = np.zeros((256, 4), np.uint8)
        argb[:2] = np.concatenate([opacity[:, None], colors], -1)
        for i in range(3):
            frame = av.VideoFrame.from_ndarray((index, argb), format="pal8")
            frame.pts = i
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    wanted = whitened(np.dstack([colors[index], opacity[index]]))
    np.testing.assert_array_equal(read(tmp_path / "clip.mov", "video", 3), [wanted] * 3)


def test_wide_gamut_becomes_bt709_beside_alpha(tmp_path):
    """The colors of an opaque clip in BT.2020 are those of the same clip without alpha."""
    opaque, tags = FRAMES[:2].copy(), (9, 9, 14)
    opaque[..., 3] = 255
    one, other = (
        read(
            cutouts.write_clip(tmp_path / f"{i}.mov", opaque, "prores_ks", tags=tags, pix_fmt=pix_fmt),
            "video",
            2,
        )
        for i, pix_fmt in enumerate(("yuva444p10le", "yuv444p10le"))
    )
    assert np.abs(one.astype(int) - other).mean() < 0.5  # colors with alpha are converted from 8 bits
    assert np.abs(one.astype(int) - opaque).mean() > 5  # BT.2020 is wider: the numbers change


# Samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    cutouts.write_photos(folder, 8)
    cutouts.write_clip(folder / "a.webm", [cutout(shift=t) for t in range(30)], "libvpx-vp9")
    cutouts.write_clip(folder / "b.mov", [cutout(seed=1, shift=t) for t in range(30)], "prores_ks")
    return folder


def test_a_sample_with_alpha_shows_what_the_sample_without_alpha_shows(folder):
    """Records, times and crops depend on the bucket's shape, but not on the number of its channels."""
    data = small_config(folder, **{"data.zoom": 1.5}).data
    sources = open_sources(data)

    def samples(bucket):
        return next(read_batches(Sampler(sources, bucket, "train", data), 6, 6))

    for frames in (1, 5):
        rgb, rgba = (samples(Bucket(frames, 24, 32, 6, channels=channels)) for channels in (3, 4))
        assert rgb.names == rgba.names and rgba.frames.shape == (6, frames, 24, 32, 4)
        assert np.abs(over(rgba.frames, 255) - rgb.frames).mean() < 2
        assert np.abs(rgba.frames[..., :3] - rgb.frames.astype(int)).mean() > 2
        assert (rgba.frames[..., 3] == 0).mean() > 0.1


def test_samples_with_alpha_are_the_same_in_threads_and_in_worker_processes(folder):
    config = small_config(folder, **{"model.pixel_channels": 4})
    buckets = buckets_of(config)
    assert {bucket.channels for bucket in buckets} == {4}
    read = {}
    for workers in (0, 2):
        data = small_config(folder, **{"data.workers": workers}).data
        with train_stream(open_sources(data), buckets, data, seed=3) as stream:
            read[workers] = [next(stream).batches for _ in range(2)]
    for one, other in zip(read[0], read[2], strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name].frames, other[name].frames)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_media_have_no_other_number_of_channels(channels):
    config = small_config("photos", **{"model.pixel_channels": channels})
    with pytest.raises(InputError, match=rf"^model\.pixel_channels = {channels}; accepted: 3 \(RGB\) or 4 "):
        buckets_of(config)
