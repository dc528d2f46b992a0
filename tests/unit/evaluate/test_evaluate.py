"""An evaluation says the same whatever the batch and the devices, of every sample once, in bounded memory."""

import contextlib
import gc
import io
import json
import pathlib
import tracemalloc

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from PIL import Image
from scipy import linalg
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tests.support import media_files
from tests.support.models import SMALL
from vaejax.config import builders, defaults
from vaejax.data.bucket import Bucket
from vaejax.evaluate import __main__ as evaluate
from vaejax.evaluate import latent_metrics as latents
from vaejax.evaluate import scorer as scores
from vaejax.evaluate.codecs.registry import normalise, open_codec
from vaejax.evaluate.codecs.vae import RunCodec
from vaejax.evaluate.samples import open_samples
from vaejax.models.autoencoder import Architecture, Autoencoder
from vaejax.rundir.checkpoint import Checkpoints
from vaejax.runtime import mesh as sharding
from vaejax.train import state as train_state

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


def judge(devices=1, lpips=False):
    networks = {"alexnet": builders.load_lpips("alexnet")} if lpips else {}
    return scores.Judge(mesh_of(devices), networks)


def evaluated(codec, frames, batch, by, labels=None):
    tally = scores.Tally(codec, frames.shape[1:4], by, batch, {"i3d": coarse})
    labels = labels or [None] * len(frames)
    for start in range(0, len(frames), batch):
        tally.add(frames[start : start + batch], labels[start : start + batch])
    return tally.results({"i3d": coarse(normalise(frames))}, seed=0)


def values(results):
    return {name: score["value"] for name, score in results["scores"].items()}


@pytest.fixture(scope="module")
def codec():
    """A small autoencoder, untrained, whose chunks and tiles can be told from the whole."""
    model = Autoencoder(Architecture(**SMALL))
    clip = np.zeros((1, 5, 16, 16, 3), np.float32)
    params = jax.jit(model.init)(jax.random.key(0), clip, jax.random.key(1))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return RunCodec("run", model, jax.tree.unflatten(tree, noisy))


def test_identity_loses_nothing():
    found = evaluated(open_codec("identity"), clips(2), 2, judge(lpips=True))
    got = values(found)
    assert got["psnr"] == got["psnr_pooled"] == np.inf and found["psnr_by_frame"] == [np.inf] * LENGTH
    np.testing.assert_allclose(got["ssim"], 1, atol=1e-6)
    for name in ("rfvd_i3d", "kvd_i3d", "lpips_alexnet", "flicker", "spots"):
        np.testing.assert_allclose(got[name], 0, atol=1e-7)
    assert got["bits_per_pixel"] == 24 and "latents" not in found


def test_scores_of_a_set_are_scikit_images_averaged_over_frames():
    frames, codec = clips(), open_codec("jpeg:40")
    decoded = codec.decode(codec.encode(frames))
    x, y = normalise(frames).astype(np.float64), decoded.astype(np.float64)
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
    found = evaluated(codec, frames, 5, judge())
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
    x, y = coarse(normalise(frames)), coarse(codec.decode(codec.encode(frames)))
    x, y = x.astype(np.float64), y.astype(np.float64)
    root = linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    wanted = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    by = judge()
    for batch in (2, 5):
        got = values(evaluated(codec, frames, batch, by))["rfvd_i3d"]
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-9)


def test_a_codec_that_breaks_on_one_clip_keeps_its_other_scores(capsys):
    codec = open_codec("jpeg:40")
    decode, places = codec.decode, iter(range(7))
    codec.decode = lambda z: decode(z) * (np.nan if next(places) == 3 else 1)
    found = evaluated(codec, clips(), 5, judge())["scores"]
    assert "jpeg:40: 1 of 7 samples are not finite; its distances are NaN" in capsys.readouterr().err
    assert np.isnan(found["rfvd_i3d"]["value"]) and np.isnan(found["psnr"]["value"])
    assert np.isfinite(found["bits_per_pixel"]["value"])


