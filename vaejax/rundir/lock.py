"""The lock of a run's folder: only one training process, or one group of hosts, writes to a run at a time."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import BinaryIO

import jax

from vaejax import cli
from vaejax.errors import InputError
from vaejax.rundir import checkpoint
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.lease import Lease, holder_of
from vaejax.rundir.mirror import Mirror
from vaejax.rundir.uploads import Uploads
from vaejax.runtime import distributed


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[RunFolder]:
    """A context in which no other process can train in this folder; all processes of a run call it.

    Process 0 holds an flock on DIR/.lock. The operating system releases it when that process ends, however it
    ends. The file stays, with the pid and the host of the latest holder. In a bucket, process 0 holds a lease
    instead, and what the run has there is downloaded on every process.

    Raises:
      InputError: on all processes, if a process of another run holds the lock or the file cannot be written.
    """
    is_main = jax.process_index() == 0
    if folder.mirror:
        with _leased(folder, folder.mirror):
            yield folder
        return
    file = distributed.main_process_first(lambda: _acquire(folder.path) if is_main else None)
    try:
        yield folder
    finally:
        if file:
            file.close()


@contextlib.contextmanager
def _leased(folder: RunFolder, mirror: Mirror) -> Iterator[None]:
    """A context in which no other process trains in this bucket's folder, and whose uploads go there."""

    def take() -> Lease | None:
        if jax.process_index():
            return None
        lease = Lease(mirror.url) if mirror.url.startswith("gs://") else None
        try:
            checkpoint.check_saves(mirror.path)
            if not lease:
                distributed.say(f"warning: no lease at {mirror.url}; do not start a second run there")
            mirror.pull(("init", "metrics"))
            mirror.merge_parts()
        except BaseException:
            if lease:
                lease.release()
            raise
        return lease

    lease = distributed.main_process_first(take)
    try:
        token = distributed.all_gather(lease.token if lease else "")[0]
        if jax.process_index() == 0:
            folder.uploads = Uploads(mirror, lease)
        elif token == (holder_of(mirror.url) if token else ""):
            mirror.pull(("init", "metrics"))
        else:
            raise InputError(
                f"--workdir={mirror.url}: not the bucket of process 0; accepted: the same bucket"
            )
        yield
    finally:
        if folder.uploads:
            folder.uploads.close()


def _acquire(folder: pathlib.Path) -> BinaryIO:
    """Opens and locks the file; closing it releases the lock.

    An flock lasts until the last copy of its descriptor is closed, so a child process must not keep one.
    Python closes the descriptor in commands that it starts. The hook does so in children that only fork.
    """
    with cli.writing(str(folder), "--workdir"):
        file = open(folder / ".lock", "a+b", buffering=0)  # noqa: SIM115 - the caller closes it
    os.register_at_fork(after_in_child=file.close)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            raise InputError(
                f"--workdir={folder}: {_holder(file)} trains there; accepted: another folder, or this one"
                " after that process has ended"
            ) from None
    except OSError as error:
        distributed.say(
            f"warning: --workdir={folder} is on a file system without locks ({error.strerror});"
            " do not start a second run there"
        )
        return file
    with cli.writing(str(folder), "--workdir"):
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        os.fsync(file.fileno())  # network file systems would write it only on close
    return file


def _holder(file: BinaryIO) -> str:
    """The process that wrote the file; 'another process' if it has not written it yet."""
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
