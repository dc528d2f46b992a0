"""The cores and memory that a process may use."""

import os
import subprocess
import sys

import psutil
import pytest

from vaejax.runtime import host


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux reports the cores of a process")
def test_cores_are_those_of_the_process():
    first = min(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, {{{first}}});"
    program += "from vaejax.runtime.host import cores; print(cores())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "1\n"
    assert host.cores() == len(psutil.Process().cpu_affinity())


def test_memory_is_that_of_the_container_if_that_is_less(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(host, "CGROUP_LIMIT", limit)
    whole = psutil.virtual_memory().total
    assert host.memory() == whole
    for text, size in (("max\n", whole), ("8000000\n", 8_000_000), (f"{2 * whole}\n", whole)):
        limit.write_text(text)
        assert host.memory() == size
