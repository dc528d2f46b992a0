"""A run that is killed and resumed sends every number and panel to Weights & Biases once, offline."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.support import media_files, wandb_log
from tests.support.faults import Fault, injecting
from tests.support.models import SMALLEST
from tests.support.processes import ROOT
from tests.support.small_run import BUCKET, small_config
from vaejax.errors import TrainingFailed
from vaejax.train.loop import fit

STEPS, SAVED = 24, 5
SETTINGS = {
    "data.buckets": json.dumps({"image_32x32": {"batch": 8}, "video_5x32x32": {"batch": 8}}),
    "data.workers": 0,
    "loss.weights.perceptual": 0.0,
    "loss.weights.adversarial": 0.0,
    "eval.linear_samples": 0,
    "eval.latent_samples": 0,
    "eval.samples": 8,
    "eval.every": 8,
    "panels.every": 4,
    "checkpoint.every": SAVED,
    "log_every": 1,
    "steps": STEPS,
    "report.wandb": "project",
} | {f"model.{name}": value for name, value in SMALLEST.items()}


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    media_files.write_photos(folder, 12)
    rng = np.random.default_rng(0)
    for i in range(2):
        wide = np.kron(rng.integers(256, size=(6, 24, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
        media_files.write_clip(folder / f"clip_{i}.mp4", [wide[:, t : t + 64] for t in range(96)], rate=24)
    return folder


def start(workdir, media):
    command = [sys.executable, "-m", "vaejax.main", "--config=demo:tiny", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    environment = {"JAX_PLATFORMS": "cpu", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / "build" / "xla")
    return subprocess.Popen(
        [*command, f"--config.data.media={media}"],
        cwd=ROOT,
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill(process, workdir, step):
    """Kills a run as soon as it has logged a step and completed the checkpoint before it."""
    saved = step // SAVED * SAVED
    while (
        not ((workdir / "checkpoints" / str(saved)).exists() or not saved)
        or f'{{"step": {step}, "split": "train", "bucket": "all"'
        not in (workdir / "metrics.jsonl").read_text()
    ):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.runs
def test_a_killed_and_resumed_run_sends_every_number_and_panel_once(tmp_path, media):
    """It is killed before its first checkpoint, and twice after one."""
    (tmp_path / "metrics.jsonl").touch()
    for step in (3, 7, 18):
        kill(start(tmp_path, media), tmp_path, step)
        assert max(wandb_log.together(tmp_path), default=-1) <= step // SAVED * SAVED  # nothing too early
    process = start(tmp_path, media)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    found = wandb_log.together(tmp_path)  # steps increase
    expected = wandb_log.expected(tmp_path, STEPS)
    assert found == expected and sorted(found) == list(range(STEPS + 1))
    assert {"train/image_32x32/nll", "train/all/goodput", "train/all/badput_lost"} < found[7].keys()
    assert {"eval/video_5x32x32/psnr", "panels/image_32x32", "clips/video_5x32x32"} < found[8].keys()
    assert len({r.run.run_id for s in wandb_log.sessions(tmp_path) for r in s if r.HasField("run")}) == 1
    last = stderr.splitlines()
    assert last[-1] == f"wandb: offline; upload with: wandb sync {tmp_path}/wandb"
    assert sum("wandb:" in line for line in last) == 1  # W&B itself prints nothing
    (line,) = [line for line in last if line.startswith("goodput: ")]
    assert "lost" in line and "stopped" in line
    shares = {key.removeprefix("train/all/"): value for key, value in found[STEPS].items() if "put" in key}
    assert 0 < shares["badput_lost"] < 1 and 0 < shares["goodput"] < shares.pop("goodput_session")
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.runs
def test_a_rollback_sends_no_step_twice_and_counts_as_lost(tmp_path, media, monkeypatch):
    """Updates 6 and 7 fail: the run returns to step 4 once and gives up; the next start has no fault."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = {"checkpoint.every": 4, "eval.every": 4, "panels.every": 3, "log_every": 1}
    settings |= {"recovery.bad_steps": 2, "recovery.rollbacks": 1, "report.wandb": "project"}
    tried = []

    def fails(step, x):
        jax.debug.callback(lambda s: tried.append(int(s)), step)
        return (step == 6) | (step == 7)

    config = small_config(media, **settings).to_dict()
    with pytest.raises(TrainingFailed, match="after 1 rollbacks"):
        fit(config, str(tmp_path), injecting(Fault("generator", BUCKET, fails)))
    assert wandb_log.together(tmp_path) == wandb_log.expected(tmp_path, 4)
    assert fit(config, str(tmp_path))
    found = wandb_log.together(tmp_path)
    assert found == wandb_log.expected(tmp_path, 12) and sorted(found) == list(range(13))
    assert found[5]["train/all/badput_lost"] > 0
    assert tried.count(5) == 2
