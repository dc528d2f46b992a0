"""The lease of a run in a bucket: only one process, or one group of hosts, writes to a run at a time.

The lease is an object that its holder rewrites every few seconds. Every write names the generation that it
replaces, so the store refuses it if another process has written in between.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from vaejax.errors import FAILED, InputError, TrainingFailed, one_line
from vaejax.runtime import storage

NAME = ".lease"
BEAT = 15.0  # seconds between two writes of the holder


class Lease:
    """Takes the lease of a run, and keeps it until `release`.

    A lease that another process wrote is watched for three beats. If it does not change, its holder is dead,
    and this process takes it over. No clocks are compared.

    Args:
      url: gs://BUCKET/RUN.
      lost: called in a thread, with the reason, if another process has taken the lease over; default: ends
        this process with one line.
      beat: seconds between two writes; 0: BEAT.

    Attributes:
      token: identifies this holder.
      writes: number of writes so far.

    Raises:
      InputError: if another process holds the lease, or the store refuses.
    """

    def __init__(self, url: str, lost: Callable[[str], None] | None = None, beat: float = 0.0):
        self._url, self._lost, self._beat = url, lost or _end, beat or BEAT
        self.token, self.writes = secrets.token_hex(8), 0
        self._closed, self._lock, self._written = threading.Event(), threading.Lock(), 0.0
        with storage.answering(url, "--workdir"):
            self._bucket, self._name = _bucket(url), _name(url)
            self._generation = self._take()
        threading.Thread(target=self._keep, daemon=True, name="lease").start()

    def check(self) -> None:
        """Writes the lease, unless it was written within the last second: more often, stores refuse.

        Raises:
          TrainingFailed: if another process has taken it over.
        """
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with self._lock:
            if time.monotonic() - self._written < min(1.0, self._beat / 2):
                return
            try:
                self._generation = self._write(self._generation)
            except (PreconditionFailed, NotFound):
                generation, holder = self._read()
                if holder.get("token") != self.token:  # otherwise the answer to this write was lost
                    raise TrainingFailed(
                        f"--workdir={self._url}: {_named(holder)} has taken over this run, because this"
                        f" process was silent for {3 * self._beat:g} s or the lease was deleted"
                    ) from None
                self._generation = generation

    def release(self) -> None:
        """Gives the lease up, if it is still this process's."""
        self._closed.set()
        with self._lock, contextlib.suppress(Exception):  # otherwise it becomes stale
            blob = self._bucket.blob(self._name)
            if json.loads(blob.download_as_bytes(retry=None)).get("token") == self.token:
                blob.delete(if_generation_match=blob.generation, retry=None)

    def _take(self) -> int:
        """Creates the lease, or takes over one that is stale; returns its generation."""
        from google.api_core.exceptions import PreconditionFailed

        seen, since = 0, 0.0
        while True:
            try:
                return self._write(seen if seen and time.monotonic() - since >= 3 * self._beat else 0)
            except PreconditionFailed:
                generation, holder = self._read()
            if holder.get("token") == self.token:
                return generation
            if seen and generation != seen and generation:
                raise InputError(
                    f"--workdir={self._url}: {_named(holder)} trains there; accepted: another folder, or this"
                    " one after that process has ended"
                )
            if generation and not seen:
                print(
                    f"--workdir={self._url}: {_named(holder)} trained there and has not ended properly;"
                    f" waiting {3 * self._beat:g} s for a sign of life",
                    file=sys.stderr,
                )
                since = time.monotonic()
            seen = generation
            time.sleep(self._beat / 5)

    def _keep(self) -> None:
        while not self._closed.wait(self._beat):
            try:
                self.check()
            except TrainingFailed as error:
                if not self._closed.is_set():
                    self._lost(str(error))
                return
            except Exception as error:  # the store does not answer, although the request was repeated
                print(f"warning: {self._url}/{NAME}: {one_line(error)}", file=sys.stderr)

    def _write(self, generation: int) -> int:
        """Writes the lease over a generation, 0 if there is none; returns the new generation."""
        self.writes += 1
        holder = {"token": self.token, "pid": os.getpid(), "host": socket.gethostname(), "beat": self.writes}
        blob = self._bucket.blob(self._name)
        blob.upload_from_string(json.dumps(holder), if_generation_match=generation)
        self._written = time.monotonic()
        return blob.generation

    def _read(self) -> tuple[int, dict[str, Any]]:
        return _read(self._bucket, self._name)


def holder_of(url: str) -> str:
    """The token of the holder of a run's lease; '' if there is none.

    Raises:
      InputError: if the store refuses.
    """
    with storage.answering(url, "--workdir"):
        return _read(_bucket(url), _name(url))[1].get("token", "")


def _bucket(url: str) -> Any:
    from google.cloud.storage import Client

    # No request for objects needs a project; without one, the client would look for it and fail.
    return Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT") or "none").bucket(url.split("/")[2])


def _name(url: str) -> str:
    return f"{url.split('/', 3)[3]}/{NAME}"


def _read(bucket: Any, name: str) -> tuple[int, dict[str, Any]]:
    """The generation and the content of a lease; 0 and {} if there is none."""
    from google.api_core.exceptions import NotFound

    blob = bucket.blob(name)
    try:
        content = blob.download_as_bytes()  # this also sets the generation
        return int(blob.generation), json.loads(content)
    except NotFound:
        return 0, {}
    except ValueError:
        return int(blob.generation), {}


def _named(holder: dict[str, Any]) -> str:
    known = "pid" in holder and "host" in holder
    return f"process {holder['pid']} on {holder['host']}" if known else "another process"


def _end(reason: str) -> None:
    print(f"error: {reason}", file=sys.stderr, flush=True)
    os._exit(FAILED)
