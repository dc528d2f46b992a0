"""The step guard: counts non-finite updates, records them in bad_steps.jsonl and decides on rollbacks."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from vaejax import files
from vaejax.config.schema import RecoveryConfig
from vaejax.data.pipeline import Batch
from vaejax.errors import TrainingFailed
from vaejax.losses.objective import Terms
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.positions import from_json, to_json
from vaejax.runtime import distributed


class Pending(NamedTuple):
    """An update whose metrics the host has not read yet.

    Attributes:
      step: number of the update, counted from 0.
      batches: this process's samples of each bucket's batch, by bucket.
      terms: metrics of each bucket, and of the whole update as 'all'; still on the devices.
    """

    step: int
    batches: Mapping[str, Batch]
    terms: Mapping[str, Terms]


class StepGuard:
    """Counts skipped updates and rollbacks. All processes hold the same counts; process 0 writes them.

    bad_steps.jsonl, in the folder of the run, has a line {"step", "samples": {bucket: names}} for each
    skipped update, and a line {"step", "back_to", "positions"} for each rollback. "positions" are the data
    positions before the rollback, see vaejax.rundir.positions.

    Args:
      folder: folder of the run; if it has a bad_steps.jsonl, counting continues from it.
      config: section `recovery` of the configuration.
      start: step at which the run starts or resumes. The run repeats the updates from this step on, so their
        lines are dropped if they come after the line of the latest rollback.

    Attributes:
      total: updates skipped so far.
      in_row: number of consecutive skipped updates, ending with the latest update.
      rollbacks: rollbacks so far.
      restart_step: step of the checkpoint that the latest rollback returned to; `start` before any rollback.
    """

    def __init__(self, folder: RunFolder, config: RecoveryConfig, start: int):
        self._path, self._config = folder.bad_steps, config
        # All processes use what process 0 reads: other hosts may still see an older version of the file.
        lines = files.read_json_lines(self._path) if jax.process_index() == 0 else []
        self._lines: list[dict] = distributed.all_gather(lines)[0]
        last_rollback = max((i for i, line in enumerate(self._lines) if "back_to" in line), default=-1)
        kept = [line for line in self._lines[last_rollback + 1 :] if line["step"] < start]
        self._lines = self._lines[: last_rollback + 1] + kept
        self.rollbacks = sum("back_to" in line for line in self._lines)
        self.total = len(self._lines) - self.rollbacks
        self.restart_step, self.in_row, step = start, 0, start - 1
        while kept and kept[-1]["step"] == step:
            self.in_row, step = self.in_row + 1, step - 1
            kept.pop()
        if self._lines or self._path.exists():
            self._write()

    def positions(self, start: int, config: Mapping[str, Any]) -> dict[str, int]:
        """The data positions that replace those of checkpoint `start`: samples drawn so far, by bucket name.

        If the latest rollback returned to this checkpoint, they are the positions before that rollback, so
        that training continues with new samples. Otherwise nothing is replaced, and the result is {}.

        Args:
          start: step of the checkpoint; 0 if the run starts anew.
          config: configuration of the checkpoint, as nested dictionaries.
        """
        rollbacks = [line for line in self._lines if "back_to" in line]
        if not rollbacks or rollbacks[-1]["back_to"] != start:
            return {}
        return from_json(rollbacks[-1]["positions"], config)

    def check(self, pending: Pending | None) -> None:
        """Waits for the pending update, if there is one, and counts it as skipped if it was not finite."""
        if pending is None:
            return
        if bool(pending.terms["all"]["finite"]):
            self.in_row = 0
            return
        # If every bucket is finite but the update is not, all buckets are recorded.
        bad = [name for name in pending.batches if not pending.terms[name]["finite"]]
        self.count(pending.step, {name: pending.batches[name] for name in bad or pending.batches})

    def count(self, step: int, batches: Mapping[str, Batch]) -> None:
        """Records a skipped update and the names of its samples; `batches` are this process's samples."""
        self.total, self.in_row = self.total + 1, self.in_row + 1
        parts = {name: dict(zip(batch.rows, batch.names, strict=True)) for name, batch in batches.items()}
        samples: dict[str, dict[int, str]] = {name: {} for name in parts}
        for of_host in distributed.all_gather({name: list(part.items()) for name, part in parts.items()}):
            for name, part in of_host.items():
                samples[name] |= dict(map(tuple, part))
        in_order = {name: [part[row] for row in sorted(part)] for name, part in samples.items()}
        self._lines.append({"step": step, "samples": in_order})
        self._write()

    @property
    def must_roll_back(self) -> bool:
        """Whether recovery.bad_steps or more consecutive updates were skipped."""
        return self.in_row >= self._config.bad_steps

    def roll_back(self, step: int, back_to: int, positions: Mapping[str, int]) -> None:
        """Records a rollback from `step` to checkpoint `back_to`, and the samples drawn per bucket.

        Raises:
          TrainingFailed: if recovery.rollbacks earlier rollbacks already returned to this checkpoint.
        """
        most = self._config.rollbacks
        if sum(line.get("back_to") == back_to for line in self._lines) >= most:
            raise TrainingFailed(
                f"step {step}: {self.in_row} consecutive updates are not finite after {most} rollbacks"
                f" (recovery.rollbacks) to step {back_to}; bad_steps.jsonl names the samples of these"
                " updates. Lower optim.learning_rate or optim.agc, or remove a loss term"
            )
        self.rollbacks, self.in_row, self.restart_step = self.rollbacks + 1, 0, back_to
        self._lines.append({"step": step, "back_to": back_to, "positions": to_json(positions)})
        self._write()

    def _write(self) -> None:
        if jax.process_index() == 0:
            files.write_json_lines(self._path, self._lines)
