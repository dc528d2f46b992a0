"""Signals that ask a run to stop: remembered here, acted on between two updates."""

import os
import signal
import sys
import time

import jax

from vaejax.runtime import distributed as multihost

AGREE_SECONDS = 5  # between two times that several processes ask each other, about


class Preemption:
    """Remembers SIGTERM and SIGINT while entered; a second SIGINT interrupts at once."""

    def __init__(self):
        self._received = self._agreed = False
        self._asked_at, self._step, self._next = time.monotonic(), -1, -1  # no step, so far

    def __enter__(self) -> "Preemption":
        self._handlers = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._agreed and jax.process_count() > 1:
            # It has saved and is about to end; Slurm, for one, terminates the last when the first has ended.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _receive(self, number, frame):
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._received:
            told = b"stopping after this update and saving; Ctrl-C again stops at once\n"
            os.write(sys.stderr.fileno(), told)  # print is not safe in a handler
        self._received = True

    def received(self) -> bool:
        """Whether any process was asked to stop; all processes ask together and get the same answer."""
        self._agreed = self._agreed or any(multihost.gathered(self._received))
        return self._agreed

    def requested(self, step: int) -> bool:
        """Whether any process was asked to stop; all processes get the same answer at the same step.

        Asking waits for the device, so several processes do it every few seconds only. They agree on the next
        step at which they ask by what the steps since the last took the slowest of them. At the first step,
        and at the first after a return to a checkpoint, they ask.
        """
        if jax.process_count() == 1:
            return self._received
        if self._step <= step < self._next:
            return False
        now = time.monotonic()
        passed = step - self._step if 0 <= self._step < step else 1
        seconds = (now - self._asked_at) / passed
        self._asked_at, self._step = now, step
        received, seconds = zip(*multihost.gathered([self._received, seconds]), strict=True)
        self._next = step + max(1, min(100, int(AGREE_SECONDS / max(*seconds, 1e-3))))
        self._agreed = any(received)
        return self._agreed
