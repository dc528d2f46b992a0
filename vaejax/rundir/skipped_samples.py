"""The record of unreadable files and how often they were skipped: bad_samples.jsonl in a run's folder."""

import os
from collections import Counter
from collections.abc import Iterable

from vaejax.files import read_json_lines, write_json_lines
from vaejax.runtime.distributed import all_gather


class SkippedSamples:
    """Counts how often each file was skipped, over all hosts and restarts.

    Each line of bad_samples.jsonl is {"path", "reason", "count"}.

    Args:
      path: path of bad_samples.jsonl. If the file exists, its counts continue. Damaged lines are dropped
        without an error, because this file must never stop a run.
      writes: whether this process writes the file.
    """

    def __init__(self, path: str | os.PathLike, writes: bool = True):
        self._path, self._writes = path, writes
        self._new: list[tuple[str, str]] = []
        self._counts: Counter[tuple[str, str]] = Counter()
        for line in read_json_lines(path):
            try:
                self._counts[line["path"], line["reason"]] = int(line["count"])
            except (KeyError, TypeError, ValueError):
                continue

    def add_unreadable(self, files: Iterable[tuple[str, str]]) -> None:
        """Counts files, as (path, reason), that were unreadable when a run started, unless counted before."""
        new = {file for file in files if file not in self._counts}
        if new:
            self._counts.update(new)
            self._write()

    def add_skipped(self, files: Iterable[tuple[str, str]]) -> None:
        """Counts files, as (path, reason), that were replaced in a batch; `write` saves the counts."""
        self._new += files

    def write(self) -> None:
        """Writes the file if any process skipped a file since the last call; all processes must call this."""
        new = [(path, reason) for of_host in all_gather(self._new) for path, reason in of_host]
        self._new = []
        self._counts.update(new)
        if new:
            self._write()

    def _write(self) -> None:
        if self._writes:
            counts = sorted(self._counts.items())
            write_json_lines(
                self._path, ({"path": path, "reason": reason, "count": n} for (path, reason), n in counts)
            )
