"""Reading returns what was drawn: colors, orientation, shape, time and place; and never half a picture."""

import contextlib
import os
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from tests.support import media_files
from tests.support.media_files import CORNERS, corner_colors, corners, number_of, numbered, write_clip
from vaejax.data import media

# Mistaking BT.601 for BT.709 moves these colors by 17 or more, mistaking the range by 8 or more.
COLOR_TOLERANCE = 5


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return media_files.make(tmp_path_factory.mktemp("odd"))


def read(path, frames=1, height=64, width=96, **options):
    return media.read(path, media.kind_of(path), frames=frames, height=height, width=width, **options)


def numbers(clip):
    return [number_of(picture) for picture in clip]


def assert_corners(picture, expected=CORNERS, tolerance=COLOR_TOLERANCE):
    found = corner_colors(picture)
    assert np.abs(found - np.array(expected)).max() <= tolerance, found


# Photos


@pytest.mark.parametrize("name", ["photo.webp", "cmyk.jpg", "palette.png"])
def test_a_photo_keeps_its_colors(files, name):
    assert_corners(read(files[name])[0])


def test_transparency_is_shown_over_white(files):
    assert_corners(read(files["alpha.png"])[0], ((255, 255, 255), *CORNERS[1:]), 0)


def test_exif_orientation_turns_the_photo(files):
    red, green, blue, yellow = CORNERS
    assert_corners(read(files["exif_rotated.jpg"], height=96, width=64)[0], (blue, red, yellow, green))


@pytest.mark.parametrize("name", ["grey.png", "grey16.png"])
def test_grey_keeps_its_scale(files, name):
    expected = np.tile(np.round(255 * np.linspace(0, 1, 96)), (64, 1))
    assert np.abs(read(files[name])[0].astype(int) - expected[..., None]).max() <= 1


@pytest.mark.parametrize("mode", ["1", "LA", "I;16", "P"])
def test_other_modes_of_photo_are_read(tmp_path, mode):
    grey = Image.fromarray(np.where(np.arange(96) < 48, 0, 255).astype(np.uint8)[None].repeat(64, 0))
    if mode == "I;16":
        grey = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    grey.convert(mode).save(tmp_path / "photo.tif")
    picture = read(tmp_path / "photo.tif")[0]
    assert (picture[:, :48] == 0).all() and (picture[:, 48:] == 255).all()


def test_an_animation_gives_its_first_frame(tmp_path):
    first, second = Image.new("RGB", (96, 64), "white"), Image.new("RGB", (96, 64), "black")
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert (read(tmp_path / "a.gif") == 255).all()


@pytest.mark.parametrize("turned", [1, 3, 6, 8])
def test_a_large_jpeg_is_shrunk_as_pillow_shrinks_it(tmp_path, turned):
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 256, (24, 36, 3), np.uint8)).resize((1200, 800), 3)
    exif = Image.Exif()
    exif[0x0112] = turned
    blobs.save(tmp_path / "large.jpg", quality=95, exif=exif)
    angle = {1: 0, 3: 180, 6: 270, 8: 90}[turned]
    upright = Image.open(tmp_path / "large.jpg").convert("RGB").rotate(angle, expand=True)
    size = (96, 64) if angle % 180 == 0 else (64, 96)
    expected = np.asarray(upright.resize(size, Image.Resampling.LANCZOS), int)
    found = read(tmp_path / "large.jpg", height=size[1], width=size[0])[0].astype(int)
    assert np.abs(found - expected).mean() < 1 and np.abs(found - expected).max() < 8


# Geometry


