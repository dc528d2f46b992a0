"""Panels decode to the pixels of their columns."""

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw
from skimage.metrics import peak_signal_noise_ratio

from vaejax.data.bucket import Bucket
from vaejax.rundir import panels


def frames(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def test_an_image_panel_shows_original_reconstruction_and_error_side_by_side(tmp_path):
    original, reconstruction, linear = (
        frames(2, 1, 40, 64, 3),
        frames(2, 1, 40, 64, 3)[::-1],
        frames(2, 1, 40, 64, 3),
    )
    returned = panels.write_panels(tmp_path, 50, "image_40x64", original, reconstruction, linear)
    png = np.asarray(Image.open(tmp_path / "panels" / "50" / "image_40x64.png"))
    np.testing.assert_array_equal(png, returned)
    error = panels.error_map(original, reconstruction)
    for i in range(2):
        for j, column in enumerate((original, reconstruction, linear, error)):
            # Cells of 3x the size (192 wide at least), 4 apart; the header is 24 high, the margin 4 wide.
            cell = png[24 + i * 124 :, 4 + j * 196 :][:120, :192]
            np.testing.assert_array_equal(cell, column[i, 0].repeat(3, 0).repeat(3, 1))
    assert not list((tmp_path / "panels" / "50").glob("*.mp4"))


@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("footer", [22, 0])  # panels of the first version have no caption
def test_the_cells_of_a_panel_are_read_back(tmp_path, length, footer):
    original, reconstruction = frames(2, length, 40, 64, 3), frames(2, length, 40, 64, 3)[::-1]
    png = panels.write_panels(tmp_path, 50, "image_40x64", original, reconstruction)
    Image.fromarray(png[: len(png) - 22 + footer]).save(tmp_path / "panel.png")
    cells = panels.read_cells(tmp_path / "panel.png", Bucket(length, 40, 64, 1))
    shown = [0] if length == 1 else [0, 4, 8]
    wanted = [np.stack([x[:, shown] for x in (original, reconstruction)])]
    wanted = wanted[0].reshape(2, -1, 40, 64, 3).swapaxes(0, 1).repeat(3, 2).repeat(3, 3)
    assert cells.shape == (2 * len(shown), 3, 120, 192, 3)
    np.testing.assert_array_equal(cells[:, :2], wanted)


@pytest.mark.parametrize("length", [1, 5])
def test_pixels_with_alpha_lie_over_a_checkerboard_beside_their_alpha(tmp_path, length):
    x, x_hat = frames(2, length, 40, 64, 4), frames(2, length, 40, 64, 4)[::-1]
    png = panels.write_panels(tmp_path, 50, "image_40x64", x, x_hat, x)
    Image.fromarray(png).save(tmp_path / "panel.png")
    cells = panels.read_cells(tmp_path / "panel.png", Bucket(length, 40, 64, 1))[:, :, ::3, ::3]
    board = Image.new("RGBA", (64, 40), (255, 255, 255))
    for top in range(0, 40, 8):
        for left in range(0, 64, 8):
            if (top + left) % 16:
                board.paste((204, 204, 204), (left, top, left + 8, top + 8))
    times = sorted({0, length // 2, length - 1})
    rows = [(i, t) for i in range(2) for t in times]
    assert cells.shape == (len(rows), 6, 40, 64, 3)
    for (original, decoded, linear, error, alpha, decoded_alpha), (i, t) in zip(cells, rows, strict=True):
        for cell, pixels in ((original, x), (decoded, x_hat), (linear, x)):
            wanted = Image.alpha_composite(board, Image.fromarray(pixels[i, t])).convert("RGB")
            assert np.abs(cell.astype(int) - np.asarray(wanted)).max() <= 1
        np.testing.assert_array_equal(error, panels.error_map(x[i, t], x_hat[i, t]))
        np.testing.assert_array_equal(alpha, np.repeat(x[i, t, ..., 3:], 3, -1))
        np.testing.assert_array_equal(decoded_alpha, np.repeat(x_hat[i, t, ..., 3:], 3, -1))


@pytest.mark.parametrize("damage", [lambda png: png[:500], lambda png: b"text", lambda png: png[:-20] * 2])
def test_a_damaged_panel_is_an_error_that_names_no_other_kind(tmp_path, damage):
    original = frames(1, 1, 40, 64, 3)
    panels.write_panels(tmp_path, 50, "image_40x64", original, original)
    path = tmp_path / "panels" / "50" / "image_40x64.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises((OSError, ValueError)):
        panels.read_cells(path, Bucket(1, 40, 64, 1))
    with pytest.raises((OSError, ValueError)):
        panels.read_cells(tmp_path / "absent.png", Bucket(1, 40, 64, 1))


def test_a_panel_names_its_bucket_and_step_and_the_psnr_of_its_samples(tmp_path, monkeypatch):
    """The text that is drawn, and the scores in it, which scikit-image confirms."""
    drawn = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *a, **k: (drawn.append(a[2]), draw(*a, **k)))
    original = frames(2, 1, 40, 64, 3)
    noisy, linear = (
        (original + np.random.default_rng(0).integers(0, scale, original.shape)).clip(0, 255).astype(np.uint8)
        for scale in (20, 40)
    )
    panels.write_panels(tmp_path, 50, "image_40x64", original, noisy, linear)
    ours, theirs = (
        np.mean([peak_signal_noise_ratio(x, y) for x, y in zip(original[:, 0], one[:, 0], strict=True)])
        for one in (noisy, linear)
    )
    labels = ["original", f"reconstruction {ours:.2f} dB", f"linear codec {theirs:.2f} dB", "error x4"]
    assert drawn == [*labels, "image_40x64, step 50; mean PSNR of the samples shown"]


def test_large_frames_are_shown_pixel_for_pixel(tmp_path):
    original = frames(1, 1, 33, 200, 3)
    png = panels.write_panels(tmp_path, 1, "image_33x200", original, original)
    np.testing.assert_array_equal(png[24:57, 4:204], original[0, 0])


def test_the_error_grows_from_black_to_white_and_sees_a_spot_of_one_color():
    gray = np.full((5, 3), 100, np.uint8)
    off = gray.copy()
    off[:, 2] += np.array([0, 10, 21, 42, 64], np.uint8)  # blue only
    heat = panels.error_map(gray, off)
    np.testing.assert_array_equal(heat[0], 0)
    np.testing.assert_array_equal(heat[1], [120, 0, 0])  # 3 x 4 x 10
    np.testing.assert_array_equal(heat[-1], 255)
    assert (np.diff(heat.sum(-1).astype(int)) > 0).all()
    np.testing.assert_array_equal(panels.error_map(off, gray), heat)  # no sign, no wrap-around


def test_a_video_panel_is_an_mp4_that_browsers_play(tmp_path):
    brighter = np.linspace(0, 100, 9).astype(np.uint8).reshape(1, 9, 1, 1, 1)
    red = np.array([150, 0, 40], np.uint8)  # saturated: makes a wrong color matrix visible
    original = np.broadcast_to(brighter + red, (2, 9, 33, 47, 3))
    png = panels.write_panels(tmp_path, 5, "video", original, original, fps=12.5)
    with av.open(str(tmp_path / "panels" / "5" / "video.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == 12.5
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == 9
    # Frames of 33x47 are enlarged 5 times; two rows, three columns, a caption; the odd width made even.
    assert decoded[0].shape == (24 + 2 * 169 + 22, 4 + 3 * 239 + 1, 3)
    for t, frame in enumerate(decoded):
        for row in range(2):
            cell = frame[24 + 169 * row :, 4:][10:155, 10:225]
            np.testing.assert_allclose(cell.mean((0, 1)), original[0, t, 0, 0], atol=4)
    for i, t in enumerate((0, 4, 8)):  # the PNG has the first, middle and last frame
        np.testing.assert_array_equal(png[24 + 169 * i + 80, 60], original[0, t, 0, 0])


def test_a_panel_too_large_for_players_is_shrunk_in_the_mp4_only(tmp_path, monkeypatch):
    monkeypatch.setattr(panels, "MAX_VIDEO", 256)
    original = frames(1, 2, 192, 192, 3)
    png = panels.write_panels(tmp_path, 5, "video", original, original)
    assert png.shape[1] > 3 * 192
    with av.open(str(tmp_path / "panels" / "5" / "video.mp4")) as container:
        assert container.streams.video[0].width == 256 and container.streams.video[0].height % 2 == 0


def test_panels_that_do_not_match_are_refused(tmp_path):
    with pytest.raises(ValueError, match="reconstruction"):
        panels.write_panels(tmp_path, 1, "image", frames(2, 1, 8, 8, 3), frames(1, 1, 8, 8, 3))
    with pytest.raises(ValueError, match="original"):
        panels.write_panels(tmp_path, 1, "image", np.zeros((2, 1, 8, 8, 3)), np.zeros((2, 1, 8, 8, 3)))
