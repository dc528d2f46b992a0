"""Keeps a run in a bucket up to date while it trains, on process 0."""

import contextlib
import sys
import threading
import time

from vaejax.errors import TrainingFailed, one_line
from vaejax.rundir.lease import Lease
from vaejax.rundir.mirror import EVERY, Mirror


class Uploads:
    """Uploads what a run writes: every few seconds in a thread, and at once before a checkpoint.

    Args:
      mirror: the files of the run.
      lease: the lease of the run, which `close` releases; None without one.
    """

    def __init__(self, mirror: Mirror, lease: Lease | None):
        self._mirror, self._lease, self._began = mirror, lease, time.monotonic()
        self._closed, self._warned, self._failed = threading.Event(), False, False
        threading.Thread(target=self._push_often, daemon=True, name="uploads").start()

    def flush(self) -> None:
        """Uploads everything that has changed, if the run is still this process's.

        Raises:
          TrainingFailed: if it is not, or the store refuses.
        """
        try:
            if self._lease:
                self._lease.check()
            self._mirror.push()
        except Exception as error:  # of the store: the lease's errors have many types
            self._failed = True
            if isinstance(error, TrainingFailed):
                raise
            raise TrainingFailed(
                f"--workdir={self._mirror.url}: {one_line(error)}; run the same command to continue from the"
                " last complete checkpoint"
            ) from error

    def restart(self, step: int) -> None:
        """Makes the metrics in the bucket continue from a step, see `Mirror.restart`."""
        self._mirror.restart(step)

    def close(self) -> None:
        """Uploads the rest, releases the lease, and prints how many objects were written."""
        self._closed.set()
        if not self._failed:  # otherwise the run ends for that reason
            try:
                self.flush()
            except TrainingFailed as error:
                print(f"warning: {error}", file=sys.stderr)
        objects, minutes = self._mirror.writes, (time.monotonic() - self._began) / 60
        leases = ""
        if self._lease:
            self._lease.release()
            leases = f", and {self._lease.writes} writes of the lease"
        print(
            f"{self._mirror.url}: {objects} objects written, {self._mirror.bytes / 1e6:.1f} MB,"
            f" {objects / max(minutes, 1):.1f} a minute{leases}; without checkpoints",
            file=sys.stderr,
        )

    def _push_often(self) -> None:
        while not self._closed.wait(EVERY):
            try:
                self._mirror.push(everything=False)
                self._warned = False
            except Exception as error:  # the next call, or that before a checkpoint, tries again
                if not self._warned:
                    with contextlib.suppress(OSError):
                        print(f"warning: {one_line(error)}", file=sys.stderr)
                self._warned = True
