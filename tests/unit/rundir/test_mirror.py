"""A run's files in a bucket are those of its folder on disk, whatever was killed and whatever failed."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest

import vaejax
from tests.support import object_stores, processes, saved_run
from tests.support.models import SMALL, randomized
from vaejax.codec.__main__ import main as codec
from vaejax.codec.load import fingerprint
from vaejax.configs import demo
from vaejax.errors import InputError
from vaejax.export.__main__ import main as export
from vaejax.rundir import checkpoint, latent_statistics, mirror
from vaejax.rundir.checkpoint import Checkpoints, SavedCheckpoints
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.metrics import JsonlWriter
from vaejax.rundir.mirror import Mirror
from vaejax.runtime import storage


def objects(url):
    return {entry.path for entry in storage.walk(url, "a test")}


def test_metrics_are_those_of_a_run_on_disk_whatever_is_killed(gcs, tmp_path, monkeypatch):
    """Sessions of random length; each starts at a checkpoint, before which everything was uploaded."""
    monkeypatch.setattr(mirror, "PARTS", 3)
    url, rng, saved, on_disk = f"{gcs}/{tmp_path.name}", random.Random(3), 0, tmp_path / "metrics.jsonl"
    for session in range(6):
        files = Mirror(url)  # another machine
        files.pull(("metrics",))
        files.merge_parts()
        writers = [JsonlWriter(path, saved) for path in (files.path / "metrics.jsonl", on_disk)]
        files.restart(saved)
        for step in range(saved + 1, saved + rng.randint(2, 9)):
            for split in ("train", "eval"):
                for writer in writers:
                    writer.write_scalars(step, {f"{split}/all/session": session})
                if rng.random() < 0.4:
                    files.push(everything=False)
            if rng.random() < 0.4:
                files.push()
                saved = step
        if session == 5:
            files.push()
    reader = Mirror(url)
    reader.pull(("metrics",))
    assert (reader.path / "metrics.jsonl").read_bytes() == on_disk.read_bytes()
    steps = [json.loads(line)["step"] for line in on_disk.read_text().splitlines()]
    assert len(steps) > 10 and steps == sorted(2 * list(set(steps)))


def test_only_what_changed_is_written_and_not_too_often(gcs, tmp_path):
    url = f"{gcs}/{tmp_path.name}"
    files = Mirror(url)
    (files.path / "panels" / "4").mkdir(parents=True)
    (files.path / "panels" / "4" / "a b#1?.png").write_bytes(b"picture")
    (files.path / "goodput.json").write_text("1")
    (files.path / ".unfinished.part").write_text("")
    files.push()
    assert objects(url) == {"panels/4/a b#1?.png", "goodput.json"} and files.writes == 2
    files.push()
    assert files.writes == 2
    (files.path / "goodput.json").write_text("22")
    files.push(everything=False)  # within EVERY seconds
    assert files.writes == 2
    files.push()
    assert files.writes == 3 and storage.read(f"{url}/goodput.json") == b"22"
    other = Mirror(url)
    assert other.pull(("panels",)) and (other.path / "panels" / "4" / "a b#1?.png").read_bytes() == b"picture"
    other.push()
    assert other.writes == 0  # it has nothing new


def test_a_reader_skips_large_files_and_names_a_url_without_a_run(gcs, tmp_path, monkeypatch):
    url = f"{gcs}/{tmp_path.name}"
    monkeypatch.setattr(mirror, "SMALL", 10)
    for name, content in (("config.json", b"{" + b" " * 20 + b"}"), ("init/a", b"1"), ("init/b", b"1" * 11)):
        storage.file_system(url).pipe_file(f"{url}/{name}", content)
    folder = RunFolder(url)
    assert folder.name == url and (folder.path / "config.json").exists()
    assert [path.name for path in folder.init.iterdir()] == ["a"]
    for name in (f"{gcs}/nothing-here", "gs://nowhere/run"):
        with pytest.raises(InputError, match=rf"^{name}: no such folder; accepted: [^\n]*$"):
            vaejax.load(name)


@pytest.fixture(scope="module")
def run(gcs):
    """A run in a bucket with two checkpoints, of which one was damaged and one never completed since."""
    url = f"{gcs}/run"
    files, config = Mirror(url), demo.get_config("tiny")
    config.model.update(SMALL)
    averages = {step: saved_run.scaled(randomized()[1], 1 - step / 20) for step in (3, 7, 9)}
    saved_run.write(files.path, config, averages)
    for step in averages:
        latent_statistics.store(files.path, step, {"mean": [0.1, -0.2, 0.3, 0.0], "std": [1.0] * 4})
    files.push()
    storage.file_system(url).rm(f"{url}/checkpoints/9/commit_success.txt")
    return url


def test_a_run_in_a_bucket_is_read_as_one_on_disk(run, tmp_path):
    assert SavedCheckpoints(mirror.local(run)).steps() == [3, 7]
    for name, factor in ((run, 0.65), (f"{run}/checkpoints/3", 0.85)):
        vae = vaejax.load(name)
        assert vae.fingerprint == fingerprint(saved_run.scaled(randomized()[1], factor))
        np.testing.assert_allclose(vae.mean, [0.1, -0.2, 0.3, 0.0], rtol=1e-6)
    out = f"{run}-export"
    assert export([run, out]) == 0
    assert vaejax.load(out).fingerprint == vaejax.load(run).fingerprint
    assert {"config.json", "model.safetensors", "README.md"} <= objects(out)


def test_refused_urls_are_one_line(run, capsys):
    out = f"{run}-export"
    storage.file_system(out).pipe_file(f"{out}/other", b"")
    assert export([run, out]) == 2
    assert capsys.readouterr().err == (
        f"error: OUT={out}: contains other files; accepted: a new folder, or one on disk\n"
    )
    assert codec(["decode", run, "out", f"--model={run}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: IN = {run}: a URL; accepted: a file or folder on disk")


def test_the_remains_of_a_killed_save_are_removed_and_damage_is_moved(run, capsys):
    """Step 9 has no mark of completion; of step 7, an array's file is lost."""
    folder = mirror.local(run)
    store = storage.file_system(run)
    store.rm(next(f"gs://{path}" for path in store.find(f"{run}/checkpoints/7/state/d")))
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.newest_whole(lambda step: (checkpoints.verify(step), step)[1]) == 3
        assert "damaged checkpoint" in capsys.readouterr().err
    assert {path.split("/")[0] for path in objects(f"{run}/checkpoints")} == {"3"}
    assert {path.split("/")[0] for path in objects(f"{run}/damaged")} == {"7"}


