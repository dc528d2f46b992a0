"""Contestants that take turns, each in a process of its own, so that background load affects all equally."""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def serve(run: Callable[[], Any]) -> None:
    """Runs a function for every line on stdin; prints its seconds, CPU seconds and the peak memory in GiB."""
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        run()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps([seconds, cpu, peak]), flush=True)


class Contestant:
    """A process that calls `serve`.

    Args:
      command: its command line.
    """

    def __init__(self, command: Sequence[str]):
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def turn(self) -> tuple[float, float, float]:
        """Lets it run once; returns seconds, CPU seconds and peak memory in GiB."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            sys.exit(f"a contestant ended, perhaps for lack of memory: {self._process.args}")
        seconds, cpu, peak = json.loads(line)
        return seconds, cpu, peak

    def end(self) -> None:
        """Ends the process."""
        self._process.communicate()


def compete(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, dict[str, Any]]:
    """Lets all contestants take turns, in alternating order.

    Args:
      contestants: the processes; the others are compared with the first.
      rounds: turns of each.

    Returns:
      By name, 'peak_gib', and 'seconds' and 'cpu_seconds' with 'all', their 'median', 'ratios' to the first
      contestant in the same round, and the median 'ratio'.
    """
    names, first, taken = list(contestants), next(iter(contestants)), []
    for i in range(rounds):
        taken.append({name: contestants[name].turn() for name in names[:: 1 if i % 2 else -1]})
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        found[name] = {"peak_gib": taken[-1][name][2]}
        for i, what in enumerate(("seconds", "cpu_seconds")):
            times = [turn[name][i] for turn in taken]
            ratios = [turn[name][i] / turn[first][i] for turn in taken]
            found[name][what] = {
                "all": times,
                "median": statistics.median(times),
                "ratio": statistics.median(ratios),
                "ratios": ratios,
            }
    return found
