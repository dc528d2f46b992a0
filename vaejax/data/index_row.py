"""A row of a media index: whether an earlier scan already found what the next one would."""

from collections.abc import Iterable, Mapping
from typing import Any

from vaejax.data import media


def identity(row: Mapping[str, Any]) -> tuple:
    """The identity of a file's content: path, size and modification time."""
    return row["path"], row["size"], row["mtime_ns"]


def suffices(row: Mapping[str, Any] | None, scan: str, with_cuts: bool) -> bool:
    """Whether a row of an earlier scan, or None, holds what a scan would find."""
    if row is None:
        return False
    if row["error"]:
        return row["reader"] == media.reader()
    if with_cuts and row["kind"] == "video" and row["cuts"] is None:
        return False
    return row["scan"] in ("full", scan)


def known(rows: Iterable[dict], scan: str, with_cuts: bool) -> dict[tuple, dict]:
    """The rows of earlier scans by identity: of several, the last that suffices, or else the first."""
    found: dict[tuple, dict] = {}
    for row in rows:
        if suffices(row, scan, with_cuts) or identity(row) not in found:
            found[identity(row)] = row
    return found


def described(file: dict, earlier: dict | None) -> dict | None:
    """The row of a file: what its collection knows about it, or else an earlier row; None if unknown."""
    if file.get("width") or file.get("error"):
        return {"error": None, "reader": media.reader(), "scan": "full", "cuts": None} | file
    return earlier and earlier | file


def unread(file: dict) -> dict:
    """The row of a file that was not scanned; the next scan reads it."""
    return file | {"error": "not scanned yet", "reader": None}
