"""The training loop, from the configuration to the last checkpoint; read it from top to bottom."""

import enum
import json
import time
from collections.abc import Mapping
from typing import Any

import jax

from vaejax.config import check
from vaejax.data import mixture
from vaejax.data.pipeline import Batch
from vaejax.data.sources import training_files
from vaejax.rundir import console, wandb_sink
from vaejax.rundir.checkpoint import Checkpoints, SavedCheckpoints
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.goodput import Goodput
from vaejax.rundir.lock import locked
from vaejax.rundir.reporter import Reporter
from vaejax.rundir.skipped_samples import SkippedSamples
from vaejax.rundir.wandb_sink import WandbSink
from vaejax.runtime import chips, distributed
from vaejax.runtime.preemption import Preemption
from vaejax.runtime.profiler import Profile
from vaejax.runtime.watchdog import WAITING_FOR_DEVICES, Watchdog
from vaejax.train import finish, initial, resume
from vaejax.train.evaluators import Evaluators
from vaejax.train.guard import Pending, StepGuard
from vaejax.train.optimizer import learning_rate
from vaejax.train.remaining import Remaining
from vaejax.train.schedule import Schedule
from vaejax.train.setup import Setup
from vaejax.train.state import TrainState, to_items
from vaejax.train.step import Inject
from vaejax.train.update import Update


class Outcome(enum.Enum):
    """How `Run.train_from` ended."""

    DONE = enum.auto()
    STOPPED = enum.auto()
    ROLLED_BACK = enum.auto()


def fit(config: Mapping[str, Any], workdir: str, inject: Inject | None = None) -> bool:
    """Trains to config.steps; resumes the run in `workdir` if there is one.

    Args:
      config: ConfigDict with the keys of vaejax.config.schema.
      workdir: folder of the run, created if missing.
      inject: test hook that corrupts values, see `Inject` in train/step.py.

    Returns:
      True if the run is complete, False if a signal stopped it; another call then resumes it.

    Raises:
      InputError: if the configuration or an input cannot be used, or another process trains in `workdir`.
      TrainingFailed: if updates stay non-finite after all rollbacks, or if hosts see different media.
    """
    checked = check(config)
    with Watchdog(checked.recovery.stall) as watchdog, locked(RunFolder.create(workdir)) as folder:
        goodput = Goodput(folder.goodput, writes=jax.process_index() == 0)
        with wandb_sink.opened(folder, checked) as wandb:  # it and the model before the media are scanned
            resumes = SavedCheckpoints(folder.path).latest_on_all_hosts() is not None
            known = initial.keep(checked, folder, resumes)
            setup = Setup.of(initial.with_latents_of(checked, known), inject, folder, known)
            watchdog.begin("starting", 0, patient=True)
            with Checkpoints(folder.path, checked.checkpoint.keep, checked.checkpoint.best) as checkpoints:
                # If a checkpoint proves to be damaged, the run starts again from an earlier one.
                return checkpoints.newest_whole(
                    lambda step: _fit(setup, folder, checkpoints, watchdog, step or 0, goodput, wandb)
                )


def _fit(
    setup: Setup,
    folder: RunFolder,
    checkpoints: Checkpoints,
    watchdog: Watchdog,
    start: int,
    goodput: Goodput,
    wandb: WandbSink | None,
) -> bool:
    """Trains from step 0 or checkpoint `start` to config.steps; see `fit`."""
    config = setup.config
    resume.check_networks(checkpoints, start, config)
    if start >= config.steps:
        checkpoints.verify(start)
        distributed.say(f"already at step {start} of {config.steps}; nothing to do")
        finish.complete(setup, folder, start)
        return True
    with Preemption() as preemption:
        run = Run(setup, folder, checkpoints, watchdog, preemption, start, goodput, wandb)
        outcome = run.train_from(start)
        while outcome is Outcome.ROLLED_BACK:  # continues like a resumed run
            outcome = run.train_from(run.guard.restart_step)
    if outcome is Outcome.STOPPED:
        saved = checkpoints.latest()
        where = "before the first checkpoint" if saved is None else f"saved at step {saved}"
        distributed.say(goodput.summary())
        distributed.say(f"stopped by a signal, {where}; run the same command to continue")
        return False
    watchdog.begin("computing latent statistics", config.steps, patient=True)
    with goodput.stopwatch.on("evaluation"):
        finish.keep_latent_statistics(setup, folder, run.ema)
    goodput.write()
    verdict = run.evaluators.verdict
    distributed.say(goodput.summary())
    distributed.say(finish.last_words(folder, config, start, run.scores, verdict, run.seconds))
    return True


