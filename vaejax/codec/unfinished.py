"""Files that are whole or not there: what is being written has another name until it is done."""

import contextlib
import fcntl
import os
import pathlib
import re
import uuid
from collections.abc import Iterable, Iterator
from typing import BinaryIO

_NAME = re.compile(r"\.(?P<target>.+)\.[0-9a-f]{8}\.part", re.DOTALL)


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file to write and read, which is at `path` once it was written without an error.

    Raises:
      OSError: if it cannot be written.
    """
    with scratch(path) as unfinished:
        with open(unfinished, "r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)


@contextlib.contextmanager
def scratch(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes an empty file that is needed while `path` is made, and removed then; until then it is locked.

    Raises:
      OSError: if it cannot be made.
    """
    unfinished, locked = _locked(path)
    try:
        with locked:
            yield unfinished
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _locked(path: pathlib.Path) -> tuple[pathlib.Path, BinaryIO]:
    while True:
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        file = open(unfinished, "xb")  # noqa: SIM115 - given to the caller
        with contextlib.suppress(OSError):  # a file system without locks: nothing is swept there
            fcntl.flock(file, fcntl.LOCK_EX)
        if unfinished.exists():  # not swept before it was locked
            return unfinished, file
        file.close()


def sweep(paths: Iterable[pathlib.Path]) -> None:
    """Removes what killed jobs left of these files, where it can; what is locked is being written."""
    names: dict[pathlib.Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, wanted in names.items():
        left = []
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            left = [e.name for e in entries if (m := _NAME.fullmatch(e.name)) and m["target"] in wanted]
        for name in left:
            with contextlib.suppress(OSError), open(folder / name, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (folder / name).unlink()
