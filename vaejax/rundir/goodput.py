"""Goodput: the share of a run's wall time that was spent in updates, and the causes of the rest.

Every moment has exactly one cause, so the shares add up to 1:

  updates       training, with the reading of its metrics
  data          updates waited for samples
  compilation   programs of the update were compiled; those of an evaluation count as evaluation
  evaluation    scores, the probe, panels, latent statistics
  checkpoints   saving, and sending to Weights & Biases what a checkpoint covers
  startup       until the first update of a session, and after a rollback: media, networks, the checkpoint
  lost          updates and their waiting that were in vain, because a restart or a rollback repeats them
  stopped       between two sessions; for a killed one, since its last log line
"""

import contextlib
import os
import time

from vaejax import files
from vaejax.rundir.console import duration
from vaejax.runtime.stopwatch import Stopwatch

CAUSES: tuple[str, ...] = (
    "updates",
    "data",
    "compilation",
    "evaluation",
    "checkpoints",
    "startup",
    "lost",
    "stopped",
)
REPEATED: tuple[str, ...] = ("updates", "data")  # causes whose time is lost if a run returns to a checkpoint
CHECKPOINTS = 100  # latest checkpoints whose times are kept; a run returns to one of the last few


class Goodput:
    """Counts the time of a run by cause, over all its sessions. A session is one call of `fit`.

    Args:
      path: goodput.json, which holds the time of earlier sessions.
      writes: whether to write it; True only on process 0.

    Attributes:
      stopwatch: measures this session, which begins with the start-up.
    """

    def __init__(self, path: str | os.PathLike, writes: bool = True):
        self.stopwatch = Stopwatch("startup")
        self._path, self._writes = path, writes
        self._run = dict.fromkeys(CAUSES, 0.0)  # seconds since the first start of the run
        self._session = dict.fromkeys(CAUSES, 0.0)  # seconds of this session
        self._measured = dict.fromkeys(CAUSES, 0.0)  # the time of the stopwatch that these two include
        self._saved: dict[int, dict[str, float]] = {}  # seconds of REPEATED at each checkpoint
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, damaged
            saved = files.read_json(path)
            self._saved = {int(step): dict(seconds) for step, seconds in saved["checkpoints"].items()}
            self._run |= saved["seconds"]
            self._run["stopped"] += max(0.0, time.time() - saved["written"])

    def saved(self, step: int) -> None:
        """Notes that a checkpoint of this step is being saved, and writes the time until now."""
        self._measure()
        self._saved[step] = {cause: self._run[cause] for cause in REPEATED}
        self._saved = dict(sorted(self._saved.items())[-CHECKPOINTS:])
        self.write()

    def back_to(self, step: int) -> None:
        """Counts the updates since the checkpoint of this step as lost, because the run now repeats them.

        Args:
          step: step of the checkpoint, or 0. If its time is unknown, because an earlier version of vaejax
            saved it, nothing counts as lost.
        """
        self._measure()
        self._saved = {at: seconds for at, seconds in self._saved.items() if at <= step}
        kept = self._saved.get(step, {}) if step else dict.fromkeys(REPEATED, 0.0)
        for cause, seconds in kept.items():
            lost = max(0.0, self._run[cause] - seconds)
            for of in (self._run, self._session):
                moved = min(lost, of[cause])
                of[cause] -= moved
                of["lost"] += moved

    def seconds(self) -> dict[str, float]:
        """Seconds by cause since the first start of the run."""
        self._measure()
        return dict(self._run)

    def scalars(self) -> dict[str, float]:
        """The shares of the time since the first start of the run, and the goodput of this session.

        Returns:
          {'train/all/NAME': share}. NAME is goodput, goodput_session, or badput_CAUSE for the other causes.
        """
        self._measure()
        run, session = _shares(self._run), _shares(self._session)
        scalars = {"train/all/goodput": run["updates"], "train/all/goodput_session": session["updates"]}
        return scalars | {f"train/all/badput_{cause}": run[cause] for cause in CAUSES if cause != "updates"}

    def summary(self) -> str:
        """One line about the whole run and, if this is not its first session, another about this session."""
        self._measure()
        line = _line("goodput", self._run)
        return line if self._run == self._session else f"{line}\n{_line('  this session', self._session)}"

    def write(self) -> None:
        """Writes the time until now, on process 0."""
        self._measure()
        if self._writes:
            saved = {str(step): seconds for step, seconds in self._saved.items()}
            times = {"written": time.time(), "seconds": self._run, "checkpoints": saved}
            files.write_json(self._path, times)

    def _measure(self) -> None:
        """Adds the time that the stopwatch has measured since the last call."""
        for cause in CAUSES:
            now = self.stopwatch.seconds(cause)
            new, self._measured[cause] = now - self._measured[cause], now
            self._run[cause] += new
            self._session[cause] += new


def _shares(seconds: dict[str, float]) -> dict[str, float]:
    total = sum(seconds.values()) or 1.0
    return {cause: one / total for cause, one in seconds.items()}


def _line(title: str, seconds: dict[str, float]) -> str:
    """Such as 'goodput: 81.2% of 2h14m in updates; evaluation 12.0%, compilation 6.8%'."""
    shares = _shares(seconds)
    updates = shares.pop("updates")
    rest = sorted(((share, cause) for cause, share in shares.items() if share >= 5e-4), reverse=True)
    causes = ", ".join(f"{cause} {100 * share:.1f}%" for share, cause in rest)
    return f"{title}: {100 * updates:.1f}% of {duration(sum(seconds.values()))} in updates; {causes}"
