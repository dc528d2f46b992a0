"""The schedule: what is due after each update."""

from typing import NamedTuple

from vaejax.config import Config


class Due(NamedTuple):
    """What is due after an update.

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
        """What is due once `step` updates are done; everything after the last one."""
        last = step == self._steps
        return Due(*(bool(every and (step % every == 0 or last)) for every in self._every), last)
