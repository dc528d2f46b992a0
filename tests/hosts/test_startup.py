"""A restarted run loads all its programs from the cache, in every process."""

import shutil

import pytest

from tests.hosts.test_hosts import SMALL
from tests.support import processes

pytestmark = pytest.mark.hosts
MODULE = "tests.support.counting_compilations"


@pytest.mark.parametrize("count", [1, 2])
def test_a_restart_compiles_nothing(count, tmp_path):
    arguments = [*SMALL, "--config.steps=4", "--config.checkpoint.every=2", f"--workdir={tmp_path / 'run'}"]

    def programs(name):
        """Programs that each process asked for, and those among them that it had to compile."""
        started = processes.start(
            count, 4 // count, arguments, tmp_path / name, module=MODULE, compiled=tmp_path / "xla"
        )
        assert processes.finish(started) == [0] * count, started[0].log.read_text()[-2000:]
        logs = [process.log.read_text() for process in started]
        return [(log.count("asked for a program"), log.count("loaded a program")) for log in logs]

    for asked, loaded in programs("first"):
        assert asked > loaded
    for name in ("again", "once more"):  # the first of them stores the programs of restoring, too
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")  # as if the run had been killed after 2 updates
        last = programs(name)
    for asked, loaded in last:
        assert asked == loaded > 0
