"""The schedule of logging, evaluation and checkpoints."""

from typing import NamedTuple

from vaejax.config import Config


class Due(NamedTuple):
    """The tasks that are due after an update.

    Attributes:
      log: whether to log metrics.
      score: whether to score held-out samples.
      probe: whether to run the diffusion probe.
      show: whether to write panels of reconstructions.
      save: whether to save a checkpoint.
      last: whether this was the last update of the run.
    """

    log: bool
    score: bool
    probe: bool
    show: bool
    save: bool
    last: bool

    @property
    def evaluates(self) -> bool:
        """Whether any of `score`, `probe` and `show` is due."""
        return self.score or self.probe or self.show


class Schedule:
    """Decides which tasks are due, from the configured intervals in updates; 0 turns a task off."""

    def __init__(self, config: Config):
        self._steps = config.steps
        self._every = (
            config.log_every,
            config.eval.every,
            config.probe.every,
            config.panels.every,
            config.checkpoint.every,
        )

    def due(self, step: int) -> Due:
        """The tasks due once `step` updates are done; after the last update, all tasks that are not off."""
        last = step == self._steps
        log, score, probe, show, save = (bool(every and (step % every == 0 or last)) for every in self._every)
        return Due(log, score, probe, show, save, last)

    def remaining(self, step: int) -> dict[str, int]:
        """How often each of 'score', 'probe', 'show' and 'save' is due after `step` updates or later."""
        counts = {}
        for name, every in zip(("score", "probe", "show", "save"), self._every[1:], strict=True):
            regular = self._steps // every - (step - 1) // every if every else 0
            counts[name] = regular + bool(every and self._steps % every)
        return counts
