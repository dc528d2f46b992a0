"""The page shows what the folders of runs hold, whatever state they are in."""

import base64
import io
import json
import os
import re
import threading
import time

import numpy as np
import pytest
from PIL import Image
from skimage import data

from vaejax.config import check, defaults
from vaejax.rundir import panels
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.metrics import JsonlWriter
from vaejax.watch import charts, reader, render
from vaejax.watch.__main__ import main
from vaejax.watch.reader import State

IMAGE, VIDEO = "image_64x64", "video_9x64x64"


def make(path, steps=60, buckets=(IMAGE,), **changes):
    """A folder of a run that has only begun."""
    config = defaults()
    config.steps, config.log_every, config.eval.every = steps, 5, 20
    config.loss.perceptual.start = 37
    config.data.buckets = {name: {"batch": 8, "weight": 1.0, "every": 1} for name in buckets}
    for key, value in changes.items():
        config.optim[key] = value
    folder = RunFolder.create(str(path))
    folder.write_config(check(config))
    return folder


def train(folder, steps, bucket=IMAGE, psnr=None, linear=27.0):
    """Logs training up to `steps`, and evaluations with these scores, {step: PSNR}."""
    writer = JsonlWriter(folder.metrics, steps)
    for step in range(5, steps + 1, 5):
        writer.write_scalars(
            step,
            {f"train/{bucket}/nll": 1 / step, "train/all/step_seconds": 2.0, "train/all/data_wait": 0.25},
        )
    for step, value in (psnr or {}).items():
        scores = {"psnr": value, "psnr_linear": linear, "ssim": 0.8, "lpips_alexnet": 0.125}
        scores |= {"samples": 32, "files": 2}
        writer.write_scalars(step, {f"eval/{bucket}/{name}": score for name, score in scores.items()})
    writer.close()


def page_of(*folders, every=10):
    now = time.time()
    return render.html([reader.read(str(folder.path), now) for folder in folders], now, every)


def rows(text):
    """The text of the cells of each row of the page's tables."""
    return [
        [" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", text)
    ]


def figure(text, title):
    return next(part for part in re.findall(r"<figure>.*?</figure>", text) if title in part)


def test_the_page_shows_scores_and_their_distance_from_the_linear_codec(tmp_path):
    folder = make(tmp_path / "run")
    train(folder, 40, psnr={10: 20.5, 20: 26.25, 40: 25.0})
    text = page_of(folder)
    assert [IMAGE, "40", "25.00", "-2.00", "26.25 (step 20)", "0.8000", "0.125", "32", "2"] in rows(text)
    chart = figure(text, "PSNR")
    assert "held out 25.00" in chart and "linear codec 27.00" in chart
    (line,) = re.findall(r"<polyline points='([^']*)' fill=none stroke='var\(--c0\)' stroke-width=2 ", chart)
    assert len(line.split()) == 3
    (dashed,) = re.findall(r"<polyline points='([^']*)'[^>]*dasharray", chart)
    assert (dashed.split()[0].split(",")[0], len({point.split(",")[1] for point in dashed.split()})) == (
        "52.0",
        1,
    )
    assert dashed.split()[-1].split(",")[0] == line.split()[-1].split(",")[0]  # from step 0 to the latest
    assert "step 40 of 60, 40s of training left" in text
    assert "latest 25<" in figure(text, "time spent waiting for data, %")


def test_the_alarms_of_the_latest_evaluation_are_shown(tmp_path):
    folder = make(tmp_path / "run")
    train(folder, 40, psnr={20: 26.25, 40: 25.0})
    assert "Verdicts" not in page_of(folder)  # metrics of a version without verdicts
    for step, sentences in ((20, ["gets worse"]), (40, ["is <2> dB below", "overfits"])):
        with open(folder.metrics, "a") as file:
            for bucket, texts in ((IMAGE, sentences), ("mean", ["the updates waited"] if step == 40 else [])):
                line = {"step": step, "split": "eval", "bucket": bucket, "verdict": texts}
                file.write(json.dumps(line) + "\n")
    text = page_of(folder)
    assert re.findall(r"<li>(.*?)(?=<li>|</ul>)", text) == [
        f"{IMAGE} is &lt;2&gt; dB below",
        f"{IMAGE} overfits",
        "the updates waited",
    ]
    with open(folder.metrics, "a") as file:
        file.write(json.dumps({"step": 60, "split": "eval", "bucket": IMAGE, "verdict": []}) + "\n")
    assert "step 60: no alarm" in page_of(folder)


