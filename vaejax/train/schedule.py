"""The schedule of logging, evaluation and checkpoints."""

from typing import NamedTuple

from vaejax.config import Config


class Due(NamedTuple):
    """The tasks that are due after an update.

    Attributes:
      log: metrics are logged.
      score: held-out samples are scored.
      probe: the diffusion probe runs.
      show: panels are written.
      save: a checkpoint is saved.
      last: the run ends.
    """

    log: bool
    score: bool
    probe: bool
    show: bool
    save: bool
    last: bool

    @property
    def evaluates(self) -> bool:
        """Whether held-out samples are scored, probed or shown."""
        return self.score or self.probe or self.show


class Schedule:
    """The intervals of a configuration, in updates; an interval of 0 is never due."""

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
        """The tasks due once `step` updates are done; after the last one, all that are not off."""
        last = step == self._steps
        log, score, probe, show, save = (bool(every and (step % every == 0 or last)) for every in self._every)
        return Due(log, score, probe, show, save, last)