def test_crop_and_resize_are_one_antialiased_resampling(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    found = read(tmp_path / "noise.png", height=30, width=30, zoom=1.5, offset=(0.25, 1.0))[0]
    box = (
        60.0,
        7.5,
        120.0,
        67.5,
    )  # 60x60 = 90 / 1.5; a quarter of the spare 30 rows above, all spare columns at the left
    expected = Image.fromarray(noise).resize((30, 30), Image.Resampling.LANCZOS, box, reducing_gap=3.0)
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_without_resizing_the_pixels_are_the_files_own(files):
    np.testing.assert_array_equal(read(files["photo.webp"])[0], corners())
    window = read(files["photo.webp"], height=32, width=48, zoom=99.0, offset=(1.0, 0.0))[0]
    np.testing.assert_array_equal(window, corners()[32:, :48])  # zoom stops before pixels are enlarged


def test_nothing_is_enlarged_beyond_the_limit(files):
    with pytest.raises(media.Unreadable, match="does not fit: 12x20, needed: 24x40"):
        read(files["tiny_20x12.jpg"], height=24, width=40, max_upscale=1.9)
    assert read(files["tiny_20x12.jpg"], height=24, width=40, max_upscale=2.0).shape == (1, 24, 40, 3)


def test_a_square_stays_square_when_pixels_are_not(tmp_path):
    squeezed = np.full((64, 96, 3), 30, np.uint8)
    squeezed[16:48, 36:60] = 220  # 24x32 coded pixels of 4:3 are a square of 32
    path = write_clip(tmp_path / "square.mp4", [squeezed] * 2, ratio=Fraction(4, 3))
    assert media.probe(path, "video")["width"] == 128
    square = read(path, height=64, width=128)[0].mean(-1) > 125
    assert square.any(0).sum() == square.any(1).sum() == 32
    square = read(path, height=32, width=32)[0].mean(-1) > 125  # cropped to the middle and halved
    assert square.any(0).sum() == square.any(1).sum() == 16


def test_a_rotated_clip_is_upright(files):
    red, green, blue, yellow = CORNERS
    assert_corners(read(files["rotated_90.mp4"], height=96, width=64)[0], (blue, red, yellow, green))


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((-1, 0, 0, -1), (3, 2, 1, 0)),
        ((0, -1, 1, 0), (1, 3, 0, 2)),
        ((1, 0, 0, 1), (0, 1, 2, 3)),
        ((-1, 0, 0, 1), (1, 0, 3, 2)),
        ((1, 0, 0, -1), (2, 3, 0, 1)),
        ((0, 1, 1, 0), (0, 2, 1, 3)),
        ((0, -1, -1, 0), (3, 1, 2, 0)),
    ],
)
def test_every_display_matrix_turns_as_written(tmp_path, matrix, turned):
    path = write_clip(tmp_path / "turned.mp4", [corners()] * 2)
    media_files.turn(path, *matrix)
    sideways = matrix[0] == 0
    picture = read(path, height=96 if sideways else 64, width=64 if sideways else 96)[0]
    assert_corners(picture, [CORNERS[i] for i in turned])


# Colours of clips


@pytest.mark.parametrize("matrix", ["601", "709"])
@pytest.mark.parametrize("span", ["limited", "full"])
@pytest.mark.parametrize(
    "codec", ["libx264", "libvpx-vp9"]
)  # full range is a pixel format in one, a tag in both
def test_a_tagged_clip_keeps_its_colors(tmp_path, matrix, span, codec):
    options = {"libvpx-vp9": {"crf": "4", "b": "0", "cpu-used": "8"}}.get(codec)
    path = tmp_path / "tagged.mkv"
    write_clip(path, [corners()] * 2, codec=codec, matrix=matrix, span=span, options=options)
    assert_corners(read(path)[0])


@pytest.mark.parametrize(("height", "matrix"), [(64, "601"), (720, "709")])
def test_an_untagged_clip_is_read_as_players_read_it(tmp_path, height, matrix):
    path = write_clip(tmp_path / "untagged.mp4", [corners(height, 96)], drawn=(matrix, "limited"))
    assert_corners(read(path, height=64, width=64)[0])


def test_ten_bits_keep_their_colors(files):
    assert (
        np.abs(corner_colors(read(files["ten_bit_23976.mp4"])[0])[:2] - CORNERS[:2]).max() <= COLOR_TOLERANCE
    )


def test_an_interlaced_clip_is_not_combed(files, tmp_path):
    def combing(picture):
        rows = picture[8:-8].mean(-1)
        return np.abs(rows[1:-1] - (rows[:-2] + rows[2:]) / 2).mean()

    clip = read(files["interlaced.mp4"], 5)
    assert max(map(combing, clip)) < 4
    even = np.arange(64)[:, None, None] % 2 == 0
    woven = np.where(even, corners(), np.roll(corners(), 8, 1))
    unflagged = write_clip(tmp_path / "unflagged.mp4", [woven] * 3)
    assert combing(read(unflagged)[0]) > 8  # unflagged frames are not filtered