def test_damaged_lines_and_numbers_that_are_not_finite_are_passed_over(tmp_path):
    folder = make(tmp_path / "run")
    train(folder, 20, psnr={20: float("nan")})
    damaged = b'2\n[]\n\0\0\n{"step": "x"}\n{"step": 25, "split": "train", "bucket": "all", "nll": null}\n'
    folder.metrics.write_bytes(folder.metrics.read_bytes() + damaged + b'{"step": 30, "split": "tra')
    run = reader.read(str(folder.path), time.time())
    assert run.step == 25
    assert run.curve("train", IMAGE, "nll") == [(step, 1 / step) for step in (5.0, 10.0, 15.0, 20.0)]
    assert [IMAGE, "&ndash;", "not evaluated", *["&ndash;"] * 6] in rows(page_of(folder))


def test_runs_of_different_buckets_share_axes_and_list_their_differences(tmp_path):
    first = make(tmp_path / "x" / "run", buckets=(IMAGE, VIDEO))
    second = make(tmp_path / "y" / "run", buckets=(IMAGE,), learning_rate=0.5)
    train(first, 40, psnr={20: 26.0, 40: 26.5})
    train(first, 40, VIDEO)  # this bucket replaces the lines of the other one
    train(second, 20, psnr={20: 25.0})
    text = page_of(first, second)
    table = rows(text)
    assert ["optim.learning_rate", "0.0003", "0.5"] in table
    assert [f"data.buckets.{VIDEO}.batch", "8", "&ndash;"] in table
    keys = {row[0] for row in table if row and row[0].startswith(("data.", "optim.", "steps", "eval."))}
    assert keys == {
        "optim.learning_rate",
        *(f"data.buckets.{VIDEO}.{f}" for f in ("batch", "weight", "every")),
    }
    assert [IMAGE, "y/run", "20", "25.00", "-2.00", "25.00 (step 20)", "0.8000", "0.125", "32", "2"] in table
    assert [VIDEO, "x/run", "&ndash;", "not evaluated", *["&ndash;"] * 6] in table
    assert not any(row[:2] == [VIDEO, "y/run"] for row in table)
    both = figure(text, "time spent waiting")
    assert "x/run 25" in both and "y/run 25" in both and both.count("<polyline") == 2


def test_runs_of_one_configuration_do_not_differ(tmp_path):
    text = page_of(make(tmp_path / "a"), make(tmp_path / "b"))
    assert "Differences in the configuration</h2><p class=soft>None." in text


@pytest.mark.parametrize(
    ("steps", "psnr", "checkpoint", "age", "state"),
    [
        (0, {}, None, 1, State.STARTING),
        (10, {}, None, 1, State.TRAINING),
        (20, {}, None, 1, State.EVALUATING),
        (20, {20: 25.0}, None, 1, State.TRAINING),
        (10, {}, None, 700, State.STALLED),
        (20, {}, None, 700, State.EVALUATING),  # an evaluation may take ten times as long,
        (35, {}, None, 700, State.TRAINING),  # and so may compilation when a term starts
        (35, {}, None, 7000, State.STALLED),
        (60, {60: 25.0}, 40, 1, State.TRAINING),
        (60, {60: 25.0}, 60, 9999, State.DONE),
    ],
)
def test_the_state_of_a_run(tmp_path, steps, psnr, checkpoint, age, state):
    folder = make(tmp_path / "run")
    if steps:
        train(folder, steps, psnr=psnr)
    if checkpoint:
        (folder.path / "checkpoints" / str(checkpoint)).mkdir(parents=True)
    run = reader.read(str(folder.path), time.time() + age)
    assert run.state is state and abs(run.age - age) < 5


def test_bad_steps_and_unreadable_files_are_listed(tmp_path):
    folder = make(tmp_path / "run")
    skipped = [{"step": step, "samples": {IMAGE: ["/some/<a>.png@0.000"]}} for step in range(12)]
    lines = [*skipped, {"step": 12, "back_to": 5, "positions": {}}]
    folder.bad_steps.write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"path": f"/some/{i}.png", "reason": "truncated", "count": i} for i in range(3)]
    folder.bad_samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = re.findall(r"<li>(.*?)(?=<li>|</ul>)", page_of(folder))
    assert items[0] == "step 12: rolled back to step 5"
    assert items[1] == f"update 11 skipped; samples of {IMAGE}: &lt;a&gt;.png@0.000"
    assert len(items) == 10 + 3  # the latest ten, and the files
    assert items[10] == "/some/2.png: truncated (met 2x)"
    assert "<p>13, of which 10 are listed" in page_of(folder)


