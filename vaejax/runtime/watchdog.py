"""Ends a run that does not get on, and says which host stalls in what."""

import concurrent.futures
import dataclasses
import faulthandler
import json
import os
import socket
import sys
import threading
import time

import jax

from vaejax.runtime import distributed as multihost

TOLD_EVERY = 5  # seconds between what a host tells the others
# Seconds after which process 0 names one that tells nothing, before JAX ends all.
SILENCE = multihost.HEARTBEAT // 4
KEY = "vaejax/doing/"
UPDATE = "waiting for the devices"
DONE = "done"
PATIENCE = 10  # times as long for what compiles, evaluates or writes what is left


@dataclasses.dataclass(frozen=True)
class Doing:
    """What a process is at.

    Attributes:
      process: its index.
      host: name of its machine.
      what: in a few words.
      step: of the update.
      since: of its machine's clock, seconds.
      told: when it last said so, seconds of its machine's clock.
      patient: nobody knows how long it takes.
    """

    process: int
    host: str
    what: str
    step: int
    since: float
    told: float
    patient: bool = False


class Watchdog:
    """While entered, watches that the process gets from one thing to the next.

    Args:
      seconds: after which a process stalls, PATIENCE times as many where it is patient; 0 watches nothing.
    """

    def __init__(self, seconds: float):
        self._seconds, self._closed = seconds, threading.Event()
        self._process, self._host = jax.process_index(), socket.gethostname()
        self._now: Doing | None = None
        self._excused = 0.0  # when another was last seen at something that takes its time
        # Asking the others can block, where the process that keeps the answers hangs.
        self._asking = concurrent.futures.ThreadPoolExecutor(1, "watchdog-asking")
        self._silent = Silent()

    def doing(self, what: str, step: int, patient: bool = False) -> None:
        """Says what begins now; `patient` where nobody knows how long it takes."""
        now = time.time()
        self._now = Doing(self._process, self._host, what, step, now, now, patient)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *exception):
        self._closed.set()
        if self._now and exception[0] is None:  # who waits for the others to end is not silent
            self._asking.submit(_tell, dataclasses.replace(self._now, what=DONE, told=time.time()))
        self._asking.shutdown(wait=False)

    def _watch(self) -> None:
        asked = self._asking.submit(list)
        while not self._closed.wait(min(TOLD_EVERY, self._seconds / 4)):
            now = self._now
            if asked.done() and now:
                for one in [] if asked.exception() else self._silent.since(asked.result(), time.monotonic()):
                    print(
                        f"process {one.process} on {one.host} has told nothing for {SILENCE} s; the last was:"
                        f" step {one.step}, {one.what}",
                        file=sys.stderr,
                    )
                asked = self._asking.submit(_tell, dataclasses.replace(now, told=time.time()))
            if now and time.time() - max(now.since, self._excused) > _limit(now, self._seconds):
                self._end(dataclasses.replace(now, told=time.time()))

    def _end(self, now: Doing) -> None:
        try:
            others = self._asking.submit(_everyone).result(TOLD_EVERY)
        except (concurrent.futures.TimeoutError, RuntimeError):
            others = []
        lines = findings(now, others, self._seconds)
        if not lines:
            self._excused = time.time()
            return
        for line in lines:
            print(f"error: {line}", file=sys.stderr)
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        os._exit(1)


class Silent:
    """Who tells nothing any more, by the clock of the one who listens."""

    def __init__(self):
        self._heard: dict[int, tuple[float, float]] = {}  # what each told last, and when that came
        self._named: set[int] = set()

    def since(self, everyone: list[Doing], now: float) -> list[Doing]:
        """Those whom SILENCE seconds have passed over, each once until it is heard of again."""
        named = []
        for one in everyone:
            told, at = self._heard.get(one.process, (None, now))
            if told != one.told:
                self._heard[one.process] = one.told, now
                self._named.discard(one.process)
            elif now - at >= SILENCE and one.what != DONE and one.process not in self._named:
                self._named.add(one.process)
                named.append(one)
        return named


def findings(mine: Doing, others: list[Doing], seconds: float) -> list[str]:
    """One line a process that stalls, by what all said last; none while one compiles or evaluates in time.

    The processes go in step: those that wait for a device wait for the ones that do not get there.

    Args:
      mine: of this process.
      others: of all processes, this one too; empty where process 0, which keeps them, does not answer.
      seconds: after which a process stalls.
    """
    if jax.process_count() > 1 and not others:
        return [f"process 0 does not answer; {_line(mine)}"]
    others = [one for one in others if one.what != DONE] or [mine]
    latest = max(one.told for one in others)
    silent = [one for one in others if latest - one.told > max(seconds / 2, 2 * TOLD_EVERY)]
    in_time = [one for one in others if one.told - one.since < _limit(one, seconds) and one not in silent]
    if any(one.patient for one in in_time):
        return []
    behind = [one for one in others if one.step < max(other.step for other in others)]
    elsewhere = [one for one in others if one.what != UPDATE]
    stalling = silent or behind or elsewhere or others
    return [("does not answer: " if one in silent else "") + _line(one) for one in stalling]


def _limit(one: Doing, seconds: float) -> float:
    return seconds * (PATIENCE if one.patient else 1)


def _line(one: Doing) -> str:
    return (
        f"process {one.process} on {one.host} stalls at step {one.step}, {one.what} for"
        f" {time.time() - one.since:.0f} s; the last checkpoint is whole, run the same command to go on"
    )


def _tell(doing: Doing) -> list[Doing]:
    """Tells the others; process 0, which keeps what is told, gets what all have."""
    store = multihost.store()
    if store is None:
        return []
    store.key_value_set(f"{KEY}{doing.process}", json.dumps(dataclasses.asdict(doing)), allow_overwrite=True)
    return _everyone() if doing.process == 0 else []


def _everyone() -> list[Doing]:
    store = multihost.store()
    if store is None:
        return []
    return [Doing(**json.loads(value)) for _, value in store.key_value_dir_get(KEY)]
