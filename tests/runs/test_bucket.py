"""A run of two processes in a bucket, on media in it, is the same run as on disk, whatever kills it."""

import io
import json
import random
import re
import signal
import tarfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.support import media_files, processes
from vaejax.rundir import mirror
from vaejax.rundir.mirror import Mirror
from vaejax.runtime import storage

pytestmark = pytest.mark.runs

STEPS = 24
# Values of metrics that do not depend on the clock.
VALUES = ("loss", "nll", "kl", "grad_norm", "param_norm", "psnr", "ssim", "accuracy_image", "bad_steps")


def arguments(media):
    settings = {
        "data.sources": {"mine": {"kind": "webdataset", "path": media}},
        "data.buckets.video_9x64x64.batch": 0,
        "data.holdout": 0.2,
        "model.widths": (8, 8, 8),
        "loss.weights.perceptual": 0.0,
        "loss.adversarial.discriminators": ("image",),
        "loss.adversarial.start": 4,
        "eval.every": 12,
        "panels.every": 12,
        "eval.samples": 4,
        "eval.linear_samples": 0,
        "eval.latent_samples": 8,
        "checkpoint.every": 4,
        "log_every": 1,
        "steps": STEPS,
    }
    return ["--config=demo:tiny", *(f"--config.{key}={value}" for key, value in settings.items())]


def write_tars(url, photos):
    """Writes photos as the members of two tars in a bucket."""
    for number in range(2):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            for path in sorted(photos.iterdir())[number::2]:
                tar.add(path, path.name)
        storage.file_system(url).pipe_file(f"{url}/{number:05}.tar", content.getvalue())


def rows(path):
    """{(step, split, bucket): values} of metrics.jsonl, in which no line may be repeated."""
    found = {}
    for line in map(json.loads, path.read_text().splitlines()):
        key = line["step"], line["split"], line["bucket"]
        assert key not in found, key
        found[key] = {name: line[name] for name in VALUES if name in line}
    return found


def arrays(folder):
    """All arrays of the last checkpoint, as NumPy arrays."""
    reader, path = ocp.PyTreeCheckpointer(), mirror.checkpoints(folder) / str(STEPS) / "state"
    leaves = reader.metadata(path).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), leaves)
    return reader.restore(path, restore_args=as_numpy)


def logged(process):
    steps = re.findall(rf"^step +(\d+)/{STEPS}", process.log.read_text(), re.MULTILINE)
    return max(map(int, steps), default=0)


def test_a_killed_run_in_a_bucket_is_that_on_disk(gcs, tmp_path, monkeypatch):
    photos, url = tmp_path / "photos", f"{gcs}/killed-run"
    photos.mkdir()
    media_files.write_photos(photos, 40, 64)
    write_tars(f"{gcs}/tars", photos)
    command = arguments(f"{gcs}/tars")
    straight = processes.start(2, 1, [f"--workdir={tmp_path / 'disk'}", *command], tmp_path / "logs")
    assert processes.finish(straight) == [0, 0], straight[0].log.read_text()[-3000:]

    rng = random.Random(7)
    for life in range(5):
        machine = tmp_path / f"machine-{life}"  # without what an earlier one had cached
        (machine / "tmp").mkdir(parents=True)
        monkeypatch.setenv("XDG_CACHE_HOME", str(machine / "cache"))
        monkeypatch.setenv("TMPDIR", str(machine / "tmp"))
        started = processes.start(
            2, 1, [f"--workdir={url}", *command], machine, module="tests.support.quick_lease"
        )
        if life < 4:
            target, end = 4 * life + rng.randint(3, 6), time.monotonic() + 300
            while logged(started[0]) < target and time.monotonic() < end:
                assert all(process.popen.poll() is None for process in started), started[0].log.read_text()[
                    -3000:
                ]
                time.sleep(0.01)
            time.sleep(rng.random() / 2)
            for process in started:
                process.popen.send_signal(signal.SIGKILL)
        codes = processes.finish(started)
        assert codes == ([0, 0] if life == 4 else [-signal.SIGKILL] * 2), started[0].log.read_text()[-3000:]

    assert re.search(rf"^{url}: \d+ objects written, .* a minute", started[0].log.read_text(), re.MULTILINE)
    files = Mirror(url)
    files.pull(("metrics", "panels"))
    expected, found = rows(tmp_path / "disk" / "metrics.jsonl"), rows(files.path / "metrics.jsonl")
    assert {step for step, _, _ in expected} == set(range(STEPS + 1)) and found == expected
    for one, other in zip(
        *(jax.tree.leaves(arrays(folder)) for folder in (tmp_path / "disk", files.path)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    names = {path.relative_to(tmp_path / "disk") for path in (tmp_path / "disk" / "panels").rglob("*.*")}
    assert names and all((files.path / name).exists() for name in names)
    statistics = json.loads(storage.read(f"{url}/checkpoints/{STEPS}/latents.json"))
    assert statistics == json.loads((tmp_path / f"disk/checkpoints/{STEPS}/latents.json").read_text())
    left = {entry.path.split("/")[0] for entry in storage.walk(url, "a test")}
    assert left <= {
        "checkpoints", "config.json", "goodput.json", "metrics", "panels", "parameters.txt", "splits.parquet",
        "tensorboard",
    }  # fmt: skip
