"""Scores do not depend on batch and devices, and memory does not grow with the frames."""

import gc
import tracemalloc

import jax
import numpy as np
import pytest
from scipy import linalg
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tests.support.models import architecture, randomized
from vaejax.evaluate import scorer as scores
from vaejax.evaluate.codecs.registry import open_codec
from vaejax.evaluate.codecs.vae import VaeCodec
from vaejax.models.autoencoder import Autoencoder
from vaejax.models.pixels import from_uint8
from vaejax.networks.lpips import load_configured
from vaejax.runtime import mesh as sharding

LENGTH = 5


def clips(count=7, length=LENGTH, seed=0):
    """Clips (count, length, 32, 64, 3) uint8 that pan over photos."""
    rng = np.random.default_rng(seed)
    photos = [data.astronaut(), data.coffee(), data.rocket()]
    out = np.empty((count, length, 32, 64, 3), np.uint8)
    for i, clip in enumerate(out):
        y, x = rng.integers(0, 250, 2)
        for t in range(length):
            clip[t] = photos[i % 3][y + t : y + t + 32, x + 2 * t : x + 2 * t + 64]
    return out


def coarse(frames):
    """Features (B, 24) of clips: the mean colours of eight parts, over time."""
    return frames.reshape(len(frames), -1, 2, 16, 4, 16, 3).mean((1, 3, 5)).reshape(len(frames), -1)


def mesh_of(devices):
    axis_types = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((devices, 1, 1), sharding.AXES, axis_types, devices=jax.devices()[:devices])


def frame_scorer(devices=1, lpips=False):
    networks = {"alexnet": load_configured("alexnet")} if lpips else {}
    return scores.FrameScorer(mesh_of(devices), networks)


def evaluated(codec, frames, batch, scorer, labels=None):
    scored = scores.BucketScores(codec, frames.shape[1:4], scorer, batch, {"i3d": coarse})
    labels = labels or [None] * len(frames)
    for start in range(0, len(frames), batch):
        scored.add(frames[start : start + batch], labels[start : start + batch])
    return scored.results({"i3d": coarse(from_uint8(frames))}, seed=0)


def values(results):
    return {name: score["value"] for name, score in results["scores"].items()}


@pytest.fixture(scope="module")
def codec():
    """A small autoencoder with random parameters, whose chunks and tiles differ from the whole."""
    return VaeCodec("run", *randomized())


def test_identity_loses_nothing():
    found = evaluated(open_codec("identity"), clips(2), 2, frame_scorer(lpips=True))
    got = values(found)
    assert got["psnr"] == got["psnr_pooled"] == np.inf and found["psnr_by_frame"] == [np.inf] * LENGTH
    np.testing.assert_allclose(got["ssim"], 1, atol=1e-6)
    for name in ("rfvd_i3d", "kvd_i3d", "lpips_alexnet", "flicker", "spots"):
        np.testing.assert_allclose(got[name], 0, atol=1e-7)
    assert got["bits_per_pixel"] == 24 and "latents" not in found


def test_scores_of_a_set_are_scikit_images_averaged_over_frames():
    frames, codec = clips(), open_codec("jpeg:40")
    decoded = codec.decode(codec.encode(frames))
    x, y = from_uint8(frames).astype(np.float64), decoded.astype(np.float64)
    psnr = np.array(
        [
            [peak_signal_noise_ratio(a, b, data_range=2) for a, b in zip(*pair, strict=True)]
            for pair in zip(x, y, strict=True)
        ]
    )
    ssim = [
        structural_similarity(
            (a + 1) / 2, (b + 1) / 2, data_range=1, channel_axis=-1, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(x.reshape(-1, 32, 64, 3), y.reshape(-1, 32, 64, 3), strict=True)
    ]  # fmt: skip
    found = evaluated(codec, frames, 5, frame_scorer())
    got = values(found)
    np.testing.assert_allclose(got["psnr"], psnr.mean(), atol=1e-4)
    np.testing.assert_allclose(found["psnr_by_frame"], psnr.mean(0), atol=1e-4)
    np.testing.assert_allclose(got["psnr_pooled"], peak_signal_noise_ratio(x, y, data_range=2), atol=1e-4)
    np.testing.assert_allclose(got["ssim"], np.mean(ssim), atol=1e-5)
    score = found["scores"]["psnr"]
    assert score["low"] < score["value"] < score["high"] and score["samples"] == 7
    sizes = [8 * len(data) / (32 * 64) for data in codec.encode(frames).data]
    np.testing.assert_allclose(got["bits_per_pixel"], np.mean(sizes))


def test_frechet_distances_are_of_the_whole_set_and_never_of_batches():
    frames, codec = clips(40), open_codec("jpeg:5")
    x, y = coarse(from_uint8(frames)), coarse(codec.decode(codec.encode(frames)))
    x, y = x.astype(np.float64), y.astype(np.float64)
    root = linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    wanted = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    scorer = frame_scorer()
    for batch in (2, 5):
        got = values(evaluated(codec, frames, batch, scorer))["rfvd_i3d"]
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-9)


