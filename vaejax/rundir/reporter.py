"""Writes the metrics, TensorBoard files, panels and console lines of a run, on process 0 only.

Weights & Biases gets what metrics.jsonl and panels/ hold, see vaejax.rundir.wandb_sink.
"""

import math
from collections.abc import Mapping
from types import TracebackType

import jax
import numpy as np

from vaejax.config import Config
from vaejax.data.bucket import buckets_of
from vaejax.losses import adversarial
from vaejax.losses.objective import Terms
from vaejax.rundir import panels
from vaejax.rundir.console import Cost, Later, Progress
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.goodput import Goodput
from vaejax.rundir.metrics import JsonlWriter, TensorboardWriter
from vaejax.rundir.step_line import Readable
from vaejax.rundir.verdict import History, Verdict
from vaejax.rundir.wandb_sink import WandbSink
from vaejax.runtime import distributed

EVENTS = 2**22  # bytes of an event file after which a run in a bucket begins another
SETTLING = 100  # updates for which a discriminator must have trained before its accuracy causes warnings


class Reporter:
    """Reports a run from step `start` on; processes other than 0 report nothing.

    Metrics that an earlier run wrote for later steps are dropped.

    Args:
      folder: folder of the run.
      config: configuration of the run.
      start: number of updates done when the run starts or resumes.
      peak_flops: peak operations per second of all devices together; 0 if unknown.
      goodput: measures the time of the run by cause; default: a new one.
      wandb: sink for Weights & Biases, which the caller closes; None without.

    Attributes:
      progress: measures speed, waiting time and remaining time.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        start: int,
        peak_flops: float = 0.0,
        goodput: Goodput | None = None,
        wandb: WandbSink | None = None,
    ):
        self._folder, self._config, self._is_main = folder, config, jax.process_index() == 0
        self._sinks: list[JsonlWriter | TensorboardWriter] = []
        self._history = History(config.steps, config.model.latent_channels, "encoder" in config.optim.train)
        if self._is_main:
            self._tensorboard = TensorboardWriter(folder.tensorboard, start)
            self._tensorboard.write_hparams(config.to_dict())
            self._sinks = [JsonlWriter(folder.metrics, start), self._tensorboard]
            if folder.uploads:
                folder.uploads.restart(start)
            self._history.read(folder.metrics)  # after JsonlWriter has dropped the lines of later steps
        self._goodput, self._wandb = goodput or Goodput(folder.goodput, self._is_main), wandb
        stopwatch = self._goodput.stopwatch
        self.progress = Progress(config.steps, stopwatch, start, self._is_main, peak_flops)
        self._readable = Readable(config, buckets_of(config))
        self._terms: dict[str, Terms] = {}
        self._alarms: dict[str, str | None] = {}

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in self._sinks:
            sink.close()

    def say(self, line: str) -> None:
        """Prints a line to stderr, on process 0."""
        distributed.say(line)

    def update(self, terms: Mapping[str, Terms], cost: Cost) -> None:
        """Counts an update, and keeps its metrics on the devices until the next log line.

        Args:
          terms: {bucket name: metrics}; the key 'all' has the metrics of the whole update.
          cost: size of the update.
        """
        self._terms |= terms
        self._readable.update(terms)
        self.progress.tick(cost.samples, cost.pixels, cost.flops)

    def log(self, step: int, extra: Mapping[str, float], later: Later | None = None) -> None:
        """Logs the latest metrics of every bucket, and prints a line with some of them.

        Args:
          step: number of updates done.
          extra: further numbers, with keys 'train/BUCKET/NAME'.
          later: time of the run's tasks other than updates.
        """
        latest = jax.device_get(self._terms)
        self._terms = {}
        scalars = {
            f"train/{b}/{k}": v for b, terms in latest.items() for k, v in terms.items() if k != "finite"
        }
        scalars |= extra
        goodput = self._goodput.scalars()
        parts = [*self._readable.parts(scalars), (5, f"goodput {100 * goodput['train/all/goodput']:.0f}%")]
        speeds = self.progress.log(step, parts, later)
        self._history.waited(speeds.get("train/all/data_wait", math.nan))
        self._write_scalars(step, scalars | speeds | goodput)
        self._goodput.write()
        self._check_discriminators(step, scalars)
        if self._wandb:
            with self._goodput.stopwatch.on("checkpoints"):
                self._wandb.send()

    def judge(self, step: int, scores: Mapping[str, float]) -> Verdict:
        """The verdict on evaluation scores, with keys 'BUCKET/NAME', in view of the run so far."""
        return self._history.judge(step, scores)

    def scores(
        self, step: int, scores: Mapping[str, float], text: str, verdict: Verdict | None = None
    ) -> None:
        """Writes evaluation scores, with keys 'BUCKET/NAME', and the verdict; prints their table `text`."""
        alarms = {f"eval/{name}/verdict": texts for name, texts in verdict.alarms.items()} if verdict else {}
        for sink in self._sinks:
            sink.write_scalars(step, {f"eval/{name}": value for name, value in scores.items()}, alarms)
        self.say("\n".join([text, *verdict.lines()]) if verdict else text)

    def picture(self, step: int, bucket: str, name: str, picture: np.ndarray) -> None:
        """Writes a picture, (H, W, 3) uint8, as panels/STEP/BUCKET_NAME.png."""
        if self._is_main:
            panels.write_picture(self._folder.path, step, f"{bucket}_{name}", picture)
            self._tensorboard.write_images(step, {f"eval/{bucket}/{name}": picture})

    def panels(
        self,
        step: int,
        bucket: str,
        original: np.ndarray,
        reconstruction: np.ndarray,
        linear: np.ndarray | None,
    ) -> None:
        """Writes the panels of a bucket from arrays (N, T, H, W, C) uint8; see `panels.write_panels`."""
        if self._is_main:
            panel = panels.write_panels(
                self._folder.path, step, bucket, original, reconstruction, linear, self._config.data.fps
            )
            self._tensorboard.write_images(step, {f"eval/{bucket}/panel": panel[None]})

    def flush(self) -> None:
        """Writes buffered metrics to disk, and to the bucket of a run that has one."""
        for sink in self._sinks:
            sink.flush()
        if self._folder.uploads:
            self._folder.upload()
            self._tensorboard.roll(EVENTS)

    def _write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.write_scalars(step, scalars)

    def _check_discriminators(self, step: int, scalars: Mapping[str, float]) -> None:
        """Warns if a discriminator is too strong or collapses; not if the last log gave the same warning."""
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