def test_deinterlacing_keeps_frames_and_colors(tmp_path):
    tags = {"interlaced": True, "matrix": "709", "span": "full"}
    path = write_clip(tmp_path / "numbers.mp4", [numbered(i) for i in range(30)], **tags)
    assert media.probe(path, "video")["frames"] == 30
    assert numbers(read(path, 30)) == list(range(30))
    assert numbers(read(path, 4, start=0.96)) == [24, 25, 26, 27]
    for picture in read(write_clip(tmp_path / "colors.mp4", [corners()] * 5, **tags), 5):
        assert_corners(picture)


# Time


@pytest.fixture(scope="module")
def thirty(tmp_path_factory):
    """Four seconds at 30 fps with a keyframe every 12 frames and B-frames."""
    path = tmp_path_factory.mktemp("thirty") / "thirty.mp4"
    return write_clip(path, [numbered(i) for i in range(120)], 30, options={"bf": "2"})


def test_thirty_frames_a_second_become_twelve(thirty):
    assert numbers(read(thirty, 9, fps=12)) == [0, 2, 5, 7, 10, 12, 15, 17, 20]


def test_more_frames_a_second_repeat_what_is_shown(thirty):
    assert numbers(read(thirty, 6, fps=60, start=1.0)) == [30, 30, 31, 31, 32, 32]


@pytest.mark.parametrize("start", [0, 1, 11, 12, 13, 47, 59, 117])
def test_a_clip_can_be_entered_at_any_frame(thirty, start):
    expected = [start, start + 1, start + 2]
    assert numbers(read(thirty, 3, start=start / 30)) == expected
    assert numbers(read(thirty, 3, start=start / 30, fps=30)) == expected


@pytest.mark.parametrize("container", ["mkv", "mov", "ts", "avi", "mpg", "flv"])
def test_every_container_is_entered_where_it_should_be(tmp_path, container):
    codec = {"avi": "mpeg4", "mpg": "mpeg2video"}.get(container, "libx264")
    options = {"bf": "2"} if codec == "libx264" else {"qscale": "2", "bf": "2"}
    path = write_clip(
        tmp_path / f"clip.{container}", [numbered(i) for i in range(60)], 30, codec=codec, options=options
    )
    found = media.probe(path, "video")
    assert (found["frames"], round(found["fps"], 1), round(found["duration"], 2)) == (60, 30.0, 2.0)
    for start in (0, 7, 25, 40, 57):
        assert numbers(read(path, 3, start=start / 30, fps=30)) == [start, start + 1, start + 2]


def test_variable_rate_is_resampled_by_its_timestamps(files):
    shown = list(np.cumsum([0, *(40, 40, 120, 20, 200) * 5]))  # milliseconds
    wanted = [start * 1000 / 25 for start in range(50)]
    expected = [max(i for i, time in enumerate(shown) if time <= at) for at in wanted]
    assert numbers(read(files["variable_rate.mp4"], 50, fps=25)) == expected
    assert numbers(read(files["variable_rate.mp4"], 20, fps=25, start=1.2)) == expected[30:50]


def test_a_clock_that_does_not_begin_at_zero_makes_no_difference(tmp_path):
    times = [5000 + 40 * i for i in range(30)]
    path = write_clip(
        tmp_path / "late.mkv", [numbered(i) for i in range(30)], times=times, tick=Fraction(1, 1000)
    )
    assert numbers(read(path, 4, start=0.8, fps=12.5)) == [20, 22, 24, 26]
    assert media.probe(path, "video")["duration"] == pytest.approx(1.2, abs=0.01)


def test_the_last_frame_is_shown_for_its_time_and_no_longer(thirty):
    assert numbers(read(thirty, 2, start=119 / 30, fps=60)) == [119, 119]
    with pytest.raises(media.Unreadable, match="clip ends early: only 2 of 3 frames"):
        read(thirty, 3, start=119 / 30, fps=60)
    with pytest.raises(media.Unreadable, match="clip ends early: only 1 of 2 frames"):
        read(thirty, 2, start=119 / 30)


def test_the_probed_duration_can_be_read(files):
    found = media.probe(files["ten_bit_23976.mp4"], "video")
    start = found["duration"] - 1 / found["fps"] - 16 / 12
    assert len(numbers(read(files["ten_bit_23976.mp4"], 17, start=start, fps=12))) == 17


def test_a_clip_of_one_frame_is_an_image(files):
    assert numbers(read(files["one_frame.mp4"])) == [0]
    with pytest.raises(media.Unreadable, match="only 1 of 2"):
        read(files["one_frame.mp4"], 2, fps=25)


