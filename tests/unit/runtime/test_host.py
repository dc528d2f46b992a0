"""A process takes no more of a machine than it was given."""

import os
import subprocess
import sys

import psutil
import pytest

from vaejax.runtime import host as machine


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux tells a process its cores")
def test_cores_are_those_that_a_scheduler_gave():
    first = min(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, {{{first}}});"
    program += "from vaejax.runtime.host import cores; print(cores())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "1\n"
    assert machine.cores() == len(psutil.Process().cpu_affinity())


def test_memory_is_the_containers_where_that_has_less(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "CONTAINER", limit)
    whole = psutil.virtual_memory().total
    assert machine.memory() == whole
    for told, size in (("max\n", whole), ("8000000\n", 8_000_000), (f"{2 * whole}\n", whole)):
        limit.write_text(told)
        assert machine.memory() == size
