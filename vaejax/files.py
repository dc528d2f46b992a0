"""Paths, atomic files and folders, and strict JSON.

A file or folder is written under a temporary hidden name and renamed when it is complete, so readers never
see an incomplete one. If the process is killed, the old file or folder stays in place, with one exception.
Replacing a folder takes two renames. A kill between them leaves the old folder hidden, until the next
`atomic_folder` of the same path restores it.
"""

import contextlib
import fcntl
import json
import math
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from vaejax.errors import InputError

UNFINISHED = ".partial"  # suffix of a folder that is being written
_FORMER = ".former"  # suffix of a folder that is being replaced
_SCRATCH = re.compile(r"\.(?P<target>.+)\.[0-9a-f]{8}\.part", re.DOTALL)


def expand_home(path: str | os.PathLike) -> str:
    """Returns a path with a leading ~ replaced by the home folder.

    Raises:
      InputError: if no home folder is known. Python would leave ~ in the path, as the name of a folder.
    """
    expanded = os.path.expanduser(path)
    if pathlib.PurePath(expanded).parts[:1] == ("~",):
        raise InputError(
            f"{os.fspath(path)}: no home folder is known; accepted: a path without ~, or $HOME set"
        )
    return os.fspath(expanded)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a temporary file for reading and writing, and renames it to `path` if the block succeeds.

    Raises:
      OSError: if the file cannot be written.
    """
    path = pathlib.Path(path)
    with scratch(path) as unfinished:
        with open(unfinished, "r+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)


@contextlib.contextmanager
def scratch(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Creates an empty temporary file next to `path`, locked while in use and removed afterwards.

    Raises:
      OSError: if the file cannot be created.
    """
    unfinished, lock = _locked(pathlib.Path(path))
    try:
        with lock:
            yield unfinished
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _locked(path: pathlib.Path) -> tuple[pathlib.Path, BinaryIO]:
    while True:
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        file = open(unfinished, "xb")  # noqa: SIM115 - the caller closes it
        with contextlib.suppress(OSError):  # on a file system without locks, `sweep` removes nothing
            fcntl.flock(file, fcntl.LOCK_EX)
        if unfinished.exists():  # otherwise `sweep` removed it before it was locked
            return unfinished, file
        file.close()


def sweep(paths: Iterable[pathlib.Path]) -> None:
    """Removes the temporary files that killed jobs left for these paths; locked ones are in use and stay."""
    names: dict[pathlib.Path, set[str]] = {}
    for path in paths:
        names.setdefault(path.parent, set()).add(path.name)
    for folder, wanted in names.items():
        left = []
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            left = [e.name for e in entries if (m := _SCRATCH.fullmatch(e.name)) and m["target"] in wanted]
        for name in left:
            with contextlib.suppress(OSError), open(folder / name, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (folder / name).unlink()


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, keep: bool = False) -> Iterator[pathlib.Path]:
    """Creates a temporary folder, and renames it to `path` if the block succeeds.

    A folder that is already at `path` stays there while the block runs, and is restored if the renaming
    fails. What a killed job left behind is cleaned up before the block.

    Args:
      path: the folder.
      keep: whether the temporary folder stays if the block fails, and the next call continues with it.

    Raises:
      OSError: if the folder cannot be written.
    """
    path = pathlib.Path(path)
    unfinished, former = (path.with_name(f".{path.name}{suffix}") for suffix in (UNFINISHED, _FORMER))
    _settle(path, former)
    if unfinished.exists() and not keep:
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True, exist_ok=keep)
    try:
        yield unfinished
        if path.exists() and any(path.iterdir()):
            path.rename(former)
        unfinished.rename(path)
    finally:
        _settle(path, former)
        if keep:
            with contextlib.suppress(OSError):
                unfinished.rmdir()  # if it is empty
        else:
            shutil.rmtree(unfinished, ignore_errors=True)


def _settle(path: pathlib.Path, former: pathlib.Path) -> None:
    """Removes `former`, the folder that was at `path`, or restores it if nothing has replaced it."""
    if former.exists() and not path.exists():
        former.rename(path)
    elif former.exists():
        shutil.rmtree(former)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a whole file atomically.

    Raises:
      OSError: if the file cannot be written.
    """
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a whole UTF-8 file atomically; surrogate escapes, as in file names, become the original bytes.

    Raises:
      OSError: if the file cannot be written.
    """
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes strict JSON with sorted keys, atomically: equal values give equal bytes.

    JSON has no NaN and no infinity. They become the strings "NaN", "Infinity" and "-Infinity", which
    `float(value)` in Python and `Number(value)` in JavaScript parse.

    Args:
      path: the file.
      value: dictionaries, lists, strings and numbers; NumPy arrays and numbers are converted.

    Raises:
      OSError: if the file cannot be written.
    """
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Strict JSON with sorted keys, as `write_json` writes it."""
    text = json.dumps(strict(value), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    # A file name that is not UTF-8 has lone surrogates, which JSON can only escape.
    return (text + "\n").encode("utf-8", "backslashreplace")


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file; the strings "NaN", "Infinity" and "-Infinity" stay strings.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is not valid JSON.
    """
    return json.loads(pathlib.Path(path).read_bytes())


def read_json_lines(path: str | os.PathLike) -> list[dict]:
    """Reads a file of one JSON object per line; skips invalid lines; returns [] if there is no file.

    An invalid line is usually the last one, which a killed process left incomplete.
    """
    lines = []
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
    return lines


def write_json_lines(path: str | os.PathLike, lines: Iterable[dict]) -> None:
    """Writes one JSON object per line, atomically.

    Raises:
      OSError: if the file cannot be written.
    """
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def strict(value: Any) -> Any:
    """Converts a value for strict JSON: plain Python types, with non-finite numbers as strings."""
    if isinstance(value, dict):
        return {str(key): strict(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(one) for one in value]
    if isinstance(value, np.ndarray):
        return strict(value.tolist())
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, (float, np.floating)):
        value = float(value)
        if math.isnan(value):
            return "NaN"
        return value if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"
    return value
