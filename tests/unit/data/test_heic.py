"""HEIC photos are read whole, upright and in their colors, or refused by name."""

import subprocess
import sys

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from tests.support.icc_profile import matrix_profile, primaries_to_xyz_d50
from tests.support.media_files import corners
from vaejax.data import media

P3 = ((0.3127, 0.3290), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
LOSSLESS = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}


def write(path, pixels, **options):
    """Writes a photo as phones do, as a grid of tiles."""
    Image.fromarray(pixels).save(path, **{"tile_size": 128} | LOSSLESS | options)
    return path


def whole(path):
    ((_, _, frame),) = media.stream(path, "image")
    return frame


@pytest.fixture(scope="module")
def pixels():
    """300 rows of 400 pixels: 12 tiles, of which the last of each row and column are cut."""
    rng = np.random.default_rng(0)
    return rng.integers(256, size=(300, 400, 3), dtype=np.uint8)


def test_a_grid_of_tiles_is_read_whole(tmp_path, pixels):
    path = write(tmp_path / "a.heic", pixels)
    assert Image.open(path).info["tiling"]["num_columns"] == 4
    assert media.kind_of("IMG_0001.HEIC") == media.kind_of("a.hif") == "image"
    np.testing.assert_array_equal(whole(path), pixels)
    np.testing.assert_array_equal(
        media.read(path.read_bytes(), "image", frames=1, height=300, width=400)[0], pixels
    )
    assert media.probe(path, "image") | {"width": 400, "height": 300, "hdr": False} == media.probe(
        path, "image"
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_stands_upright(tmp_path, orientation):
    """The file has both HEIC's rotation and EXIF's orientation, as phones write them; only one applies."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    picture = corners(160, 240)
    path = write(tmp_path / "a.heic", picture, exif=tags.tobytes())
    wanted = Image.fromarray(picture)
    wanted.getexif()[0x0112] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(wanted))
    np.testing.assert_array_equal(whole(path), wanted)
    probe = media.probe(path, "image")
    assert (probe["height"], probe["width"]) == wanted.shape[:2]
    assert probe["rotation"] == {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}.get(orientation, 0)


def test_ten_bits_are_read_in_eight(tmp_path, pixels):
    ten = np.round(pixels / 255 * 65535).astype(np.uint16)
    pillow_heif.from_bytes("RGB;16", (400, 300), ten.tobytes()).save(tmp_path / "a.heic", **LOSSLESS)
    assert Image.open(tmp_path / "a.heic").info["bit_depth"] == 10
    assert np.abs(whole(tmp_path / "a.heic").astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("tag", ["ICC profile", "codes", "profile before codes"])
def test_wide_gamut_becomes_srgb(tmp_path, tag):
    """A color of Display P3 that sRGB has as (0, 238, 92), by littleCMS."""
    photo = np.full((64, 64, 3), (40, 234, 110), np.uint8)
    profile = {"icc_profile": matrix_profile(primaries_to_xyz_d50(*P3), 2.2)}
    codes = {"color_primaries": 12, "transfer_characteristics": 13}
    options = {
        "ICC profile": profile,
        "codes": codes,
        "profile before codes": profile | {"color_primaries": 9, "transfer_characteristics": 16},
    }
    shown = whole(write(tmp_path / "a.heic", photo, **options[tag]))
    assert np.abs(shown.astype(int) - (0, 238, 92)).max() <= 3


def test_hdr_is_found_and_converted(tmp_path):
    """203 nits are 58.06% of the range of PQ, and white."""
    photo = np.full((64, 64, 3), round(0.5806 * 255), np.uint8)
    path = write(tmp_path / "a.heic", photo, color_primaries=9, transfer_characteristics=16)
    assert media.probe(path, "image")["hdr"]
    assert whole(path).min() > 235


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.999])
def test_a_file_that_ends_early_is_refused(tmp_path, pixels, share):
    content = write(tmp_path / "a.heic", pixels).read_bytes()
    (tmp_path / "a.heic").write_bytes(content[: int(share * len(content))])
    with pytest.raises(media.Unreadable, match="ends early"):
        media.probe(tmp_path / "a.heic", "image")


@pytest.mark.variants
def test_a_small_crop_is_not_read_from_a_thumbnail(tmp_path, pixels):
    photos = [
        write(tmp_path / f"{i}.heic", pixels, quality=90, chroma=420, thumbnails=sizes)
        for i, sizes in enumerate([[], [200]])
    ]
    small = [media.read(photo, "image", frames=1, height=30, width=40) for photo in photos]
    np.testing.assert_array_equal(*small)


def test_a_photo_under_the_name_of_a_clip_is_named(tmp_path, pixels):
    with pytest.raises(media.Unreadable, match=r"a HEIC photo; accepted: a name that ends in \.heic"):
        media.probe(write(tmp_path / "a.heic", pixels).rename(tmp_path / "a.mov"), "video")


def test_without_pillow_heif_photos_are_counted_and_refused_by_name(tmp_path, pixels):
    Image.new("RGB", (48, 40)).save(tmp_path / "photo.png")
    photo = write(tmp_path / "IMG_1.HEIC", pixels)
    (tmp_path / "b.jpg").write_bytes(photo.read_bytes())
    for name in ("c.heif", "d.jxl", "e.jxl", "README", ".hidden.heic"):
        (tmp_path / name).write_bytes(b"")
    program = (
        "import sys\n"
        "sys.modules['pillow_heif'] = None\n"  # as if it were not installed
        "from vaejax.data import index, media\n"
        "folder = sys.argv[1]\n"
        "index.load_or_build(folder, workers=1)\n"
        "for name, kind in (('IMG_1.HEIC', 'video'), ('b.jpg', 'image')):\n"
        "    try:\n"
        "        next(media.stream(folder + '/' + name, kind))\n"
        "    except media.Unreadable as error:\n"
        "        print(name, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        f"{name} a HEIC photo; accepted: pip install 'vaejax[heic]', which reads it"
        for name in ("IMG_1.HEIC", "b.jpg")
    ]
    assert done.stderr.splitlines()[-1] == (
        "passed over by their endings: 2 .jxl, 1 .heic, 1 .heif, 1 without an ending"
        " (pip install 'vaejax[heic]' reads .heic, .heif)"
    )