# Probing, and files that are broken


def test_bytes_read_as_files_do(files):
    for name in ("photo.webp", "three_frames.mp4"):
        with open(files[name], "rb") as file:
            content = file.read()
        kind = media.kind_of(name)
        found = media.read(content, kind, frames=1, height=64, width=96)
        np.testing.assert_array_equal(found, read(files[name]))
        assert media.probe(content, kind) == media.probe(files[name], kind)


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "exif_rotated.jpg": {"width": 64, "height": 96, "rotation": 90, "codec": "jpeg", "frames": 1},
        "grey16.png": {"width": 96, "height": 64, "quality": None, "fps": None, "duration": 0.0},
        "quality_5.jpg": {"quality": 5},
        "odd_size_51x35.mp4": {"width": 51, "height": 35, "frames": 5},
        "one_frame.mp4": {"frames": 1, "fps": 25.0, "duration": 0.04},
        "three_frames.mp4": {"frames": 3, "fps": 25.0, "duration": 0.12, "codec": "h264"},
        "rotated_90.mp4": {"width": 64, "height": 96, "rotation": 90},
        "ten_bit_23976.mp4": {"frames": 50, "fps": pytest.approx(24000 / 1001), "codec": "hevc"},
        "variable_rate.mp4": {"frames": 26, "fps": pytest.approx(25 / 2.1)},
        "wrong_frame_count.avi": {"frames": 50, "duration": 2.0},
        "non_utf8_metadata.avi": {"frames": 50},
        "with_audio.mp4": {"frames": 50, "duration": 2.0},
    }.items(),
)
def test_the_probe_describes_a_file(files, name, expected):
    found = media.probe(files[name], media.kind_of(name))
    assert found | expected == found


@pytest.mark.parametrize("name", sorted(media_files.UNREADABLE))
def test_a_broken_file_gives_a_reason_in_one_line(files, name):
    for attempt in (lambda: media.probe(files[name], media.kind_of(name)), lambda: read(files[name])):
        with pytest.raises(media.Unreadable) as caught:
            attempt()
        assert str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_unreadable():
    for name in ("missing.jpg", "missing.mp4"):
        with pytest.raises(media.Unreadable, match="No such file"):
            read(name)


def test_a_clip_that_breaks_off_gives_the_frames_before(files):
    count = media.probe(files["cut_short.mp4"], "video")["frames"]
    assert 1 < count < 50
    assert numbers(read(files["cut_short.mp4"], count)) == list(range(count))
    with pytest.raises(media.Unreadable):
        read(files["cut_short.mp4"], count + 1)


def test_damage_in_the_middle_is_not_concealed(tmp_path):
    with open(write_clip(tmp_path / "clip.mp4", [numbered(i) for i in range(50)]), "rb") as file:
        content = file.read()
    shorter = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        damaged, at = bytearray(content), content.find(b"mdat") + 1500 + int(rng.integers(0, 1800))
        damaged[at : at + 30] = np.random.default_rng(seed).integers(0, 256, 30, np.uint8).tobytes()
        try:
            count = media.probe(bytes(damaged), "video")["frames"]
        except media.Unreadable:
            continue
        shorter += count < 50
        clip = media.read(bytes(damaged), "video", frames=count, height=64, width=96)
        assert numbers(clip) == list(range(count))
    assert shorter


def test_no_file_stays_open(files, tmp_path):
    before = (
        len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("needs /proc")
    )
    for name, path in files.items():
        for action in (
            lambda path=path: read(path, 1, start=0.1),
            lambda p=path, n=name: media.probe(p, media.kind_of(n)),
        ):
            with contextlib.suppress(media.Unreadable):
                action()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("expected", [5, 30, 50, 75, 90, 95])
def test_jpeg_quality_is_estimated_within_one(tmp_path, expected):
    for photo in (Image.fromarray(corners()), Image.fromarray(corners()).convert("L")):
        photo.save(tmp_path / "photo.jpg", quality=expected)
        assert abs(media.probe(tmp_path / "photo.jpg", "image")["quality"] - expected) <= 1


def test_kinds_go_by_the_extension():
    assert [media.kind_of(name) for name in ("a.JPG", "b/c.mp4", "notes.txt", "no")] == [
        "image",
        "video",
        None,
        None,
    ]