@pytest.mark.parametrize(
    ("bucket", "shape", "written", "shown", "channels"),
    [
        (IMAGE, (1, 64, 64), range(20, 240, 20), (20, 60, 80, 120, 140, 180, 200), 3),
        ("video_9x32x96", (9, 32, 96), (20, 40), (20, 40), 3),
        (IMAGE, (1, 64, 64), (20, 40), (20, 40), 4),
    ],
)
def test_panels_over_time_show_the_original_and_each_reconstruction(
    tmp_path, bucket, shape, written, shown, channels
):
    folder = make(tmp_path / "run", buckets=(bucket,))
    frames, height, width = shape
    crops = [data.astronaut()[20 * i : 20 * i + height, 100 : 100 + width] for i in range(4)]
    original = np.stack([np.stack([np.roll(crop, t, 1) for t in range(frames)]) for crop in crops])
    opaque = np.full((*original.shape[:-1], channels - 3), 255, np.uint8)
    for step in written:
        columns = (original, np.full_like(original, step), original // 2)
        columns = (np.concatenate([column, opaque], -1) for column in columns)
        panels.write_panels(folder.path, step, bucket, *columns)
    torn = folder.path / "panels" / "240" / f"{bucket}.png"
    torn.parent.mkdir()
    torn.write_bytes((torn.parents[1] / "20" / torn.name).read_bytes()[:9000])
    text = page_of(folder)
    assert re.findall(r"<th[^>]*>step (\d+)", text) == [str(step) for step in shown]
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB")).astype(float)
        for code in re.findall(r"src='data:image/webp;base64,([^']*)'", text)
    ]
    first, *over_time, linear, _ = pictures
    assert {picture.shape for picture in pictures} == {(3 * 2 * round(128 * height / width), 256, 3)}
    for step, picture in zip(shown, over_time, strict=True):
        assert abs(picture - step).max() < 6
    middle = original[:3, frames // 2].reshape(-1, width, 3)
    small = np.asarray(Image.fromarray(middle).resize(first.shape[1::-1]))
    assert abs(first - small).mean() < 6 and abs(linear - small / 2).mean() < 6


def test_long_curves_are_averaged(tmp_path):
    curve = [(float(step), float(step % 2)) for step in range(30_000)]
    curve[7] = (7.0, float("nan"))
    thin = charts._thinned(curve)
    assert len(thin) == charts.POINTS and thin[-1][0] == 29_999
    np.testing.assert_allclose([y for _, y in thin[1:]], 0.5)
    assert thin[0][1] == 49 / 99  # of 100 values, one is missing


def test_the_page_needs_no_other_file_and_keeps_its_place(tmp_path):
    folder = make(tmp_path / "<run> & 'more'")
    train(folder, 20, psnr={20: 25.0})
    text = page_of(folder)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert not re.search(r"<(link|iframe|object)|url\(|@import|<script src", text)
    assert "<run>" not in text and "&lt;run&gt; &amp; &#x27;more&#x27;" in text
    assert "setTimeout(again, 10000)" in text and "<script" not in page_of(folder, every=0)


@pytest.mark.variants
def test_the_command_refreshes_the_page_until_the_run_is_done(tmp_path, capsys):
    folder = make(tmp_path / "run")
    train(folder, 20)
    page = folder.path / "watch.html"
    seen = []

    def finish():
        while not page.exists():
            time.sleep(0.02)
        seen.append(page.read_text())
        train(folder, 60, psnr={60: 26.0})
        (folder.path / "checkpoints" / "60").mkdir(parents=True)

    thread = threading.Thread(target=finish)
    thread.start()
    assert main([str(folder.path), "--every=1"]) == 0
    thread.join()
    assert "step 20 of 60" in seen[0] and "<script" in seen[0]
    assert "step 60 of 60" in page.read_text() and "<script" not in page.read_text()
    assert capsys.readouterr().err == f"page: {page}, refreshed every 1 s; Ctrl-C stops\n"


def test_the_page_of_a_checkpoint_is_that_of_its_run(tmp_path):
    folder = make(tmp_path / "run")
    checkpoint = folder.path / "checkpoints" / "20"
    checkpoint.mkdir(parents=True)
    assert main([str(checkpoint), "--once"]) == 0
    assert (folder.path / "watch.html").exists() and os.listdir(checkpoint) == []


def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path, capsys):
    for name in ("missing", "."):
        assert main([str(tmp_path / name), "--once"]) == 2
        error = capsys.readouterr().err
        assert (
            error.count("\n") == 1
            and "config.json" in error
            and "; accepted: the --workdir of a run" in error
        )
    folder = make(tmp_path / "run")
    assert main([str(folder.path), "--once", f"--out={tmp_path}"]) == 2
    assert (
        capsys.readouterr().err
        == f"error: --out={tmp_path}: a folder; accepted: a file, such as watch.html\n"
    )
