"""A full disk or vanishing data gives one clear line of error and loses no saved checkpoint."""

import os
import shutil
import signal
import subprocess

import orbax.checkpoint as ocp
import psutil
import pytest

from tests.hosts.test_hosts import SMALL, steps_done, wait_for
from tests.support import media_files, processes

pytestmark = pytest.mark.hosts

ARGUMENTS = [*SMALL, "--config.steps=60", "--config.checkpoint.every=3", "--config.checkpoint.keep=99"]


@pytest.fixture
def small_disk(tmp_path):
    """A separate file system with room for a few checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("cannot mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_named_and_loses_no_checkpoint(small_disk, tmp_path):
    started = processes.start(1, 4, [f"--workdir={small_disk}", *ARGUMENTS], tmp_path / "logs")
    assert processes.finish(started) == [1]
    lines = started[0].log.read_text().splitlines()
    assert any(
        line.startswith(f"error: --workdir={small_disk}: No space left on device;") for line in lines
    ), lines[-9:]
    kept = sorted(int(path.name) for path in (small_disk / "checkpoints").iterdir() if path.name.isdecimal())
    assert kept
    for step in kept:
        ocp.StandardCheckpointer().restore((small_disk / "checkpoints" / str(step) / "state").absolute())
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)  # free space
    started = processes.start(
        1, 4, [f"--workdir={small_disk}", *ARGUMENTS, "--config.steps=60"], tmp_path / "more"
    )
    assert processes.finish(started) == [0]


def test_a_read_only_disk_is_named(small_disk, tmp_path):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    started = processes.start(1, 4, [f"--workdir={small_disk}", *ARGUMENTS], tmp_path / "logs")
    assert processes.finish(started) == [2]
    last = started[0].log.read_text().splitlines()[-1]
    message = "Read-only file system; accepted: a writable folder"
    assert last.startswith(f"error: --workdir={small_disk}: {message}")


def test_vanished_files_are_named_and_a_vanished_folder_ends_the_run(tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    media_files.write_photos(media, 40, 96)
    workdir = tmp_path / "run"
    arguments = [*ARGUMENTS, f"--config.data.media={media}", "--config.data.buckets.video_9x64x64.batch=0"]
    arguments += ["--config.loss.adversarial.discriminators=('image',)", "--config.steps=4000"]
    started = processes.start(1, 4, [f"--workdir={workdir}", *arguments], tmp_path / "logs")
    assert wait_for(lambda: steps_done(workdir) >= 3, started)
    photos = sorted(media.glob("*.png"))
    for photo in photos[:20]:
        photo.unlink()
    bad = workdir / "bad_samples.jsonl"
    assert wait_for(lambda: bad.exists() and photos[0].name in bad.read_text(), started)
    shutil.rmtree(media)
    assert processes.finish(started, 300) == [1]  # not 2, an input error: the command may be repeated
    lines = started[0].log.read_text().splitlines()
    assert any(line.startswith("error: data.buckets.image_64x64: none of") for line in lines), lines[-9:]
    assert list((workdir / "checkpoints").glob("[0-9]*"))


def test_a_hanging_data_worker_is_reported_and_a_killed_one_ends_the_run(tmp_path):
    arguments = [*ARGUMENTS, "--config.steps=4000", "--config.recovery.stall=15"]
    killed = "error: a data loading process was killed (exit code -9; out of memory?)"
    for number, message in ((signal.SIGSTOP, "waiting for samples"), (signal.SIGKILL, killed)):
        workdir = tmp_path / number.name
        started = processes.start(1, 4, [f"--workdir={workdir}", *arguments], tmp_path / "logs" / number.name)
        assert wait_for(lambda w=workdir: steps_done(w) >= 3, started)
        workers = psutil.Process(started[0].popen.pid).children(recursive=True)
        for worker in workers:
            os.kill(worker.pid, number)
        assert started[0].popen.wait(120) == 1
        for worker in workers:
            if worker.is_running():
                worker.kill()
        assert message in started[0].log.read_text()
        assert list((workdir / "checkpoints").glob("[0-9]*"))
