"""The reporter of a run: metrics.jsonl, TensorBoard, panels and console lines, silent off process 0."""

import contextlib
import sys
from collections.abc import Mapping
from types import TracebackType

import jax
import numpy as np

from vaejax.config import Config
from vaejax.losses import adversarial
from vaejax.losses.objective import Terms
from vaejax.rundir import metrics, panels
from vaejax.rundir.console import Cost, Progress
from vaejax.rundir.folder import RunFolder

SETTLING = 100  # updates before a discriminator's accuracy may raise an alarm


class Reporter:
    """Reports a run from step `start` on; later lines of an earlier run are dropped.

    Args:
      folder: of the run.
      config: of the run.
      start: number of updates done.
      peak_flops: operations per second of all devices at most; 0 if unknown.

    Attributes:
      progress: speed, waiting time and remaining time.
    """

    def __init__(self, folder: RunFolder, config: Config, start: int, peak_flops: float = 0.0):
        self._folder, self._config, self._is_main = folder, config, jax.process_index() == 0
        self._writer = metrics.writers(folder.path, start, self._is_main)
        self._writer.write_hparams(config.to_dict())
        self.progress = Progress(config.steps, start, is_main=self._is_main, peak_flops=peak_flops)
        self._terms: dict[str, Terms] = {}
        self._alarms: dict[str, str | None] = {}

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Time inside does not count as training."""
        return self.progress.paused()

    def say(self, line: str) -> None:
        """Prints a line."""
        if self._is_main:
            print(line, file=sys.stderr, flush=True)

    def update(self, terms: Mapping[str, Terms], cost: Cost, waited: float) -> None:
        """Counts an update and keeps its metrics, on the devices, for the next log line.

        Args:
          terms: metrics by bucket and 'all'.
          cost: of the update.
          waited: seconds spent waiting for samples.
        """
        self._terms |= terms
        self.progress.tick(cost.samples, cost.pixels, waited, cost.flops)

    def log(self, step: int, extra: Mapping[str, float]) -> None:
        """Logs the latest metrics of every bucket, and numbers 'train/BUCKET/NAME' beside them."""
        latest = jax.device_get(self._terms)
        self._terms = {}
        scalars = {
            f"train/{b}/{k}": v for b, terms in latest.items() for k, v in terms.items() if k != "finite"
        }
        scalars |= extra
        self._writer.write_scalars(step, scalars | self.progress.log(step, scalars))
        self._check_discriminators(step, scalars)

    def scores(self, step: int, scores: Mapping[str, float], text: str) -> None:
        """Reports evaluation scores, 'BUCKET/NAME' to value, and prints their table."""
        self._writer.write_scalars(step, {f"eval/{name}": value for name, value in scores.items()})
        self.say(text)

    def picture(self, step: int, bucket: str, name: str, picture: np.ndarray) -> None:
        """Writes panels/STEP/BUCKET_NAME.png, (H, W, 3) uint8."""
        if self._is_main:
            panels.write_picture(self._folder.path, step, f"{bucket}_{name}", picture)
            self._writer.write_images(step, {f"eval/{bucket}/{name}": picture})

    def panels(
        self,
        step: int,
        bucket: str,
        original: np.ndarray,
        reconstruction: np.ndarray,
        linear: np.ndarray | None,
    ) -> None:
        """Writes the panels of a bucket, each column (N, T, H, W, 3) uint8."""
        if self._is_main:
            panel = panels.write_panels(
                self._folder.path, step, bucket, original, reconstruction, linear, self._config.data.fps
            )
            self._writer.write_images(step, {f"eval/{bucket}/panel": panel[None]})

    def flush(self) -> None:
        """Writes buffered metrics to disk."""
        self._writer.flush()

    def _check_discriminators(self, step: int, scalars: Mapping[str, float]) -> None:
        """Warns when a discriminator wins or collapses, once until that changes."""
        game = self._config.loss.adversarial
        if step < max(game.start, game.start - game.warmup + SETTLING):
            return
        for key in sorted(scalars):
            if key.startswith("train/all/accuracy_"):
                name = key.removeprefix("train/all/accuracy_")
                alarm = adversarial.alarm(name, scalars[key])
                if alarm and alarm != self._alarms.get(name):
                    self.say(f"step {step}: {alarm}")
                self._alarms[name] = alarm
