"""Updates that were skipped because something was not finite, and what was done: DIR/bad_steps.jsonl."""

import json
import os
from collections.abc import Mapping

import jax

from vaejax.data.pipeline import Batch
from vaejax.runtime import distributed as multihost


class BadSteps:
    """Lines of {"step", "samples": {bucket: names}} for skipped updates and {"step", "back_to", "positions"}.

    Every process keeps the same counts, from numbers that all of them share; one of them writes.

    Args:
      path: the file; what an earlier run wrote is counted on from.
      start: the step that the run goes on from. Skipped updates of later steps are dropped, for the run will
        meet them again; returns to a checkpoint are not, for their positions hold.
      writes: whether this process writes.

    Attributes:
      total: updates skipped so far.
      in_row: how many of them were the latest.
      rollbacks: returns to a checkpoint so far.
    """

    def __init__(self, path: str | os.PathLike, start: int, writes: bool = True):
        self._path, self._writes = os.fspath(path), writes
        # As process 0 has it: hosts may see a file that they share at different times.
        self._lines = multihost.gathered(_read(path) if jax.process_index() == 0 else [])[0]
        back = max((i for i, line in enumerate(self._lines) if "back_to" in line), default=-1)
        kept = [line for line in self._lines[back + 1 :] if line["step"] < start]
        self._lines = self._lines[: back + 1] + kept
        self.rollbacks = sum("back_to" in line for line in self._lines)
        self.total = len(self._lines) - self.rollbacks
        self.in_row, step = 0, start - 1
        while kept and kept[-1]["step"] == step:
            self.in_row, step = self.in_row + 1, step - 1
            kept.pop()
        if self._lines or os.path.exists(path):
            self._write()

    def positions(self, start: int) -> dict[str, int]:
        """Where the data goes on after a return to step `start` that no later checkpoint has seen."""
        back = [line for line in self._lines if "back_to" in line]
        return back[-1]["positions"] if back and back[-1]["back_to"] == start else {}

    def returns_to(self, step: int) -> int:
        """How often the run went back to this checkpoint."""
        return sum(line.get("back_to") == step for line in self._lines)

    def judge(self, step: int, finite: bool, batches: Mapping[str, Batch]) -> None:
        """Counts the update of `step`, from 0, of which all processes say the same.

        Args:
          step: of the update.
          finite: whether it was.
          batches: of the buckets that are to blame, this process's parts.
        """
        if finite:
            self.in_row = 0
            return
        self.total, self.in_row = self.total + 1, self.in_row + 1
        parts = {name: dict(zip(batch.rows, batch.names, strict=True)) for name, batch in batches.items()}
        samples: dict[str, dict[int, str]] = {name: {} for name in parts}
        for of_host in multihost.gathered({name: list(part.items()) for name, part in parts.items()}):
            for name, part in of_host.items():
                samples[name] |= dict(map(tuple, part))
        in_order = {name: [part[row] for row in sorted(part)] for name, part in samples.items()}
        self._lines.append({"step": step, "samples": in_order})
        self._write()

    def rolled_back(self, step: int, back_to: int, positions: Mapping[str, int]) -> None:
        """Notes that the run went from `step` back to a checkpoint, and from which samples it goes on."""
        self.rollbacks, self.in_row = self.rollbacks + 1, 0
        self._lines.append({"step": step, "back_to": back_to, "positions": dict(positions)})
        self._write()

    def _write(self) -> None:
        """In one stroke: a run that is killed leaves the old file or the new one, never half of it."""
        if self._writes:
            partial = f"{self._path}.partial"
            with open(partial, "w", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(json.dumps(line) + "\n" for line in self._lines)
            os.replace(partial, self._path)


def _read(path: str | os.PathLike) -> list[dict]:
    lines = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    lines.append(json.loads(line))
                except ValueError:  # torn by a kill
                    continue
    return lines
