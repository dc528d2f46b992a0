"""Signals that ask a run to stop: remembered here, acted on between two updates."""

import os
import signal
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

AGREE_EVERY = 10
EXIT_CODE = 75  # EX_TEMPFAIL: run the same command to go on


class Preemption:
    """Remembers SIGTERM and SIGINT while entered; a second SIGINT interrupts at once."""

    def __init__(self):
        self._received = False

    def __enter__(self) -> "Preemption":
        self._handlers = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _receive(self, number, frame):
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._received:
            told = b"stopping after this update and saving; Ctrl-C again stops at once\n"
            os.write(sys.stderr.fileno(), told)  # print is not safe in a handler
        self._received = True

    def received(self) -> bool:
        """Whether any process was asked to stop; all processes ask together and get the same answer."""
        if jax.process_count() == 1:
            return self._received
        return bool(multihost_utils.process_allgather(np.array(self._received)).any())

    def requested(self, step: int) -> bool:
        """Whether any process was asked to stop; all processes get the same answer at the same step.

        Several processes ask each other every `AGREE_EVERY` steps only, since asking waits for the device.
        """
        return (jax.process_count() == 1 or step % AGREE_EVERY == 0) and self.received()
