"""Only one process at a time trains in a run's folder."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys

import jax
import pytest

from tests.support import processes
from vaejax.errors import InputError
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.lock import locked

# Locks a folder, starts a child in each way that the data loader or a library may, and waits.
HOLDER = """
import multiprocessing, os, subprocess, sys, time
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.lock import locked

if __name__ == "__main__":
    with locked(RunFolder(sys.argv[1])):
        spawned = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        spawned.start()
        children = [spawned.pid, subprocess.Popen(["sleep", "60"], close_fds=False).pid, os.fork()]
        if children[-1]:
            print(*children, flush=True)
        time.sleep(60)
"""


def test_the_lock_dies_with_its_process_though_children_live_on(tmp_path):
    script = tmp_path / "holder.py"
    script.write_text(HOLDER)
    environment = os.environ | {"PYTHONPATH": str(processes.ROOT)}
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        children = [int(pid) for pid in holder.stdout.readline().split()]
        try:
            expected = f"--workdir={tmp_path}: process {holder.pid} on {socket.gethostname()} trains there; "
            with pytest.raises(InputError, match=re.escape(expected)), locked(RunFolder(tmp_path)):
                pass
            holder.kill()
            holder.wait()
            for child in children:
                os.kill(child, 0)  # still there
            with locked(RunFolder(tmp_path)):
                pass
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)


def test_a_folder_is_free_again_after_the_run(tmp_path):
    for _ in range(2):
        with locked(RunFolder(tmp_path)) as folder:
            assert folder.path == tmp_path
            with pytest.raises(InputError, match=f"process {os.getpid()} on "), locked(folder):
                pass


def test_other_processes_of_the_run_take_no_lock(tmp_path, monkeypatch):
    with locked(RunFolder(tmp_path)):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with locked(RunFolder(tmp_path)):
            pass


def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(RunFolder(tmp_path)):
        message = f"warning: --workdir={tmp_path} is on a file system without locks (No locks"
        assert capsys.readouterr().err.startswith(message)
