"""A command that is killed leaves no worker process and no shared memory, at whatever moment it dies."""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction

import av
import numpy as np
import psutil
import pytest

from tests.support import media_files, processes
from vaejax.data import index

pytestmark = pytest.mark.hosts

SECONDS = 10  # within which all processes must end; it takes two, or seven on a busy machine
ENVIRONMENT = os.environ | {"PYTHONPATH": str(processes.ROOT)}


def workers(command):
    """The processes that multiprocessing started for a command so far."""
    found = []
    for process in psutil.Process(command.pid).children():
        try:
            found += [process] if "--multiprocessing-fork" in process.cmdline() else []
        except psutil.NoSuchProcess:
            continue
    return found


def maps(process, library):
    return any(library in region.path for region in process.memory_maps())


def opens(process, path):
    return any(file.path == str(path) for file in process.open_files())


def ignores_sigterm(process):
    with open(f"/proc/{process.pid}/status") as file:
        (ignored,) = (line.split()[1] for line in file if line.startswith("SigIgn:"))
    return bool(int(ignored, 16) >> (signal.SIGTERM - 1) & 1)


def memory(command):
    """The folder of a command's shared memory."""
    return os.path.join("/proc", str(command.pid), "root", "dev", "shm")


def wait_for(moment, command):
    while not moment():
        assert command.poll() is None
        time.sleep(0.01)


def kill(command):
    """Kills a command but not its descendants, which are returned."""
    command.send_signal(signal.SIGSTOP)  # it starts no process between the list of descendants and its death
    descendants = psutil.Process(command.pid).children(recursive=True)
    command.kill()
    assert descendants
    return descendants


def survivors(descendants):
    """The commands of the processes that did not end in time; they are killed."""
    alive = psutil.wait_procs(descendants, SECONDS)[1]
    alive = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    names = [process.cmdline() for process in alive]
    for process in alive:
        process.kill()
    return names


@pytest.fixture(scope="module")
def own_memory():
    """A prefix that gives a command shared memory apart from that of other tests; [] without the rights."""
    prefix = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$0" "$@"']
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode:
        return []
    return prefix


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of forty photos, with its index."""
    folder = tmp_path_factory.mktemp("photos")
    media_files.write_photos(folder, 40, 160)
    index.load_or_build(folder, progress=False)
    return folder


STREAM = """
import sys
from vaejax.config.schema import defaults
from vaejax.data import bucket, pipeline, sources

data = defaults().data
data.update(media=sys.argv[1], workers=2)
opened, buckets = sources.open_sources(data), [bucket.Bucket(1, 128, 128, 4)]
with pipeline.train_stream(opened, buckets, data, seed=0) as stream:
    for update in stream:
        if update.step == 5:
            print("drawn", flush=True)
"""
MOMENTS = {
    "a worker was started": workers,
    "a worker imports NumPy": lambda stream: any(maps(w, "_multiarray_umath") for w in workers(stream)),
    "a worker imports JAX": lambda stream: any(maps(w, "jaxlib") for w in workers(stream)),
    "a worker ignores signals": lambda stream: any(map(ignores_sigterm, workers(stream))),
    "a sample is ready": lambda stream: any(name.startswith("psm_") for name in os.listdir(memory(stream))),
    "batches are drawn": lambda stream: select.select([stream.stdout], [], [], 0)[0],
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_stream_leaves_no_process_and_no_shared_memory(moment, own_memory, photos):
    command = [*own_memory, sys.executable, "-c", STREAM, str(photos)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE) as stream:
        try:
            wait_for(lambda: workers(stream) and MOMENTS[moment](stream), stream)
            blocks = os.open(memory(stream), os.O_RDONLY)  # outlives the processes
            assert os.listdir(blocks)  # semaphores at least
            descendants = kill(stream)
        finally:
            stream.kill()
    assert not survivors(descendants)
    assert not (own_memory and os.listdir(blocks))
    os.close(blocks)


def test_a_killed_scan_leaves_no_process_that_decodes_a_long_clip(tmp_path):
    """The clip takes a minute to decode."""
    path = tmp_path / "long.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuvj420p"
        stream.time_base = Fraction(1, 24)
        noise = np.random.default_rng(0).integers(256, size=(1080, 1920, 3), dtype=np.uint8)
        (packet, *_) = [*stream.encode(av.VideoFrame.from_ndarray(noise, "rgb24")), *stream.encode()]
        for i in range(1000):
            packet.pts = packet.dts = i * 1000
            file.mux(packet)
    code = "import sys; from vaejax.data import index; index.load_or_build(sys.argv[1], workers=1)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=ENVIRONMENT) as scan:
        try:
            scanner = psutil.Process(scan.pid)
            wait_for(lambda: any(opens(p, path) for p in scanner.children()), scan)
            descendants = kill(scan)
        finally:
            scan.kill()
    assert not survivors(descendants)
