"""A worker ends with its parent, even if the parent died before the worker could ask for it."""

import os
import subprocess
import sys

import pytest

from tests.support.processes import ROOT

WATCH = {
    "of a scan": "from vaejax.data import parent; parent.watch()",
    # Multiprocessing runs the main module of a training command under this name before it imports Grain.
    "of a trainer": "import runpy; runpy.run_module('vaejax.main', run_name='__mp_main__')",
}


def environment(parent):
    return os.environ | {"PYTHONPATH": str(ROOT), "VAEJAX_PARENT": str(parent)}


@pytest.mark.parametrize("worker", ["of a trainer", pytest.param("of a scan", marks=pytest.mark.variants)])
def test_a_worker_whose_parent_is_dead_ends_before_its_slow_imports(worker):
    """They are a long sleep here."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    command = [sys.executable, "-c", f"{WATCH[worker]}; import time; time.sleep(60)"]
    assert subprocess.run(command, env=environment(dead.pid)).returncode == 1


def test_a_worker_whose_parent_lives_goes_on():
    code = "from vaejax.data import parent; parent.watch(); parent.end_if_dead(); print('done')"
    done = subprocess.run([sys.executable, "-c", code], env=environment(os.getpid()), capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"done\n")
