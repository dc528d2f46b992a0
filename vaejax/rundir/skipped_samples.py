"""What could not be read, and why: DIR/bad_samples.jsonl."""

import json
import os
from collections.abc import Iterable, Sequence

from vaejax.data.table import Source
from vaejax.runtime import distributed as multihost


def unreadable(sources: Sequence[Source]) -> list[tuple[str, str]]:
    """The (path, reason) of each file that was found unreadable when its source was opened."""
    return [one for source in sources for one in source.bad]


class BadSamples:
    """Lines of {"path", "reason", "count"}: how often each file was met in vain, over all resumes and hosts.

    Args:
      path: the file. What an earlier run wrote is counted on from; a damaged line is dropped, for this file
        must never stop a run.
      writes: whether this process writes.
    """

    def __init__(self, path: str | os.PathLike, writes: bool = True):
        self._path, self._writes, self._new = os.fspath(path), writes, []
        self._counts: dict[tuple[str, str], int] = {}
        if os.path.exists(self._path):
            with open(self._path, encoding="utf-8", errors="surrogateescape") as lines:
                for line in lines:
                    try:
                        one = json.loads(line)
                        self._counts[one["path"], one["reason"]] = int(one["count"])
                    except (ValueError, KeyError, TypeError):
                        continue

    def found(self, bad: Iterable[tuple[str, str]]) -> None:
        """Lists files found unreadable when the sources were opened, once however often they are opened."""
        fresh = {tuple(one): 1 for one in bad if tuple(one) not in self._counts}
        if fresh:
            self._counts |= fresh
            self._write()

    def replaced(self, bad: Iterable[tuple[str, str]]) -> None:
        """Counts files that samples of a batch had to replace."""
        self._new += bad

    def write(self) -> None:
        """Writes the file if any process met new ones; all ask together."""
        new = [tuple(one) for of_host in multihost.all_gather(self._new) for one in of_host]
        self._new = []
        for one in new:
            self._counts[one] = self._counts.get(one, 0) + 1
        if new:
            self._write()

    def _write(self) -> None:
        """In one stroke: a run that is killed leaves the old file or the new one, never half of it."""
        if not self._writes:
            return
        partial = f"{self._path}.partial"
        with open(partial, "w", encoding="utf-8", errors="surrogateescape") as lines:
            for (path, reason), count in sorted(self._counts.items()):
                lines.write(json.dumps({"path": path, "reason": reason, "count": count}) + "\n")
        os.replace(partial, self._path)