def test_a_codec_that_breaks_on_one_clip_keeps_its_other_scores(capsys):
    codec = open_codec("jpeg:40")
    decode, places = codec.decode, iter(range(7))
    codec.decode = lambda z: decode(z) * (np.nan if next(places) == 3 else 1)
    found = evaluated(codec, clips(), 5, frame_scorer())["scores"]
    warning = "jpeg:40: features of 1 of 7 reconstructions are not finite; the codec's distances are NaN"
    assert warning in capsys.readouterr().err
    assert np.isnan(found["rfvd_i3d"]["value"]) and np.isnan(found["psnr"]["value"])
    assert np.isfinite(found["bits_per_pixel"]["value"])


@pytest.mark.variants
def test_batch_and_devices_change_no_score(codec):
    frames, labels = clips(), ["a", "b", "a", "b", "a", "b", None]
    wanted = evaluated(codec, frames, 2, frame_scorer(lpips=True), labels)
    assert wanted["latents"]["viv_classes"] == 2 and wanted["latents"]["viv_samples"] == 6
    for batch, devices in ((5, 1), (8, 8)):
        got = evaluated(codec, frames, batch, frame_scorer(devices, lpips=True), labels)
        assert values(got).keys() == values(wanted).keys()
        for name, value in values(wanted).items():
            np.testing.assert_allclose(values(got)[name], value, atol=1e-5, err_msg=name)
        for name, value in wanted["latents"].items():
            if name != "sec":
                np.testing.assert_allclose(got["latents"][name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_decoding_in_chunks_is_exact_and_in_tiles_differs_most_where_they_meet(codec):
    got = values(evaluated(codec, clips(3), 5, frame_scorer()))
    np.testing.assert_allclose(got["seam_chunked"], 0, atol=1e-2)  # levels: rounding alone
    np.testing.assert_allclose(got["psnr_chunked"], got["psnr"], atol=1e-3)
    assert got["seam_tiled"] > 1.5 * got["seam_tiled_elsewhere"] > 0
    assert got["psnr_tiled"] != got["psnr"]


def test_what_costs_as_much_again_is_done_for_the_first_samples_only(codec, monkeypatch):
    monkeypatch.setattr(scores, "EXTRA_SAMPLES", 4)
    frames, scorer = clips(), frame_scorer()
    found = [evaluated(codec, frames, batch, scorer)["scores"] for batch in (2, 5)]
    for name in ("seam_tiled", "equivariance_scale", "psnr_chunked"):
        assert found[0][name]["samples"] == found[1][name]["samples"] == 4
        np.testing.assert_allclose(found[0][name]["value"], found[1][name]["value"], atol=1e-5)
    assert found[0]["psnr"]["samples"] == 7


def test_seams_lie_where_parts_meet():
    np.testing.assert_array_equal(np.flatnonzero(scores.chunk_seams(5, 2, 4)), [4, 5, 12, 13])
    assert not scores.chunk_seams(1, 1, 4).any()
    codec = VaeCodec("run", Autoencoder(architecture()), {})
    at = scores.tile_seams(8, 8, 5, 2, codec)  # tiles 0-5 and 3-8
    rows = np.flatnonzero(at[0, :, 0])
    np.testing.assert_array_equal(rows, np.arange(3 * 8 - 4, 5 * 8 + 4))
    assert at.shape == (1, 64, 64) and at[0, 0].sum() == len(rows) and at[0, rows[0]].all()
    assert not scores.tile_seams(4, 8, 5, 2, codec)[0, :, 0].any()  # not cut that way


def test_a_few_exact_frames_count_as_the_ceiling():
    frames = clips(2)
    frames[0, 1:] = 128  # JPEG rebuilds grey exactly
    codec = open_codec("jpeg:90")
    found = evaluated(codec, frames, 5, frame_scorer())
    exact = codec.decode(codec.encode(frames))[0, 1:] == from_uint8(frames)[0, 1:]
    assert exact.all() and 60 < values(found)["psnr"] < 100


def test_memory_does_not_grow_with_the_samples_but_by_their_scores():
    scored = scores.BucketScores(
        open_codec("linear", samples=clips()), (LENGTH, 32, 64), frame_scorer(), 5, {"i3d": coarse}
    )
    frames = clips(5)
    sizes = []
    tracemalloc.start()
    for _ in range(3):
        for _ in range(10):
            scored.add(frames, ["a", "b", "c", None, "a"])
        gc.collect()  # what the rest of the process has dropped
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # Of a sample some numbers, features, and up to a limit its latents if it has a class.
    assert (sizes[2] - sizes[1]) / 50 < 12_000 < frames[0].nbytes
