"""Signals that ask a run to stop: remembered here, acted on between two updates."""

import signal

import numpy as np
from jax.experimental import multihost_utils

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
        self._received = True

    def requested(self, process_count: int) -> bool:
        """Whether any process was asked to stop; all processes get the same answer at the same step."""
        if process_count == 1:
            return self._received
        return bool(multihost_utils.process_allgather(np.array(self._received)).any())
