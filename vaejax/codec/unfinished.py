"""Files that are whole or not there: what is being written has another name until it is done."""

import contextlib
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
        with open(unfinished, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)


@contextlib.contextmanager
def scratch(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The name of a file that is needed while `path` is made, and removed then."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield unfinished
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def sweep(paths: Iterable[pathlib.Path]) -> None:
    """Removes what jobs that were killed left of these files; nobody else may be writing them."""
    names: dict[pathlib.Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, wanted in names.items():
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            left = [e.name for e in entries if (m := _NAME.fullmatch(e.name)) and m["target"] in wanted]
        for name in left:
            (folder / name).unlink(missing_ok=True)
