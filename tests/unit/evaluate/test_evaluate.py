"""An evaluation reads every sample once and writes all scores with their settings; mistakes are one line."""

import contextlib
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from skimage import data

from tests.support import media_files, saved_run
from tests.support.models import SMALLEST, randomized
from vaejax.config import defaults
from vaejax.config.schema import DataConfig
from vaejax.data.bucket import Bucket
from vaejax.data.sources import open_sources
from vaejax.evaluate import __main__ as evaluate
from vaejax.evaluate.command import summary
from vaejax.evaluate.samples import open_samples
from vaejax.rundir import latent_statistics
from vaejax.rundir.folder import RunFolder


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
    settings = DataConfig(fps=25.0)
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
    """Runs the command and returns its exit code, stdout and stderr."""
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
    config.model.update(SMALLEST)
    return saved_run.write(workdir, config, {7: randomized(**SMALLEST)[1]})


@pytest.fixture(scope="module")
def twice(run, folder, tmp_path_factory):
    """The folders of one command that ran twice."""
    folders = [tmp_path_factory.mktemp("out") for _ in range(2)]
    for out in folders:
        code, printed, message = run_command(
            "--checkpoint", run, "--compare", "identity", "linear", "jpeg:matched", "--data", folder,
            "--out", out,
        )  # fmt: skip
        assert code == 0, message
        assert str(out / "report.html") in printed
    return folders


@pytest.mark.variants
def test_two_runs_give_the_same_bytes_but_for_the_time(twice):
    contents = [json.loads((out / "results.json").read_bytes()) for out in twice]
    assert [results.pop("time")["seconds"] > 0 for results in contents] == [True, True]
    texts = [json.dumps(results, sort_keys=True) for results in contents]
    assert texts[0] == texts[1]
    pages = [(out / "report.html").read_bytes() for out in twice]
    assert pages[0] == pages[1]


@pytest.mark.variants
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
            assert found["files"] == count  # each file once
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


@pytest.mark.variants
def test_the_statistics_of_training_latents_are_kept_with_the_checkpoint(twice, run):
    stored = latent_statistics.load(run, 7)
    results = json.loads((twice[0] / "results.json").read_bytes())
    assert results["training_latents"][str(run)] == stored
    assert set(stored["buckets"]) == {"image_32x32", "video_5x32x32"} and len(stored["mean"]) == 4
    assert len(stored["buckets"]["image_32x32"]["kl"]) == 4


@pytest.mark.variants
def test_without_data_a_run_is_scored_on_what_it_held_out(run, tmp_path):
    code, _, message = run_command(
        "--checkpoint", run, "--out", tmp_path, "--buckets", "image_32x32", "--samples", 6, "--batch", 3
    )  # fmt: skip
    assert code == 0, message
    results = json.loads((tmp_path / "results.json").read_bytes())
    assert results["results"]["image_32x32"][str(run)]["samples"] == 6  # few files, cut several times
    table = open_sources(RunFolder(run).read_config().data)[0].table.to_pylist()
    held_out = [row for row in table if row["held_out"] and row["frames"] == 1 and row["width"] >= 32]
    assert results["results"]["image_32x32"][str(run)]["files"] == len(held_out) < 6
    assert results["settings"]["data"] == "held out by the run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--checkpoint and --compare are missing; accepted: --checkpoint=DIR"),
        (("--compare", "jpeg:101", "--buckets", "image_32x32"), "jpeg:1 to jpeg:100"),
        (("--compare", "identity"), "--buckets is missing"),
        (("--compare", "identity", "--buckets", "image_32"), "image_HxW or video_TxHxW"),
        (("--compare", "identity", "identity", "--buckets", "image_32x32"), "named twice"),
        (("--compare", "identity", "--buckets", "image_512x512"), "the largest is 64x90"),
        (("--compare", "RUN", "--buckets", "image_36x32"), "H and W multiples of 8"),
        (("--compare", "RUN", "--buckets", "video_6x32x32"), "T = 1 + a multiple of 2"),
        (("--compare", "identity", "--buckets", "image_32x32", "--inception", "absent.pth"), "absent.pth"),
    ],
)
def test_a_mistake_is_reported_in_one_line(arguments, message, run, folder, tmp_path):
    arguments = [str(run) if argument == "RUN" else argument for argument in arguments]
    code, printed, err = run_command(*arguments, "--data", folder, "--out", tmp_path)
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert code == 2 and not printed and len(lines) == 1 and message in lines[0]
    assert "Traceback" not in err and not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("data", "message"), [("/no/such/folder", "no such folder"), ("tfds:absent", "absent")]
)
def test_missing_data_is_reported_in_one_line(data, message, tmp_path):
    code, _, err = run_command(
        "--compare", "identity", "--data", data, "--buckets", "image_32x32", "--out", tmp_path
    )
    assert code == 2 and message in err and "--data" in err and len(err.strip().splitlines()) == 1


def test_the_console_shows_units_intervals_and_the_number_of_samples():
    def score(value, spread):
        return {"value": value, "low": value - spread, "high": value + spread, "samples": 12}

    scores = {"psnr": score(25.314, 1.2), "bits_per_pixel": score(4.0, 0)}
    exact = {
        "psnr": score(float("inf"), 0),
        "rfvd_i3d": score(float("nan"), 0),
        "bits_per_pixel": score(24.0, 0),
    }
    results = {
        "codecs": ["runs/demo", "identity"],
        "buckets": ["image_32x32"],
        "results": {
            "image_32x32": {
                "runs/demo": {"scores": scores, "samples": 12, "files": 3},
                "identity": {"scores": exact, "samples": 12, "files": 3},
            }
        },
        "time": {"seconds": 71.6},
    }
    assert summary(results).splitlines() == [
        "image_32x32, n = 12 samples of 3 files, scores [95% interval]",
        "             PSNR dB               rFVD  bits per pixel",
        "  runs/demo  25.31 [24.11, 26.51]  -     4.000",
        "  identity   inf                   nan   24.000",
        "evaluated 2 codecs on 12 samples in 72 s",
    ]


def test_a_folder_that_does_not_exist_is_named(folder, tmp_path):
    code, _, err = run_command("--checkpoint", "runs/dmo", "--data", folder, "--out", tmp_path)
    assert code == 2 and "error: codec 'runs/dmo': no such folder or codec; accepted: " in err
