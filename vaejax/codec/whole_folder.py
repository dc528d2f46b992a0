"""A folder that is whole or not there: what is being written has another name until it is done."""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator

from vaejax.codec.load import UNFINISHED


@contextlib.contextmanager
def whole_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes a folder to write to, which is at `path` once that was done without an error.

    What was at `path` stays until then, and comes back if the last step fails; what a killed job left is
    removed first.

    Raises:
      OSError: if it cannot be written.
    """
    unfinished, former = (path.with_name(f".{path.name}{end}") for end in (UNFINISHED, ".former"))
    _settle(path, former)
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if path.exists() and any(path.iterdir()):
            path.rename(former)
        unfinished.rename(path)
    finally:
        _settle(path, former)
        shutil.rmtree(unfinished, ignore_errors=True)


def _settle(path: pathlib.Path, former: pathlib.Path) -> None:
    """Removes what was replaced, or puts it back where nothing took its place."""
    if former.exists() and not path.exists():
        former.rename(path)
    elif former.exists():
        shutil.rmtree(former)
