"""A stopwatch that attributes every moment to one cause."""

import collections
import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Attributes all time since its creation to causes.

    Args:
      cause: cause of the time from now on.
    """

    def __init__(self, cause: str):
        self._seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
        self._cause, self._since = cause, time.monotonic()

    def begin(self, cause: str) -> str:
        """Attributes the time from now on to `cause`; returns the cause until now."""
        now, before = time.monotonic(), self._cause
        self._seconds[before] += now - self._since
        self._cause, self._since = cause, now
        return before

    @contextlib.contextmanager
    def on(self, cause: str) -> Iterator[None]:
        """A context whose time is attributed to `cause`, except for such contexts inside it."""
        before = self.begin(cause)
        try:
            yield
        finally:
            self.begin(before)

    def seconds(self, *causes: str) -> float:
        """Seconds until now that are attributed to any of `causes`."""
        self.begin(self._cause)
        return sum(self._seconds[cause] for cause in causes)
