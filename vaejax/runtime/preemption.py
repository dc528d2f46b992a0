"""Signals that stop a run: recorded when they arrive, acted on between two updates."""

import os
import signal
import sys
import time
from typing import Any

import jax

from vaejax.runtime import distributed

AGREE_SECONDS = 5  # approximate time between two exchanges in which the processes compare signals


class Preemption:
    """Records SIGTERM and SIGINT after `listen` is called; a SIGINT after another signal interrupts at once.

    Leaving the context restores the previous signal handlers. If several processes have agreed to stop,
    leaving it also makes this process ignore SIGTERM.
    """

    def __init__(self):
        self._received = self._agreed = False
        self._handlers: dict[signal.Signals, Any] = {}
        self._asked_at, self._step, self._next = time.monotonic(), -1, -1  # no step yet

    def __enter__(self) -> "Preemption":
        return self

    def listen(self) -> None:
        """Starts to catch signals."""
        if not self._handlers:
            self._handlers = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *exception):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._agreed and jax.process_count() > 1:
            # The run has saved and is about to end. As soon as one process ends, Slurm terminates the others.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _receive(self, number, frame):
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._received:
            message = b"stopping after this update, then saving; Ctrl-C again stops at once without saving\n"
            os.write(sys.stderr.fileno(), message)  # print is not safe in a handler
        self._received = True

    def received(self) -> bool:
        """Whether any process received a signal; all processes must call it together."""
        self._agreed = self._agreed or any(distributed.all_gather(self._received))
        return self._agreed

    def requested(self, step: int) -> bool:
        """Whether any process received a signal, with the same answer on all processes.

        An exchange waits for the devices, so several processes exchange only every few seconds. They choose
        the step of the next exchange by the pace of the slowest process. They always exchange at the first
        step, and when a rollback has returned to a step before the latest exchange.
        """
        if jax.process_count() == 1:
            return self._received
        if self._step <= step < self._next:
            return False
        now = time.monotonic()
        passed = step - self._step if 0 <= self._step < step else 1
        seconds = (now - self._asked_at) / passed
        self._asked_at, self._step = now, step
        received, seconds = zip(*distributed.all_gather([self._received, seconds]), strict=True)
        self._next = step + max(1, min(100, int(AGREE_SECONDS / max(*seconds, 1e-3))))
        self._agreed = any(received)
        return self._agreed
