"""The sink for Weights & Biases, by the real package offline: each step once, whatever kills a session."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.support import wandb_log
from vaejax.rundir.metrics import JsonlWriter
from vaejax.rundir.panels import write_panels

ROOT = pathlib.Path(__file__).parents[3]
SESSION = """
import os, pathlib, signal, sys, time
import psutil
from vaejax.config import check, defaults
from vaejax.rundir import wandb_sink
from vaejax.rundir.folder import RunFolder

folder = RunFolder(sys.argv[1])
config = defaults()
config.data.buckets = {"image_32x32": {"batch": 8}}
config.report.wandb = "project"
exec(sys.argv[2])
with wandb_sink.opened(folder, check(config)) as sink:
    service = next((p for p in psutil.Process().children() if "wandb-core" in p.name()), None)
    exec(sys.argv[3])
"""
KILLED_WHILE_WRITING = """
sink.send()
while not any(path.stat().st_size for path in folder.wandb.glob("*/*.wandb")):
    time.sleep(0.01)
os.kill(service.pid, signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""
LOSES_ITS_SERVICE = """
service.kill()
service.wait()
for _ in range(3):
    sink.send()
print("went on")
"""


def session(workdir, work="", before="", **environment):
    """A session in a process of its own, which runs `work` with a sink, and other code `before` it."""
    command = [sys.executable, "-c", SESSION, str(workdir), before, work]
    environment = {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"} | environment
    return subprocess.run(
        command, env=os.environ | environment, cwd=workdir, capture_output=True, text=True, timeout=120
    )


def report(workdir, first, last, names=3):
    """Writes numbers of some steps, as a run resumed at `first` - 1 does."""
    writer = JsonlWriter(workdir / "metrics.jsonl", first - 1)
    rng = np.random.default_rng(last)
    for step in range(first, last + 1):
        scalars = {f"train/image_32x32/number_{i}": rng.normal() for i in range(names)}
        writer.write_scalars(step, scalars, {"eval/mean/verdict": ["no alarm"]})
    writer.write_scalars(last, {"eval/image_32x32/psnr": np.inf, "eval/image_32x32/kl": np.float32(0.1)})
    writer.close()


def complete(workdir, step):
    (workdir / "checkpoints" / str(step)).mkdir(parents=True)


def ended(done):
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_a_step_is_sent_once_a_checkpoint_covers_it(tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (1, 5, 32, 32, 3), np.uint8)
    report(tmp_path, 1, 6)
    for step in (3, 5):
        write_panels(tmp_path, step, "video_5x32x32", clip, clip)
    (tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp-1").mkdir(parents=True)  # still being written
    complete(tmp_path, 4)
    assert ended(session(tmp_path)) == [f"wandb: offline; upload with: wandb sync {tmp_path}/wandb"]
    assert wandb_log.together(tmp_path) == wandb_log.expected(tmp_path, 4)
    complete(tmp_path, 6)
    ended(session(tmp_path, "sink.send()"))
    found = wandb_log.together(tmp_path)
    assert found == wandb_log.expected(tmp_path, 6)
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    assert found[5].keys() > {"panels/video_5x32x32", "clips/video_5x32x32"}
    assert found[6]["eval/image_32x32/psnr"] == float("inf")


def test_the_sessions_continue_one_run_with_its_configuration(tmp_path):
    for _ in range(2):
        ended(session(tmp_path))
    runs = [r.run for s in wandb_log.sessions(tmp_path) for r in s if r.HasField("run")]
    assert len(runs) == 2 and runs[0].run_id == runs[1].run_id and runs[1].resume
    assert {(run.project, run.display_name) for run in runs} == {("project", tmp_path.name)}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["data"]["buckets"] == {"image_32x32": {"batch": 8}}


def test_what_a_killed_session_lost_is_sent_again_and_nothing_twice(tmp_path):
    """W&B has written a part of the rows, cut within one, and the rest was only in its memory."""
    report(tmp_path, 1, 60, names=50)
    complete(tmp_path, 60)
    assert session(tmp_path, KILLED_WHILE_WRITING).returncode == -9
    kept = wandb_log.together(tmp_path)
    assert 0 < len(kept) < 60
    report(tmp_path, 61, 64)
    complete(tmp_path, 64)
    ended(session(tmp_path))
    assert wandb_log.together(tmp_path) == wandb_log.expected(tmp_path, 64)
    assert [len(wandb_log.rows(one)) for one in wandb_log.sessions(tmp_path)] == [len(kept), 64 - len(kept)]


def test_steps_that_w_and_b_holds_are_not_sent_again(tmp_path):
    """The newest checkpoint was damaged, and the offline folder was deleted after its upload."""
    report(tmp_path, 1, 8)
    complete(tmp_path, 8)
    ended(session(tmp_path))
    first = wandb_log.together(tmp_path)
    (uploaded,) = (tmp_path / "wandb").glob("offline-run-*")
    uploaded.rename(tmp_path / "uploaded")
    report(tmp_path, 5, 12)
    complete(tmp_path, 12)
    ended(session(tmp_path))
    assert sorted(first) == list(range(1, 9)) and sorted(wandb_log.together(tmp_path)) == [9, 10, 11, 12]


def test_a_run_that_starts_anew_is_another_run(tmp_path):
    report(tmp_path, 1, 4)
    complete(tmp_path, 4)
    ended(session(tmp_path))
    before = json.loads((tmp_path / "wandb.json").read_text())["id"]
    (tmp_path / "checkpoints" / "4").rmdir()
    ended(session(tmp_path, "os.mkdir(folder.path / 'checkpoints' / '4')"))
    after = json.loads((tmp_path / "wandb.json").read_text())
    assert after["id"] != before and after["sent"] == 4


def test_a_failure_of_w_and_b_is_reported_once_and_the_next_session_sends_the_rest(tmp_path):
    report(tmp_path, 1, 4)
    complete(tmp_path, 4)
    done = session(tmp_path, LOSES_ITS_SERVICE)
    assert done.returncode == 0 and "went on" in done.stdout, done.stderr
    assert done.stderr.count("W&B gets no more data in this session") == 1
    assert "Traceback" not in done.stderr
    ended(session(tmp_path))
    assert wandb_log.together(tmp_path) == wandb_log.expected(tmp_path, 4)


def test_what_was_dropped_while_w_and_b_was_disabled_is_sent_later(tmp_path):
    report(tmp_path, 1, 4)
    complete(tmp_path, 4)
    assert ended(session(tmp_path, WANDB_MODE="disabled")) == []
    ended(session(tmp_path))
    assert wandb_log.together(tmp_path) == wandb_log.expected(tmp_path, 4)


@pytest.mark.parametrize(
    ("environment", "work", "reason"),
    [
        ({"WANDB_MODE": "online"}, "", "no login"),
        ({}, "sys.modules['wandb'] = None", "the package is missing: pip install 'vaejax[wandb]'"),
        ({}, "config.report.wandb = 'a:b'", "Invalid project name 'a:b'"),
    ],
    ids=["no login", "no package", "a wrong name"],
)
def test_what_cannot_start_is_one_line(tmp_path, environment, work, reason):
    unwanted = {"WANDB_API_KEY": "", "HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    done = session(tmp_path, before=work, **unwanted, **environment)
    error = done.stderr.splitlines()[-1]
    assert done.returncode and error.startswith("vaejax.errors.InputError: report.wandb = '"), error
    assert f": {reason}" in error and "; accepted: ''" in error