@pytest.mark.slow
def test_batch_and_devices_change_no_score(codec):
    frames, labels = clips(), ["a", "b", "a", "b", "a", "b", None]
    wanted = evaluated(codec, frames, 2, judge(lpips=True), labels)
    assert wanted["latents"]["viv_classes"] == 2 and wanted["latents"]["viv_samples"] == 6
    for batch, devices in ((5, 1), (8, 8)):
        got = evaluated(codec, frames, batch, judge(devices, lpips=True), labels)
        assert values(got).keys() == values(wanted).keys()
        for name, value in values(wanted).items():
            np.testing.assert_allclose(values(got)[name], value, atol=1e-5, err_msg=name)
        for name, value in wanted["latents"].items():
            if name != "sec":
                np.testing.assert_allclose(got["latents"][name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_decoding_in_chunks_is_exact_and_in_tiles_differs_most_where_they_meet(codec):
    got = values(evaluated(codec, clips(3), 5, judge()))
    np.testing.assert_allclose(got["seam_chunked"], 0, atol=1e-2)  # levels: rounding alone
    np.testing.assert_allclose(got["psnr_chunked"], got["psnr"], atol=1e-3)
    assert got["seam_tiled"] > 1.5 * got["seam_tiled_elsewhere"] > 0
    assert got["psnr_tiled"] != got["psnr"]


def test_what_costs_as_much_again_is_done_for_the_first_samples_only(codec, monkeypatch):
    monkeypatch.setattr(scores, "PARTS", 4)
    frames, by = clips(), judge()
    found = [evaluated(codec, frames, batch, by)["scores"] for batch in (2, 5)]
    for name in ("seam_tiled", "equivariance_scale", "psnr_chunked"):
        assert found[0][name]["samples"] == found[1][name]["samples"] == 4
        np.testing.assert_allclose(found[0][name]["value"], found[1][name]["value"], atol=1e-5)
    assert found[0]["psnr"]["samples"] == 7


def test_seams_lie_where_parts_meet():
    np.testing.assert_array_equal(np.flatnonzero(scores.chunk_seams(5, 2, 4)), [4, 5, 12, 13])
    assert not scores.chunk_seams(1, 1, 4).any()
    codec = RunCodec("run", Autoencoder(Architecture()), {})
    at = scores.tile_seams(8, 8, 5, 2, codec)  # tiles 0-5 and 3-8
    rows = np.flatnonzero(at[0, :, 0])
    np.testing.assert_array_equal(rows, np.arange(3 * 8 - 4, 5 * 8 + 4))
    assert at.shape == (1, 64, 64) and at[0, 0].sum() == len(rows) and at[0, rows[0]].all()
    assert not scores.tile_seams(4, 8, 5, 2, codec)[0, :, 0].any()  # not cut that way


def test_a_few_exact_frames_count_as_the_ceiling():
    frames = clips(2)
    frames[0, 1:] = 128  # JPEG rebuilds grey exactly
    codec = open_codec("jpeg:90")
    found = evaluated(codec, frames, 5, judge())
    exact = codec.decode(codec.encode(frames))[0, 1:] == normalise(frames)[0, 1:]
    assert exact.all() and 60 < values(found)["psnr"] < 100


def test_memory_does_not_grow_with_the_samples_but_by_their_scores():
    tally = scores.Tally(open_codec("linear", samples=clips()), (LENGTH, 32, 64), judge(), 5, {"i3d": coarse})
    frames = clips(5)
    sizes = []
    tracemalloc.start()
    for _ in range(3):
        for _ in range(10):
            tally.add(frames, ["a", "b", "c", None, "a"])
        gc.collect()  # what the rest of the process has dropped
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # Of a sample some numbers, features, and up to a limit its latents if it has a class.
    assert (sizes[2] - sizes[1]) / 50 < 12_000 < frames[0].nbytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five photos and three clips in two classes, a small photo, a broken one."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    for i, name in enumerate(("cat/a.png", "cat/b.jpg", "dog/c.png", "dog/d.png", "dog/e.webp")):
        (folder / name).parent.mkdir(exist_ok=True)
        y, x = rng.integers(0, 200, 2)
        photo = (data.astronaut(), data.coffee())[i % 2][y : y + 60 + i, x : x + 90]
        Image.fromarray(photo).save(folder / name, **({"lossless": True} if "webp" in name else {}))
    Image.fromarray(data.astronaut()[:20, :20]).save(folder / "cat" / "small.png")
    (folder / "cat" / "broken.png").write_bytes(b"\x89PNG no photo")
    for i, length in enumerate((21, 25, 30)):
        pictures = [media_files.numbered(n) for n in range(length)]
        media_files.write_clip(folder / "dog" / f"{i}.mp4", pictures, rate=25)
    return folder


def images(count=0):
    return Bucket(1, 32, 32, 1)


def test_every_file_is_read_once_from_the_middle(folder):
    settings = defaults().data
    settings.fps = 25.0
    found = open_samples(str(folder), settings)
    read = [names for _, names, _ in found.batches(images(), 2)]
    assert [len(names) for names in read] == [2, 2, 1]
    photos = sorted(name.rpartition("@")[0] for names in read for name in names)
    assert photos == [
        str(folder / n) for n in ("cat/a.png", "cat/b.jpg", "dog/c.png", "dog/d.png", "dog/e.webp")
    ]
    assert found.label(f"{folder}/cat/a.png@0.000") == "cat" and found.count(images()) == 5
    bucket = Bucket(5, 64, 96, 1)
    firsts = {}
    for frames, names, places in found.batches(bucket, 2):
        for clip, name, place in zip(frames, names, places, strict=True):
            firsts[pathlib.PurePath(name).name[0]] = [media_files.number_of(picture) for picture in clip]
            np.testing.assert_array_equal(found.read(bucket, place)[0], clip)
    middle = {"0": 8, "1": 10, "2": 12}  # of 21, 25 and 30 frames, five are cut out
    for name, numbers in firsts.items():
        assert abs(numbers[0] - middle[name]) <= 1 and np.diff(numbers).tolist() == [1] * 4
    assert len(firsts) == 3
    assert open_samples(str(folder), settings, limit=2).count(images()) == 2


def run_command(*arguments):
    """The exit code, what was printed, and the lines on stderr that are no progress."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = evaluate.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run that saved a checkpoint and trained on the folder."""
    workdir = tmp_path_factory.mktemp("run")
    config = defaults()
    config.data.media = str(folder)
    config.data.fps = 25.0
    config.data.holdout = 0.4
    config.eval.linear_samples = 8
    config.data.buckets = {"image_32x32": {"batch": 2}, "video_5x32x32": {"batch": 1}}
    config.model.update(SMALL)
    (workdir / "config.json").write_text(config.to_json_best_effort())
    mesh = sharding.make_mesh(ConfigDict({"data": 0, "fsdp": 1, "space": 1}))
    model = Autoencoder(builders.architecture(config.model))
    state = train_state.create(model, optax.adam(1e-3), None, mesh, 0)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(state, 7, {}, json.loads(config.to_json_best_effort()), {})
    return workdir


@pytest.fixture(scope="module")
def twice(run, folder, tmp_path_factory):
    """The folders of one command that ran twice."""
    folders = [tmp_path_factory.mktemp("out") for _ in range(2)]
    for out in folders:
        code, printed, told = run_command(
            "--checkpoint", run, "--compare", "identity", "linear", "jpeg:matched", "--data", folder,
            "--out", out,
        )  # fmt: skip
        assert code == 0, told
        assert str(out / "report.html") in printed
    return folders


@pytest.mark.slow
def test_two_runs_give_the_same_bytes_but_for_the_time(twice):
    contents = [json.loads((out / "results.json").read_bytes()) for out in twice]
    assert [results.pop("time")["seconds"] > 0 for results in contents] == [True, True]
    texts = [json.dumps(results, sort_keys=True) for results in contents]
    assert texts[0] == texts[1]
    pages = [(out / "report.html").read_bytes() for out in twice]
    assert pages[0] == pages[1]


@pytest.mark.slow
def test_results_hold_every_score_with_its_count_and_settings(twice, run, folder):
    text = (twice[0] / "results.json").read_text()
    results = json.loads(text, parse_constant=pytest.fail)  # strict JSON
    assert results["codecs"] == [str(run), "identity", "linear", "jpeg:matched"]
    assert set(results["buckets"]) == {"image_32x32", "video_5x32x32"}
    for bucket, count in (("image_32x32", 5), ("video_5x32x32", 3)):
        for codec in results["codecs"]:
            found = results["results"][bucket][codec]
            worst = [one["psnr"] for one in found["worst"]]
            assert worst == sorted(worst, key=float) and len(worst) == count
            assert found["samples"] == found["scores"]["frechet_efficientnet"]["samples"] == count
            assert ("flicker" in found["scores"]) == (bucket == "video_5x32x32")
            for name in ("psnr", "psnr_pooled", "ssim", "lpips_alexnet", "lpips_vgg16", "kid_efficientnet"):
                assert set(found["scores"][name]) == {"value", "low", "high", "samples"}
    exact = results["results"]["image_32x32"]["identity"]["scores"]
    assert exact["psnr"]["value"] == exact["psnr_pooled"]["value"] == "Infinity"
    assert (
        abs(exact["frechet_efficientnet"]["value"]) < 1e-6 and abs(exact["kid_efficientnet"]["value"]) < 1e-6
    )
    assert "viv" in results["results"]["image_32x32"][str(run)]["latents"]
    assert results["settings"]["codecs"][str(run)]["step"] == 7
    assert results["settings"]["cut"]["fps"] == 25 and results["settings"]["data"] == str(folder)


@pytest.mark.slow
def test_the_statistics_of_training_latents_are_kept_with_the_checkpoint(twice, run):
    stored = latents.load(run, 7)
    results = json.loads((twice[0] / "results.json").read_bytes())
    assert results["training_latents"][str(run)] == stored
    assert set(stored["buckets"]) == {"image_32x32", "video_5x32x32"} and len(stored["mean"]) == 4
    assert len(stored["buckets"]["image_32x32"]["kl"]) == 4


def test_without_data_a_run_is_scored_on_what_it_held_out(run, tmp_path):
    code, _, told = run_command(
        "--checkpoint", run, "--out", tmp_path, "--buckets", "image_32x32", "--samples", 6, "--batch", 3
    )  # fmt: skip
    assert code == 0, told
    results = json.loads((tmp_path / "results.json").read_bytes())
    assert results["results"]["image_32x32"][str(run)]["samples"] == 6  # few files, cut several times
    assert results["settings"]["data"] == "held out by the run"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--checkpoint or --compare is needed"),
        (("--compare", "jpeg:101", "--buckets", "image_32x32"), "jpeg:1 to jpeg:100"),
        (("--compare", "identity"), "--buckets is missing"),
        (("--compare", "identity", "--buckets", "image_32"), "image_HxW or video_TxHxW"),
        (("--compare", "identity", "identity", "--buckets", "image_32x32"), "named twice"),
        (("--compare", "identity", "--buckets", "image_512x512"), "the largest is 64x90"),
        (("--compare", "RUN", "--buckets", "image_36x32"), "H and W multiples of 8"),
        (("--compare", "RUN", "--buckets", "video_6x32x32"), "T = 1 + a multiple of 4"),
        (("--compare", "identity", "--buckets", "image_32x32", "--inception", "absent.pth"), "absent.pth"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments, told, run, folder, tmp_path):
    arguments = [str(run) if argument == "RUN" else argument for argument in arguments]
    code, printed, err = run_command(*arguments, "--data", folder, "--out", tmp_path)
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert code == 2 and not printed and len(lines) == 1 and told in lines[0]
    assert "Traceback" not in err and not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(("data", "told"), [("/no/such/folder", "no such folder"), ("tfds:absent", "absent")])
def test_data_that_is_not_there_is_told_in_one_line(data, told, tmp_path):
    code, _, err = run_command(
        "--compare", "identity", "--data", data, "--buckets", "image_32x32", "--out", tmp_path
    )
    assert code == 2 and told in err and "--data" in err and len(err.strip().splitlines()) == 1