def test_orbax_refuses_s3_in_one_line(s3):
    """If this fails, Orbax accepts s3://, and docs/scaling.md should say so."""
    files = Mirror(f"{s3}/run")
    with pytest.raises(InputError, match=rf"^--workdir={s3}/run: Orbax [^\n]*; accepted: gs://BUCKET/RUN"):
        checkpoint.check_saves(files.path)
    assert not objects(f"{s3}/run")


def test_a_trial_save_leaves_nothing(gcs, tmp_path):
    url = f"{gcs}/{tmp_path.name}"
    files = Mirror(url)
    checkpoint.check_saves(files.path)
    assert not objects(url)
    storage.file_system(url).pipe_file(f"{url}/checkpoints/5/commit_success.txt", b"")
    checkpoint.check_saves(files.path)  # nothing to try: the run has saved before


SESSION = """
import pathlib, sys
import numpy as np
from vaejax.rundir.checkpoint import Checkpoints
from vaejax.rundir.lease import Lease
from vaejax.rundir.metrics import JsonlWriter
from vaejax.rundir.mirror import Mirror

url = sys.argv[1]
lease = Lease(url)
files = Mirror(url)
files.pull(("metrics",))
writer = JsonlWriter(files.path / "metrics.jsonl")
files.restart(0)
with Checkpoints(files.path, keep=2) as checkpoints:
    for step in range(1, 31):
        writer.write_scalars(step, {"train/all/loss": 1 / step})
        (files.path / f"{step}.txt").write_text(str(step))
        files.push()
        if step % 10 == 0:
            lease._written = 0.0
            lease.check()
            checkpoints.save(step, {"state": {"a": np.full(1000, step, np.float32)}}, {}, {}, {})
lease.release()
"""


def test_a_store_that_fails_one_request_in_twenty_loses_nothing(gcs, tmp_path):
    url = f"{gcs}/{tmp_path.name}"
    with object_stores.failing_every(20, os.environ["STORAGE_EMULATOR_HOST"]) as proxy:
        changes = {"STORAGE_EMULATOR_HOST": proxy, "TENSORSTORE_GCS_HTTP_URL": proxy}
        environment = os.environ | changes | {"PYTHONPATH": str(processes.ROOT), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", SESSION, url]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    files = Mirror(url)
    files.pull(("metrics",))
    lines = [json.loads(line) for line in (files.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert all((files.path / f"{step}.txt").read_text() == str(step) for step in range(1, 31))
    assert SavedCheckpoints(files.path).steps() == [20, 30] and ".lease" not in objects(url)
    folder = mirror.checkpoints(files.path) / "30" / "state"
    np.testing.assert_array_equal(ocp.StandardCheckpointer().restore(folder)["a"], np.full(1000, 30))
