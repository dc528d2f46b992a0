"""Workers of Apache Beam encode the same bytes as one process, and go on after one of them is killed."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from tests.support import codec_run, processes
from tests.support.codec_run import pan, run
from tests.support.media_files import write_clip
from tests.unit.codec.test_shards import contents

pytest.importorskip("apache_beam", reason="`beam` and `test` need different packages")
pytestmark = pytest.mark.hosts
DIRECT = ["--runner=DirectRunner", "--direct_num_workers=2"]
TARS = ["--format=webdataset", "--shard-mb=0.001", "--keep-going"]  # about six photos a tar


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return codec_run.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """240 photos, two clips and a broken file."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    for number in range(240):
        place = folder / f"{number % 7}" / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8)).resize((48, 32)).save(place)
    for number in range(2):
        write_clip(folder / f"clip{number}.mp4", pan(9))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def plain(model, media, tmp_path_factory):
    """The tars that one process writes."""
    out = tmp_path_factory.mktemp("plain") / "tars"
    assert run(model, "encode", media, out, *TARS) == 0
    assert len(list(out.glob("*.tar"))) > 30
    return contents(out)


@pytest.fixture(scope="module")
def dask():
    distributed = pytest.importorskip("distributed", reason="pip install 'apache-beam[dask]'")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.mark.parametrize("form", ["webdataset", "parquet", "latent"])
def test_processes_encode_the_same_bytes(model, media, tmp_path, form):
    arguments = [f"--format={form}", "--shard-mb=0.02", "--keep-going"]
    for out, options in (("plain", []), ("beam", DIRECT)):
        assert run(model, "encode", media, tmp_path / out, *arguments, *options) == 0
    written = contents(tmp_path / "beam")
    assert written == contents(tmp_path / "plain") and len(written) > 2
    assert (tmp_path / "beam" / ".records").exists() == (form != "latent")


def test_a_killed_process_ends_the_command_and_the_next_one_continues(model, media, plain, tmp_path):
    out = tmp_path / "tars"
    command = [sys.executable, "-m", "vaejax.codec", "encode", media, out, f"--model={model}", *TARS, *DIRECT]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    while len(list((out / ".records").glob("*.json"))) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    workers = processes.beam_workers(process.pid)
    assert len(workers) == 2
    workers[0].kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    line = "error: --runner=DirectRunner: a worker process ended; the same command continues"
    assert errors.splitlines()[-1] == line
    records = {path: path.stat().st_mtime_ns for path in (out / ".records").glob("*.json")}
    assert 5 <= len(records) < len(plain) - 1
    assert run(model, "encode", media, out, *TARS, *DIRECT) == 0
    assert contents(out) == plain
    assert {path: path.stat().st_mtime_ns for path in records} == records


def test_dask_goes_on_without_a_killed_worker(model, media, plain, dask, tmp_path):
    out, killed = tmp_path / "tars", threading.Event()

    def kill():
        while len(list((out / ".records").glob("*.json"))) < 5:
            time.sleep(0.01)
        os.kill(next(iter(dask.workers.values())).pid, 9)
        if len(list((out / ".records").glob("*.json"))) < len(plain) - 1:
            killed.set()

    threading.Thread(target=kill, daemon=True).start()
    options = ["--runner=DaskRunner", f"--dask_client_address={dask.scheduler_address}"]
    assert run(model, "encode", media, out, *TARS, *options) == 0
    assert killed.is_set() and contents(out) == plain


def test_a_model_that_differs_on_the_workers_gets_one_line(model, media, tmp_path, monkeypatch, capsys):
    """For example a run that trains on: a path without a step must not mean another checkpoint there."""
    from vaejax.codec.shards import encode

    whole = encode.load_vae
    monkeypatch.setattr(encode, "load_vae", lambda *of: whole(*of)._replace(fingerprint="0" * 16))
    options = ["--runner=DirectRunner", "--direct_running_mode=in_memory"]
    assert run(model, "encode", media, tmp_path / "tars", *TARS, *options) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: --runner=DirectRunner: --model={model}: model ") and "everywhere" in line
