"""Whole runs of shipped configurations, shrunk, on generated media."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from tests.support import media_files
from tests.support.models import SMALLEST
from vaejax.configs import demo
from vaejax.train.loop import fit

ROOT = pathlib.Path(__file__).parents[2]
# The smallest frames that LPIPS by AlexNet accepts.
BUCKETS = {"image_32x32": {"batch": 2}, "video_5x32x32": {"batch": 1}}
SETTINGS = {
    "eval.linear_samples": 4,
    "eval.latent_samples": 4,
    "loss.perceptual.network": "alexnet",  # VGG16 would take longer than everything else
}


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Six photos, two clips of 4 s and three broken files."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    for i in range(6):
        small = rng.integers(256, size=(9, 12, 3), dtype=np.uint8)
        Image.fromarray(small).resize((160, 120), Image.BICUBIC).save(folder / f"photo_{i}.jpg", quality=90)
    for i in range(2):
        wide = np.asarray(
            Image.fromarray(rng.integers(256, size=(8, 24, 3), dtype=np.uint8)).resize(
                (240, 80), Image.BICUBIC
            )
        )
        media_files.write_clip(folder / f"clip_{i}.mp4", [wide[:, t : t + 120] for t in range(96)], rate=24)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video")
    return folder


def command(workdir, media, *flags, config="demo.py:tiny"):
    return [
        sys.executable,
        "-m",
        "vaejax.main",
        f"--config={ROOT}/vaejax/configs/{config}",
        f"--workdir={workdir}",
        f"--config.data.media={media}",
        *(f"--config.{key}={value}" for key, value in SETTINGS.items()),
        *flags,
    ]


def run(workdir, media, *flags, **options):
    done = subprocess.run(
        command(workdir, media, *flags, **options),
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def environment():
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(ROOT / "build" / "xla")}


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    return [m["loss"] for m in metrics(workdir) if "loss" in m]


def saved(workdir, step):
    """The arrays of a checkpoint by name, and the number of samples that it has drawn."""
    path = workdir / "checkpoints" / str(step)
    restore = ocp.StandardCheckpointer().restore
    items = ("state", "discriminator_image", "discriminator_video")
    state = [restore(path.absolute() / item) for item in items]
    leaves = {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(state)}
    return leaves, json.loads((path / "data" / "metadata").read_text())


def assert_same_end(one, two, step):
    (a, position_a), (b, position_b) = saved(one, step), saved(two, step)
    assert position_a == position_b
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


FLAGS = (
    "--config.steps=20",
    "--config.checkpoint.every=7",
    "--config.eval.every=20",
    f"--config.data.buckets={json.dumps(BUCKETS)}",
)


@pytest.fixture(scope="module")
def small(tmp_path_factory, media):
    """A run of a small network in this process."""
    workdir = tmp_path_factory.mktemp("small")
    config = demo.get_config("tiny")
    config.data.media = str(media)
    config.data.buckets = {name: {"batch": 8} for name in BUCKETS}
    config.model.update(SMALLEST)
    config.loss.weights.perceptual = config.loss.weights.adversarial = 0.0
    config.optim.warmup = 0
    config.update_from_flattened_dict(SETTINGS | {"steps": 5, "eval.every": 5, "panels.every": 5})
    assert fit(config, str(workdir))
    return workdir


@pytest.fixture(scope="module")
def straight(tmp_path_factory, media):
    """An uninterrupted run of twenty steps in a process of its own."""
    workdir = tmp_path_factory.mktemp("straight")
    run(workdir, media, *FLAGS)
    return workdir


def test_a_run_leaves_the_files_that_the_readme_lists(small):
    lines = metrics(small)
    trained = [line for line in lines if line["split"] == "train" and line["bucket"] == "video_5x32x32"]
    assert [line["step"] for line in trained] == list(range(1, 6))
    assert {"loss", "nll", "kl"} <= trained[0].keys()
    evaluated = {line["bucket"]: line for line in lines if line["split"] == "eval"}
    for bucket in ("image_32x32", "video_5x32x32"):
        assert {"psnr", "psnr_raw", "psnr_linear", "ssim", "nll", "kl"} <= evaluated[bucket].keys()
        assert any(name.startswith("spread_encoder_level_") for name in evaluated[bucket])
        assert (small / "panels" / "5" / f"{bucket}.png").stat().st_size > 1000
    assert (small / "panels" / "5" / "video_5x32x32.mp4").exists()
    assert json.loads((small / "config.json").read_text())["model"]["size"] == "tiny"
    assert list((small / "tensorboard").iterdir())
    assert "encoder/conv_in/kernel" in (small / "parameters.txt").read_text()
    bad = [json.loads(line) for line in (small / "bad_samples.jsonl").read_text().splitlines()]
    assert {pathlib.Path(line["path"]).name for line in bad} == {"broken.jpg", "empty.mp4", "text.mp4"}
    assert all(line["reason"] and line["count"] >= 1 for line in bad)


def test_both_buckets_learn(small):
    """Five steps are few, but they must lower the negative log-likelihood of each bucket."""
    for bucket in ("image_32x32", "video_5x32x32"):
        nlls = [m["nll"] for m in metrics(small) if m["split"] == "train" and m["bucket"] == bucket]
        assert nlls[-1] < nlls[0]


def wait_for(condition, process, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)


def stop(workdir, media, number, step, *flags):
    """Starts or resumes the run and sends a signal after a step; returns exit code and stderr."""
    log = workdir / "metrics.jsonl"
    before = log.stat().st_ino if log.exists() else 0  # a resumed run replaces the file

    def past():
        if not log.exists() or log.stat().st_ino == before or not metrics(workdir):
            return False
        return metrics(workdir)[-1]["step"] >= step and (workdir / "checkpoints" / "7").exists()

    with subprocess.Popen(
        command(workdir, media, *FLAGS, *flags),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(past, process)
        process.send_signal(number)
        _, stderr = process.communicate()
    assert not (workdir / "checkpoints" / "20").exists()
    return process.returncode, stderr


@pytest.mark.runs
def test_a_run_stopped_in_every_way_and_resumed_ends_in_the_same_bits(tmp_path, media, straight):
    """The run is killed after a checkpoint, then stopped by each signal after saving; workers vary."""
    stop(tmp_path, media, signal.SIGKILL, 8)
    for number, step, flags in ((signal.SIGTERM, 9, ["--config.data.workers=2"]), (signal.SIGINT, 12, [])):
        code, stderr = stop(tmp_path, media, number, step, *flags)
        assert code == 75, stderr
        assert "run the same command to continue" in stderr
    run(tmp_path, media, *FLAGS, "--config.data.workers=2")
    assert_same_end(tmp_path, straight, 20)
    steps = [(m["step"], m["split"], m["bucket"]) for m in metrics(tmp_path)]
    assert len(steps) == len(set(steps))  # no step counted twice
    assert losses(tmp_path) == losses(straight)


@pytest.mark.runs
def test_a_second_run_in_the_same_workdir_is_refused_and_the_first_goes_on(tmp_path, media, straight):
    options = {"cwd": ROOT, "env": environment(), "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(tmp_path, media, *FLAGS), **options) as first:
        wait_for((tmp_path / "config.json").exists, first)
        second = subprocess.run(command(tmp_path, media, *FLAGS), **options)
        assert first.poll() is None and second.returncode == 2
        assert second.stderr.startswith(f"error: --workdir={tmp_path}: process {first.pid} on ")
        assert first.communicate()[1] and first.returncode == 0
    assert_same_end(tmp_path, straight, 20)
    assert losses(tmp_path) == losses(straight)


def test_another_model_in_the_same_workdir_is_refused(small, media):
    done = subprocess.run(
        command(small, media, *FLAGS),
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 2
    assert "model.widths = (24, 24, 48), but the run in this workdir has (8,)" in done.stderr


@pytest.mark.runs  # the test of launch/slurm.sbatch does the same
def test_the_flagship_shrunk_trains_images_and_videos_in_one_update(tmp_path, media):
    run(
        tmp_path,
        media,
        "--config.steps=2",
        "--config.log_every=1",
        "--config.eval.samples=2",
        *(f"--config.data.buckets.{b}.batch=0" for b in ("image_64x64", "image_96x160", "video_9x48x80")),
        config="joint.py:tiny",
    )
    first = {m["bucket"] for m in metrics(tmp_path) if m["split"] == "train" and m["step"] == 1}
    assert {"image_48x80", "video_5x48x80", "all"} <= first