class Run:
    """The objects of a run that outlive a rollback, compiled programs included.

    A rollback recompiles programs only if a loss term started after the restored step.

    Attributes:
      guard: counts skipped updates and rollbacks.
      ema: EMA parameters of the autoencoder once the run is done; {} until then.
      scores: scores of the latest evaluation.
    """

    def __init__(
        self,
        setup: Setup,
        folder: RunFolder,
        checkpoints: Checkpoints,
        watchdog: Watchdog,
        preemption: Preemption,
        start: int,
        goodput: Goodput,
        wandb: WandbSink | None = None,
    ):
        config, programs = setup.config, setup.programs
        self.setup, self.folder, self.checkpoints = setup, folder, checkpoints
        self.watchdog, self.preemption = watchdog, preemption
        self.goodput, self.wandb = goodput, wandb
        self.guard = StepGuard(folder, config.recovery, start)
        self.schedule = Schedule(config)
        self.skipped = SkippedSamples(folder.bad_samples, writes=jax.process_index() == 0)
        self.skipped.add_unreadable(file for source in setup.sources for file in source.unreadable)
        self.peak_flops = chips.peak_flops(jax.devices()[0].device_kind) * setup.mesh.size
        self.update = Update(
            programs,
            setup.buckets,
            config.seed + 1,
            counts_flops=bool(self.peak_flops),
            steps=config.steps,
        )
        self.remaining = Remaining(config, goodput.stopwatch)
        self.evaluators = Evaluators(setup, watchdog, preemption, self.remaining)
        self.learning_rate = learning_rate(config.optim, config.steps)
        self.ema: dict = {}
        self.scores: dict[str, float] = {}
        self._began = time.monotonic()
        folder.write_config(config)
        files = training_files(setup.sources, setup.buckets, config.data)
        shapes = programs.state.whole(programs.state.params)["autoencoder"]
        console.introduce(folder, config, setup.buckets, files, start, shapes)

    def train_from(self, start: int) -> Outcome:
        """Trains from step 0 or checkpoint `start` until the run is done, stopped or rolled back."""
        config, guard, watchdog, clock = self.setup.config, self.guard, self.watchdog, self.goodput.stopwatch
        clock.begin("startup")
        self.goodput.back_to(start)
        state, positions = resume.restore(self.setup, self.checkpoints, guard, start)
        self.preemption.listen()  # only now, so that Ctrl-C interrupts the start-up at once
        with (
            Reporter(self.folder, config, start, self.peak_flops, self.goodput, self.wandb) as report,
            self.checkpoints.completing(),
            self.setup.batches(start, positions, self._histories(start)) as stream,
            Profile(self.folder.profile, config.profile) as profile,
        ):
            pending = None
            if not start:
                self.evaluators.score(0, state, report)  # the baseline: parameters before training
            if jax.process_index() == 0:
                mixture.write(self.folder.mixture, stream.histories)
            clock.begin("updates")
            for step in range(start, config.steps):
                with clock.on("compilation"):
                    self.update.prepare(step, watchdog)  # compiles at first, and ahead of later loss terms
                with profile.update(step):
                    watchdog.begin("waiting for samples", step)
                    with clock.on("data"):
                        batches = next(stream).batches
                    watchdog.begin(WAITING_FOR_DEVICES, step)
                    state, terms = self.update(state, batches)
                    guard.check(pending)  # ORDER MATTERS: reads update N-1 while the devices run update N
                profile.done(step, terms)
                pending = Pending(step, batches, terms)
                report.update(terms, self.update.cost(batches))
                self._count(batches, positions)

                due = self.schedule.due(step + 1)
                stopping = self.preemption.requested(step + 1)
                if any(due) or stopping or guard.in_row:
                    guard.check(pending)
                    pending = None
                if any(due) or stopping:
                    self.skipped.write()
                if due.log:
                    report.log(step + 1, self._numbers(step), self.remaining.after(step + 1))
                scores = {}
                if due.evaluates and (due.last or not stopping):
                    scores = self.evaluators.run(due, step + 1, state, report)
                    self.scores = scores or self.scores
                    stopping = stopping or self.preemption.received()
                # If the latest update was skipped, the state may be the cause. Such a state is saved only at
                # the end of the run.
                if due.last or ((stopping or due.save) and not guard.in_row):
                    self._save(step + 1, state, positions, scores, report)
                if due.last:
                    self.ema = state.whole(state.ema)["autoencoder"]
                elif stopping:
                    clock.begin("checkpoints")
                    return Outcome.STOPPED
                elif guard.must_roll_back:
                    guard.roll_back(step + 1, self.checkpoints.latest_on_all_hosts() or 0, positions)
                    self.folder.upload()  # another machine that continues the run must know
                    back = guard.restart_step
                    report.say(f"step {step + 1}: rolled back to step {back}; continuing with new samples")
                    return Outcome.ROLLED_BACK
            clock.begin("checkpoints")
            watchdog.begin("writing the last checkpoint", config.steps, patient=True)
        return Outcome.DONE

    @property
    def seconds(self) -> float:
        """Seconds since this object was created."""
        return time.monotonic() - self._began

    def _histories(self, start: int) -> dict[str, list[mixture.Stretch]]:
        """The weights of the sources so far, per bucket; all processes get those that process 0 reads."""
        saved = self.checkpoints.config(start) if start else None
        return distributed.main_process_first(lambda: mixture.read(self.folder.mixture, saved))

    def _count(self, batches: Mapping[str, Batch], positions: dict[str, int]) -> None:
        """Advances the data positions and records unreadable samples that were replaced."""
        for bucket in self.setup.buckets:
            if bucket.name in batches:
                positions[bucket.name] += bucket.batch  # on all hosts together
                self.skipped.add_skipped(batches[bucket.name].skipped)

    def _numbers(self, step: int) -> dict[str, float]:
        """Further values to log with the metrics of update `step`."""
        numbers = {f"train/{name}/compile_seconds": s for name, s in self.update.compile_seconds.items()}
        self.update.compile_seconds.clear()
        numbers["train/all/learning_rate"] = jax.device_get(self.learning_rate(step))
        numbers["train/all/bad_steps"] = self.guard.total
        return numbers

    def _save(
        self,
        step: int,
        state: TrainState,
        positions: dict[str, int],
        scores: Mapping[str, float],
        report: Reporter,
    ) -> None:
        self.watchdog.begin("saving a checkpoint", step, patient=True)
        config = json.loads(json.dumps(self.setup.config.to_dict()))
        with self.remaining.timing("save"):
            report.flush()
            self.checkpoints.save(step, to_items(state), positions, config, scores)
            self.goodput.saved(step)
