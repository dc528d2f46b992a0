"""The time that a run will still spend on evaluations, checkpoints and latent statistics."""

import contextlib
from collections.abc import Iterator

from vaejax.config import Config
from vaejax.rundir.console import Later
from vaejax.runtime.stopwatch import Stopwatch
from vaejax.train.schedule import Schedule

# Time of the latent statistics per training sample, divided by an evaluation's time per held-out sample: the
# statistics encode a sample once; an evaluation encodes and decodes it twice and computes its scores.
STATISTICS = 0.2
CAUSES = {"score": "evaluation", "probe": "evaluation", "show": "evaluation", "save": "checkpoints"}
NAMES = {"score": "evaluation", "probe": "probe"}  # tasks that take long, as the console names them


class Remaining:
    """Times tasks, and predicts from the latest time of each how long the remaining ones will take.

    Args:
      config: configuration of the run.
      stopwatch: measures the tasks by their cause; default: a new one.
    """

    def __init__(self, config: Config, stopwatch: Stopwatch | None = None):
        self._stopwatch = stopwatch or Stopwatch("updates")
        self._schedule = Schedule(config)
        self._steps = config.steps
        self._statistics = STATISTICS * config.eval.latent_samples / config.eval.samples
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timing(self, task: str) -> Iterator[None]:
        """A context that runs a task: 'score', 'probe', 'show' or 'save'."""
        cause = CAUSES[task]
        begin = self._stopwatch.seconds(cause)
        with self._stopwatch.on(cause):
            yield
        self._seconds[task] = self._stopwatch.seconds(cause) - begin

    def after(self, step: int) -> Later:
        """The time of the tasks that are due after `step` updates or later, and of the latent statistics.

        Tasks that were never timed count as 0 seconds; the result names those of them that take long.
        """
        counts = self._schedule.remaining(step)
        seconds = sum(count * self._seconds.get(task, 0.0) for task, count in counts.items())
        seconds += self._statistics * self._seconds.get("score", 0.0)
        unknown = [name for task, name in NAMES.items() if counts[task] and task not in self._seconds]
        return Later(seconds, tuple(unknown))
