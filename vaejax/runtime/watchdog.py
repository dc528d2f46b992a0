"""The watchdog: aborts a stalled run and reports which host is stuck, at which step, doing what."""

import concurrent.futures
import dataclasses
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType

import jax

from vaejax.errors import FAILED
from vaejax.runtime import distributed

REPORT_SECONDS = 5  # interval of each process's reports to the others
# Seconds without a report from a process after which process 0 prints a warning. This is shorter than
# distributed.HEARTBEAT, after which JAX ends all processes.
SILENCE = distributed.HEARTBEAT // 4
KEY = "vaejax/activity/"  # prefix of the reports' keys in JAX's key-value store
WAITING_FOR_DEVICES = "waiting for the devices"
DONE = "done"
PATIENCE = 10  # factor on the time limit while a process starts, compiles, evaluates or saves


@dataclasses.dataclass(frozen=True)
class Activity:
    """The activity that a process reports.

    Attributes:
      process: index of the process.
      host: name of its host.
      name: what the process does, in a few words.
      step: number of updates done.
      since: start of the activity, in seconds of the host's clock.
      reported: time of the report, in seconds of the host's clock.
      patient: whether the activity may take PATIENCE times as long.
    """

    process: int
    host: str
    name: str
    step: int
    since: float
    reported: float
    patient: bool = False


class Watchdog:
    """While entered, aborts the process if one activity takes too long.

    Args:
      seconds: time limit of an activity; 0 disables the watchdog.
    """

    def __init__(self, seconds: float):
        self._seconds, self._closed = seconds, threading.Event()
        self._process, self._host = jax.process_index(), socket.gethostname()
        self._activity: Activity | None = None
        self._excused = 0.0  # when another process was last seen in a patient activity
        # Reports have their own thread: the key-value store blocks if process 0, which holds it, hangs.
        self._exchange = concurrent.futures.ThreadPoolExecutor(1, "watchdog-exchange")
        self._silence = SilenceDetector()

    def begin(self, name: str, step: int, patient: bool = False) -> None:
        """Marks the start of an activity; `patient` allows PATIENCE times as long."""
        now = time.time()
        self._activity = Activity(self._process, self._host, name, step, now, now, patient)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._activity and kind is None:  # so that waiting for others to exit does not count as silence
            done = dataclasses.replace(self._activity, name=DONE, reported=time.time())
            self._exchange.submit(_report, done)
        self._exchange.shutdown(wait=False)

    def _watch(self) -> None:
        answer: concurrent.futures.Future[list[Activity]] = self._exchange.submit(list)
        while not self._closed.wait(min(REPORT_SECONDS, self._seconds / 4)):
            activity = self._activity
            if activity is None:
                continue
            if answer.done():
                known = [] if answer.exception() else answer.result()
                for other in self._silence.newly_silent(known, time.monotonic()):
                    print(
                        f"process {other.process} on {other.host} has not reported for {SILENCE} s; its last"
                        f" report: step {other.step}, {other.name}",
                        file=sys.stderr,
                    )
                answer = self._exchange.submit(_report, dataclasses.replace(activity, reported=time.time()))
            if time.time() - max(activity.since, self._excused) > _limit(activity, self._seconds):
                self._abort(dataclasses.replace(activity, reported=time.time()))

    def _abort(self, own: Activity) -> None:
        """Ends this process with a report, unless a process still has time for a patient activity."""
        try:
            activities = self._exchange.submit(_activities).result(REPORT_SECONDS)
        except (concurrent.futures.TimeoutError, RuntimeError):
            activities = []
        lines = diagnose(own, activities, self._seconds)
        if not lines:
            self._excused = time.time()
            return
        for line in lines:
            print(f"error: {line}", file=sys.stderr)
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        os._exit(FAILED)


class SilenceDetector:
    """Detects processes that have stopped reporting, by the local clock only: hosts' clocks differ."""

    def __init__(self):
        # Process -> (its latest report by the clock of its host, the report's arrival by this host's clock).
        self._heard: dict[int, tuple[float, float]] = {}
        self._named: set[int] = set()

    def newly_silent(self, activities: Sequence[Activity], now: float) -> list[Activity]:
        """The latest report of each process that has now been silent for SILENCE seconds.

        A process is returned again only if it reports in between, and never if its latest report is DONE.

        Args:
          activities: latest reports of all processes.
          now: time in seconds, by this process's clock.
        """
        silent = []
        for activity in activities:
            reported, arrived = self._heard.get(activity.process, (None, now))
            if reported != activity.reported:
                self._heard[activity.process] = activity.reported, now
                self._named.discard(activity.process)
            elif now - arrived >= SILENCE and activity.name != DONE and activity.process not in self._named:
                self._named.add(activity.process)
                silent.append(activity)
        return silent


def diagnose(own: Activity, activities: Sequence[Activity], seconds: float) -> list[str]:
    """One line for each stuck process; [] if any process may still take its time (`patient` activities).

    Processes run in lockstep, so one that waits for its devices waits for another process. The first of these
    groups that is not empty is stuck: processes that stopped reporting, processes behind the latest step,
    processes that do not wait for their devices, or else all processes.

    Args:
      own: activity of this process.
      activities: latest reports of all processes, this one included; empty if process 0, which holds them,
        does not respond.
      seconds: time limit of an activity.
    """
    if jax.process_count() > 1 and not activities:
        return [f"process 0 does not respond; {_line(own, 'is')}"]
    running = [activity for activity in activities if activity.name != DONE] or [own]
    latest = max(activity.reported for activity in running)
    silent = [a for a in running if latest - a.reported > max(seconds / 2, 2 * REPORT_SECONDS)]
    in_time = [a for a in running if a.reported - a.since < _limit(a, seconds) and a not in silent]
    if any(activity.patient for activity in in_time):
        return []
    last_step = max(activity.step for activity in running)
    behind = [activity for activity in running if activity.step < last_step]
    elsewhere = [activity for activity in running if activity.name != WAITING_FOR_DEVICES]
    stuck = silent or behind or elsewhere or running
    return [_line(a, "does not respond and is" if a in silent else "is") for a in stuck]


def _limit(activity: Activity, seconds: float) -> float:
    return seconds * (PATIENCE if activity.patient else 1)


def _line(activity: Activity, verb: str) -> str:
    return (
        f"process {activity.process} on {activity.host} {verb} stuck at step {activity.step},"
        f" {activity.name} for {time.time() - activity.since:.0f} s; run the same command to"
        " continue from the last checkpoint"
    )


def _report(activity: Activity) -> list[Activity]:
    """Publishes an activity of this process; returns those of all processes if this is process 0, else []."""
    store = distributed.key_value_store()
    if store is None:
        return []
    value = json.dumps(dataclasses.asdict(activity))
    store.key_value_set(f"{KEY}{activity.process}", value, allow_overwrite=True)
    return _activities() if activity.process == 0 else []


def _activities() -> list[Activity]:
    """The latest reports of all processes; [] in a run of one process."""
    store = distributed.key_value_store()
    if store is None:
        return []
    return [Activity(**json.loads(value)) for _, value in store.key_value_dir_get(KEY)]
