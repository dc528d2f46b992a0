"""The processes that the watchdog names, given the latest reports of all."""

import re
import subprocess
import sys
import time

import jax
import pytest

from vaejax.runtime.watchdog import DONE, SILENCE, WAITING_FOR_DEVICES, Activity, SilenceDetector, diagnose


def activity(process, name=WAITING_FOR_DEVICES, step=7, ago=1.0, patient=False, for_seconds=70):
    now = time.time()
    return Activity(process, f"host{process}", name, step, now - for_seconds, now - ago, patient)


@pytest.mark.parametrize(
    ("activities", "named"),
    [
        (
            [activity(0), activity(1, "waiting for samples"), activity(2)],
            ["process 1 on host1 is stuck at step 7, waiting for"],
        ),
        ([activity(0), activity(1, step=6), activity(2)], ["process 1 on host1 is stuck at step 6"]),
        (
            [activity(0), activity(1, ago=65), activity(2)],
            ["process 1 on host1 does not respond and is stuck at step 7"],
        ),
        ([activity(0), activity(1)], ["process 0 on host0", "process 1 on host1"]),
        ([], ["process 0 does not respond; process 0 on host0"]),
        ([activity(0), activity(1, DONE, ago=65)], ["process 0 on host0 is stuck at step 7"]),
        ([activity(0), activity(1, "compiling", patient=True), activity(2)], []),
        (
            [activity(0), activity(1, "compiling", ago=65, patient=True)],
            ["process 1 on host1 does not respond and is stuck at step 7"],
        ),
        (
            [activity(0), activity(1, "evaluating", patient=True, for_seconds=700)],
            ["process 1 on host1 is stuck at step 7, evaluating for"],
        ),
    ],
    ids=[
        "another has no samples",
        "another is behind",
        "another is silent",
        "all wait for the devices",
        "no store",
        "another is done",
        "another compiles",
        "another died while it compiled",
        "another evaluates for ten times as long",
    ],
)
def test_the_processes_that_do_not_reach_the_devices_are_named(monkeypatch, activities, named):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    lines = diagnose(activity(0), activities, 60)
    assert len(lines) == len(named)
    assert all(line.startswith(start) for line, start in zip(lines, named, strict=True)), lines


@pytest.mark.parametrize("patient", [False, True])
def test_a_single_process_that_hangs_is_aborted(patient):
    program = "import time; from vaejax.runtime.watchdog import Watchdog\n"
    program += f"with Watchdog(0.2) as w: w.begin('evaluating', 7, patient={patient}); time.sleep(60)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert re.search(r"error: process 0 on \S+ is stuck at step 7, evaluating for", found.stderr), (
        found.stderr
    )
    assert "most recent call first" in found.stderr  # the stack


def test_a_silent_process_is_named_once_until_it_reports_again():
    """It does not depend on the clocks of the hosts."""
    detector, one, other = SilenceDetector(), activity(0), activity(1, ago=1e6)
    assert detector.newly_silent([one, other], 0.0) == []
    one = activity(0)
    assert detector.newly_silent([one, other], SILENCE - 1.0) == []
    assert detector.newly_silent([activity(0), other], SILENCE + 1.0) == [other]
    assert detector.newly_silent([activity(0), other], SILENCE + 6.0) == []
    back = activity(1, ago=1e6 - 1)
    assert detector.newly_silent([activity(0), back], SILENCE + 11.0) == []
    assert detector.newly_silent([activity(0), back], 2 * SILENCE + 12.0) == [back]
    done = activity(0, DONE)
    assert detector.newly_silent([done], 3 * SILENCE) == detector.newly_silent([done], 5 * SILENCE) == []
