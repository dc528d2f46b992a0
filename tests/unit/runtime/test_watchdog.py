"""Whom the watchdog names, by what all processes said last."""

import re
import subprocess
import sys
import time

import jax
import pytest

from vaejax.runtime.watchdog import DONE, SILENCE, UPDATE, Doing, Silent, findings


def said(process, what=UPDATE, step=7, ago=1.0, patient=False, for_seconds=70):
    now = time.time()
    return Doing(process, f"host{process}", what, step, now - for_seconds, now - ago, patient)


@pytest.mark.parametrize(
    ("others", "named"),
    [
        (
            [said(0), said(1, "waiting for samples"), said(2)],
            ["process 1 on host1 stalls at step 7, waiting for"],
        ),
        ([said(0), said(1, step=6), said(2)], ["process 1 on host1 stalls at step 6"]),
        ([said(0), said(1, ago=65), said(2)], ["does not answer: process 1"]),
        ([said(0), said(1)], ["process 0 on host0", "process 1 on host1"]),
        ([], ["process 0 does not answer; process 0 on host0"]),
        ([said(0), said(1, DONE, ago=65)], ["process 0 on host0 stalls at step 7"]),
        ([said(0), said(1, "compiling", patient=True), said(2)], []),
        ([said(0), said(1, "compiling", ago=65, patient=True)], ["does not answer: process 1"]),
        (
            [said(0), said(1, "evaluating", patient=True, for_seconds=700)],
            ["process 1 on host1 stalls at step 7, evaluating for"],
        ),
    ],
    ids=[
        "another has no samples",
        "another is behind",
        "another is silent",
        "nobody knows",
        "no store",
        "another is done",
        "another compiles",
        "another died while it compiled",
        "another evaluates for ten times as long",
    ],
)
def test_who_does_not_get_to_the_devices_is_named(monkeypatch, others, named):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    lines = findings(said(0), others, 60)
    assert len(lines) == len(named)
    assert all(line.startswith(start) for line, start in zip(lines, named, strict=True)), lines


@pytest.mark.parametrize("patient", [False, True])
def test_a_process_that_is_alone_and_hangs_is_ended(patient):
    program = "import time; from vaejax.runtime.watchdog import Watchdog\n"
    program += f"with Watchdog(0.2) as w: w.doing('evaluating', 7, patient={patient}); time.sleep(60)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert re.search(r"error: process 0 on \S+ stalls at step 7, evaluating for", found.stderr), found.stderr
    assert "most recent call first" in found.stderr  # where it was


def test_who_falls_silent_is_named_once_each_time():
    """Whatever the hosts' clocks say."""
    silent, one, other = Silent(), said(0), said(1, ago=1e6)
    assert silent.since([one, other], 0.0) == []
    one = said(0)
    assert silent.since([one, other], SILENCE - 1.0) == []
    assert silent.since([said(0), other], SILENCE + 1.0) == [other]
    assert silent.since([said(0), other], SILENCE + 6.0) == []
    back = said(1, ago=1e6 - 1)
    assert silent.since([said(0), back], SILENCE + 11.0) == []
    assert silent.since([said(0), back], 2 * SILENCE + 12.0) == [back]
    done = said(0, DONE)
    assert silent.since([done], 3 * SILENCE) == silent.since([done], 5 * SILENCE) == []
