"""The page holds everything it shows, to the pixel, and needs no other file."""

import base64
import io
import re

import numpy as np
from PIL import Image
from skimage import data

from vaejax.evaluate import html_report as page
from vaejax.rundir import panels


def clips(length=1, height=40, width=60):
    """A clip (T, H, W, 3) that pans over a photo, and two poor copies."""
    photo = data.astronaut()
    clip = np.stack([photo[50 + t : 50 + t + height, 2 * t : 2 * t + width] for t in range(length)])
    noise = np.random.default_rng(0).integers(-9, 10, clip.shape)
    return clip, *((clip + gain * noise).clip(0, 255).astype(np.uint8) for gain in (1, 3))


def score(value, samples=6):
    return {"value": value, "low": value - 0.5, "high": value + 0.5, "samples": samples}


def results(length=1, names=("identity", "<one> & only")):
    """What results.json would hold of two codecs on one bucket."""
    statistics = {
        "mean": [0.5, -1.25],
        "std": [1, 2],
        "peak": [3, 41.5],
        "dead": [1],
        "exploding": [],
        "spectrum": [3, 1],
        "effective_rank": 1.7548,
        "sec": {"0.25": 0.5, "0.5": 0.25, "0.75": 0.125},
        "kl": [2.0, 4.0],
        "viv": 12.345,
    }
    exact = {"psnr": score(float("inf")), "ssim": score(1.0), "bits_per_pixel": score(24.0)}
    lossy = {"psnr": score(31.25), "ssim": score(0.875), "bits_per_pixel": score(1.5)}
    lossy |= {"seam_tiled": score(2.5, 4), "seam_tiled_elsewhere": score(0.5, 4)}
    scored = {
        names[0]: {"scores": exact, "samples": 6, "files": 2, "psnr_by_frame": [float("inf")] * length},
        names[1]: {
            "scores": lossy,
            "samples": 6,
            "files": 2,
            "psnr_by_frame": list(np.linspace(32, 30, length)),
            "latent_shape": [1, 5, 8, 2],
            "latents": statistics,
        },
    }
    return {
        "codecs": list(names),
        "buckets": ["image_40x60"],
        "results": {"image_40x60": scored},
        "settings": {"data": "a folder", "cut": {"fps": 12.0}, "seed": 3, "devices": "1 cpu"},
        "training_latents": {names[1]: {"mean": [0.5, -1.25], "std": [1, 2], "step": 900}},
    }


def shown(length=1, names=("identity", "<one> & only"), **size):
    original, *copies = clips(length, **size)
    decoded = {
        name: page.Decoded(copy, 30.0 - i) for i, (name, copy) in enumerate(zip(names, copies, strict=True))
    }
    return {"image_40x60": [page.Shown("worst", "/some/where/cat.png@0.000", original, decoded)]}


def pictures(text):
    """Every embedded picture, decoded: frames (T, H, W, 3)."""
    found = []
    for kind, encoded in re.findall(r"src='data:image/(\w+);base64,([^']*)'", text):
        image = Image.open(io.BytesIO(base64.b64decode(encoded)))
        assert image.format.lower() == kind
        frames = []
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            frames.append(np.asarray(image.convert("RGB")))
        found.append(np.stack(frames))
    return found


def test_the_page_needs_no_other_file(tmp_path):
    page.write(tmp_path / "report.html", results(3), shown(3))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    text = (tmp_path / "report.html").read_text()
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")  # the name of SVG, not an address
    assert not re.search(r"<(script|link|iframe|object)|url\(|@import", text)
    assert all(source.startswith("data:") for source in re.findall(r"src='([^']*)'", text))


def test_an_image_its_reconstructions_and_their_errors_are_shown_to_the_pixel():
    original, good, bad = clips()
    wanted = [original, good, bad, panels.error_map(original, good), panels.error_map(original, bad)]
    for found, frames in zip(pictures(page.render(results(), shown())), wanted, strict=True):
        np.testing.assert_array_equal(found, frames)


