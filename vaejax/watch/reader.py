"""The state of a run, read from the files in its folder while it trains or afterwards."""

import dataclasses
import enum
import math
import pathlib
import re
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from vaejax import files
from vaejax.config import Config
from vaejax.rundir import mirror
from vaejax.rundir.folder import RunFolder

Curve = list[tuple[float, float]]  # (step, value), by step

_RECENT = 21  # log intervals whose median speed predicts the remaining time
_SILENCE = 600.0  # seconds of patience if recovery.stall is 0
_SLOW = 10  # factor on the patience during start-up, compilation and evaluation, as in the watchdog


class State(enum.Enum):
    """The activity of a run, as far as its files show it."""

    STARTING = "starting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    STALLED = "stalled or stopped"
    DONE = "done"


@dataclasses.dataclass(frozen=True)
class Run:
    """The state of a run.

    Attributes:
      folder: folder of the run.
      config: its configuration.
      curves: logged numbers by (split, bucket, name), with split 'train' or 'eval'.
      verdicts: alarms of each judged evaluation, {step: sentences}, oldest first.
      bad_steps: lines of bad_steps.jsonl: skipped updates and rollbacks.
      bad_samples: lines of bad_samples.jsonl: unreadable files.
      parameters: number of parameters; 0 if unknown.
      step: latest step in the metrics.
      state: activity of the run.
      age: seconds since the run wrote a file.
    """

    folder: RunFolder
    config: Config
    curves: Mapping[tuple[str, str, str], Curve]
    verdicts: Mapping[int, list[str]]
    bad_steps: list[dict[str, Any]]
    bad_samples: list[dict[str, Any]]
    parameters: int
    step: int
    state: State
    age: float

    @property
    def buckets(self) -> list[str]:
        """Names of the buckets that the run trains on."""
        return sorted(name for name, fields in self.config.data.buckets.items() if fields.get("batch"))

    def curve(self, split: str, bucket: str, name: str) -> Curve:
        """The points of a number; [] if it was never logged."""
        return self.curves.get((split, bucket, name), [])

    def latest(self, split: str, bucket: str, name: str) -> float:
        """The latest value of a number; NaN if it was never logged."""
        curve = self.curve(split, bucket, name)
        return curve[-1][1] if curve else math.nan

    @property
    def seconds_left(self) -> float:
        """Predicted seconds of training that remain, without evaluation; NaN if unknown."""
        seconds = [s for _, s in self.curve("train", "all", "step_seconds")[-_RECENT:] if math.isfinite(s)]
        return statistics.median_low(seconds) * (self.config.steps - self.step) if seconds else math.nan

    @property
    def panels(self) -> dict[str, dict[int, pathlib.Path]]:
        """The PNG panels: {bucket: {step: path}}, by step."""
        found: dict[str, dict[int, pathlib.Path]] = {}
        for step in sorted(_numbered(self.folder.path / "panels")):
            for bucket in self.buckets:
                path = self.folder.path / "panels" / str(step) / f"{bucket}.png"
                if path.is_file():
                    found.setdefault(bucket, {})[step] = path
        return found


def read(name: str, now: float) -> Run:
    """Reads the folder of a run; incomplete and damaged lines are skipped.

    Args:
      name: path or URL of the folder.
      now: the time, in seconds since 1970.

    Raises:
      InputError: if there is no configuration of a run.
    """
    mirror.refresh(name, ("metrics", "panels"))
    folder = RunFolder(name)
    config = folder.read_config()
    curves, verdicts, step = _metrics(_objects(folder.metrics))
    written = [_modified(folder.path / part) for part in ("config.json", "panels", "checkpoints")]
    written += [_modified(path) for path in (folder.metrics, folder.bad_steps, folder.bad_samples)]
    age = max(0.0, now - max(written))
    saved = max(mirror.saved_steps(folder.path), default=-1)
    return Run(
        folder,
        config,
        curves,
        verdicts,
        _objects(folder.bad_steps),
        _objects(folder.bad_samples),
        _parameters(folder.parameters),
        step,
        _state(config, curves, step, saved, age),
        age,
    )


def _objects(path: pathlib.Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines; [] if it cannot be read."""
    try:
        return [line for line in files.read_json_lines(path) if isinstance(line, dict)]
    except OSError:
        return []


def _metrics(
    lines: Iterable[Mapping[str, Any]],
) -> tuple[dict[tuple[str, str, str], Curve], dict[int, list[str]], int]:
    """Curves, verdicts and the latest step of the lines of metrics.jsonl.

    If a step was logged twice, the later value counts.
    """
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    verdicts: dict[int, dict[str, list[str]]] = {}
    latest = 0
    for line in lines:
        step, split, bucket = (line.get(name) for name in ("step", "split", "bucket"))
        if not isinstance(step, int) or not isinstance(split, str) or not isinstance(bucket, str):
            continue
        latest = max(latest, step)
        for name, value in line.items():
            if name == "verdict":
                prefix = "" if bucket in ("mean", "all") else f"{bucket} "  # none for the whole run
                sentences = value if isinstance(value, list) else [value]
                verdicts.setdefault(step, {})[bucket] = [f"{prefix}{one}" for one in sentences]
            elif name not in ("step", "split", "bucket"):
                values.setdefault((split, bucket, name), {})[step] = _number(value)
    curves: dict[tuple[str, str, str], Curve] = {
        key: sorted((float(step), value) for step, value in points.items()) for key, points in values.items()
    }
    in_order = {
        step: [one for sentences in by_bucket.values() for one in sentences]
        for step, by_bucket in sorted(verdicts.items())
    }
    return curves, in_order, latest


def _number(value: Any) -> float:
    """A logged value as a number; NaN if it is not a number. Non-finite numbers are logged as strings."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _state(config: Config, curves: Mapping, step: int, saved: int, age: float) -> State:
    """The state of a run from its latest step, its latest checkpoint and its silence of `age` seconds."""
    if saved >= config.steps:
        return State.DONE
    evaluated = max(
        (points[-1][0] for (split, _, _), points in curves.items() if split == "eval"), default=-1
    )
    if not curves:
        state = State.STARTING
    elif evaluated < step and (step % config.eval.every == 0 or step >= config.steps):
        state = State.EVALUATING
    else:
        state = State.TRAINING
    quick = state is State.TRAINING and not _compiles(config, step)
    patience = (config.recovery.stall or _SILENCE) * (1 if quick else _SLOW)
    return State.STALLED if age > patience else state


def _compiles(config: Config, step: int) -> bool:
    """Whether a loss term starts, so that programs are compiled, in the log interval after `step`."""
    game = config.loss.adversarial
    starts = (config.loss.perceptual.start, game.start, game.start - game.warmup)
    return any(step <= first < step + config.log_every for first in starts)


def _numbered(folder: pathlib.Path) -> list[int]:
    """The names in a folder that are numbers; [] if there is no folder."""
    try:
        return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
    except OSError:
        return []


def _modified(path: pathlib.Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _parameters(path: pathlib.Path) -> int:
    """The total in parameters.txt."""
    try:
        found = re.search(r"^parameters: ([\d,]+)", path.read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return 0
    return int(found[1].replace(",", "")) if found else 0
