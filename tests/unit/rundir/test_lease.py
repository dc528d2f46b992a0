"""One process at a time trains in a bucket's folder, against a server of the store's protocol."""

import os
import re
import socket
import threading
import time

import pytest

from tests.support import object_stores
from vaejax.errors import InputError, TrainingFailed
from vaejax.rundir.lease import Lease, holder_of
from vaejax.runtime import storage

BEAT = 0.3


def take(url, lost=print):
    """Takes a lease whose loss does not end this process."""
    return Lease(url, lost, BEAT)


def dies(lease):
    """Makes a holder silent, as SIGKILL would."""
    lease._closed.set()


def test_a_second_process_is_refused_while_the_first_lives(gcs, tmp_path):
    url = f"{gcs}/{tmp_path.name}"
    first = take(url)
    expected = f"--workdir={url}: process {os.getpid()} on {socket.gethostname()} trains there; "
    with pytest.raises(InputError, match=re.escape(expected)):
        take(url)
    time.sleep(4 * BEAT)
    assert holder_of(url) == first.token
    first.release()
    assert not holder_of(url)
    begin = time.monotonic()
    second = Lease(url, print, beat=10)
    assert time.monotonic() - begin < 5  # nothing to wait for
    second.release()


def test_the_lease_of_a_dead_process_is_taken_over_and_its_ghost_stops(gcs, tmp_path, capsys):
    url, lost = f"{gcs}/{tmp_path.name}", []
    dead = take(url, lost.append)
    dies(dead)
    begin = time.monotonic()
    second = take(url)
    assert time.monotonic() - begin >= 3 * BEAT
    assert "has not ended properly; waiting" in capsys.readouterr().err
    with pytest.raises(TrainingFailed, match=f"--workdir={url}: process .* has taken over this run"):
        dead.check()
    dead.release()  # of its own lease only
    second.check()
    assert holder_of(url) == second.token
    second.release()


def test_a_process_whose_lease_is_taken_is_told_within_a_beat(gcs, tmp_path):
    url, lost, told = f"{gcs}/{tmp_path.name}", [], threading.Event()
    lease = take(url, lambda reason: (lost.append(reason), told.set()))
    storage.file_system(url).pipe_file(f"{url}/.lease", b'{"token": "other", "pid": 7, "host": "there"}')
    assert told.wait(5 * BEAT)
    assert lost[0].startswith(f"--workdir={url}: process 7 on there has taken over this run")
    lease.release()
    assert holder_of(url) == "other"


def test_only_one_of_many_takes_over(gcs, tmp_path):
    url, held, refused = f"{gcs}/{tmp_path.name}", [], []
    dies(take(url))

    def compete():
        try:
            held.append(take(url))
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=compete) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 4)
    held[0].release()


def test_a_refusal_is_one_line(gcs, monkeypatch):
    with pytest.raises(InputError, match=r"^--workdir = gs://nowhere/run: no such bucket [^\n]*$"):
        take("gs://nowhere/run")
    with object_stores.failing_every(1, os.environ["STORAGE_EMULATOR_HOST"], status=403) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy)
        with pytest.raises(InputError, match=r"^--workdir = gs://made/run: permission denied [^\n]*$"):
            take("gs://made/run")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # otherwise the library asks whether this is Google's machine
    monkeypatch.setenv("CLOUDSDK_CONFIG", "/nonexistent")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with pytest.raises(
        InputError, match=r"^--workdir = gs://made/run: no credentials found; accepted: gcloud "
    ):
        take("gs://made/run")