def test_pixels_with_alpha_are_shown_over_a_checkerboard_and_errors_of_alpha_count():
    (original, *_), names = clips(5), ("identity", "<one> & only")
    opaque = np.concatenate([original, np.full_like(original[..., :1], 255)], -1)
    clear = opaque.copy()
    clear[2, ..., 3] = 0
    decoded = dict(zip(names, (page.Decoded(clear, 20.0), page.Decoded(opaque, 99.0)), strict=True))
    text = page.render(results(5), {"image_40x60": [page.Shown("worst", "a.mov@0", opaque, decoded)]})
    whole, _, _, still, cleared, _, error, _ = pictures(text)
    np.testing.assert_array_equal(whole, original)
    np.testing.assert_array_equal(still, original[2:3])
    assert set(np.unique(cleared)) == {204, 255} and np.all(error == 255)


def test_a_clip_moves_and_stands_still_where_its_error_is_largest():
    original, good, bad = clips(5)
    good[3] = np.roll(original[3], 7, axis=0)  # the frame that the first codec does worst
    names = ("identity", "<one> & only")
    decoded = {name: page.Decoded(frames, 30.0) for name, frames in zip(names, (good, bad), strict=True)}
    sample = page.Shown("worst", "cat.mp4@1.5", original, decoded)
    text = page.render(results(5), {"image_40x60": [sample]})
    wanted = [original, good, bad, original[3:4], good[3:4], bad[3:4]]
    wanted += [panels.error_map(original[3:4], frames[3:4]) for frames in (good, bad)]
    for found, frames in zip(pictures(text), wanted, strict=True):
        np.testing.assert_array_equal(found, frames)
    assert "frame 3" in text


def test_of_a_large_frame_the_part_with_the_largest_error_is_shown():
    original = np.zeros((1, 600, 900, 3), np.uint8)
    decoded = original.copy()
    decoded[0, 580:590, 700:710] = 200
    sample = page.Shown("worst", "cat.png@0", original, {"a": page.Decoded(decoded, 20.0)})
    text = page.render(results(names=("a", "b")) | {"codecs": ["a"]}, {"image_40x60": [sample]})
    for found in pictures(text)[1:]:
        assert found.shape[1:3] == (512, 512) and (found > 0).any(-1).sum() == 100


def test_the_table_has_every_score_its_interval_and_marks_the_best():
    text = page.render(results(), {})
    rows = {cells[0]: cells[1:] for row in re.findall(r"<tr><td>.*?</tr>", text) if (cells := cells_of(row))}
    psnr = next(cells for label, cells in rows.items() if label.startswith("PSNR, dB"))
    assert psnr == ["*∞ ∞ to ∞", "31.25 30.75 to 31.75"]
    seams = next(cells for label, cells in rows.items() if label.startswith("seams of tiles"))
    assert seams == ["&ndash;", "2.5000 2.0000 to 3.0000 4 samples elsewhere 0.5000"]
    bits = next(cells for label, cells in rows.items() if label.startswith("bits"))
    assert bits == ["24.000 23.500 to 24.500", "1.500 1.000 to 2.000"]  # neither is better
    health = rows["&lt;one&gt; &amp; only"]
    assert health == [
        "1x5x8x2",
        "1.75",
        "1: 1",
        "none",
        "41.5",
        "0.5000",
        "0.2500",
        "0.1250",
        "3.000",
        "12.35",
    ]


def cells_of(row):
    """The text of a row's cells, a star before one that is marked as the best."""
    cells = re.findall(r"<td([^>]*)>(.*?)</td>", row)
    return [
        ("*" if "best" in kind else "") + " ".join(re.sub(r"<[^>]*>", " ", text).split())
        for kind, text in cells
    ]


def test_names_cannot_break_the_page():
    text = page.render(results(), shown())
    assert "<one>" not in text and "&lt;one&gt; &amp; only" in text


def test_long_names_of_codecs_are_short_in_headings():
    assert page.short('diffusers:AutoencoderKLWan:{"dim": 4, "z": "<>"}') == "AutoencoderKLWan (random)"
    assert page.short("jpeg:matched") == "jpeg:matched"
    assert len(page.short("/a/very/long/path/" * 5 + "run")) == 32
