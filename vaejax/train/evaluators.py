"""Evaluation during training: scores and panels of held-out samples, and the diffusion probe."""

from collections.abc import Callable, Mapping

from vaejax.errors import Stopped, TrainingFailed
from vaejax.evaluate.during_training import TrainingEvaluation
from vaejax.networks import lpips
from vaejax.probe.during_training import TrainingProbe
from vaejax.rundir.reporter import Reporter
from vaejax.rundir.verdict import Verdict
from vaejax.runtime.preemption import Preemption
from vaejax.runtime.watchdog import Watchdog
from vaejax.train.remaining import Remaining
from vaejax.train.schedule import Due
from vaejax.train.setup import Setup
from vaejax.train.state import TrainState


class Evaluators:
    """Runs the evaluations that are due. Their programs are compiled once per run, at first use.

    Args:
      setup: configuration, mesh, data and programs of the run.
      watchdog: notified before every batch.
      preemption: source of stop signals, which end an evaluation early. After the last update, only the probe
        can end early.
      remaining: records the time that each task takes.

    Attributes:
      verdict: verdict on the latest scores, on process 0; None before there are any.
    """

    def __init__(
        self,
        setup: Setup,
        watchdog: Watchdog,
        preemption: Preemption,
        remaining: Remaining | None = None,
    ):
        config, programs = setup.config, setup.programs
        self._remaining = remaining or Remaining(config)
        self._steps, self._watchdog, self._preemption = config.steps, watchdog, preemption
        self._step, self._max_drift = 0, config.eval.max_drift
        self.verdict: Verdict | None = None
        self._held_out = TrainingEvaluation(
            setup.sources,
            setup.buckets,
            config,
            programs.model,
            programs.objective,
            setup.mesh,
            lpips.for_scores(config.loss, programs.networks.get("lpips", {})),
            self._stopping("evaluating", last_finishes=True),
            setup.known,
        )
        self._probe = None
        if config.probe.every:
            self._probe = TrainingProbe(
                setup.sources,
                setup.buckets,
                config,
                programs.model,
                setup.mesh,
                self._stopping("probing", last_finishes=False),
            )

    def run(self, due: Due, step: int, state: TrainState, report: Reporter) -> dict[str, float]:
        """Runs the evaluations that are due and reports their results.

        Returns:
          Scores by 'BUCKET/NAME' or 'mean/NAME', without those of an evaluation that ended early.
        """
        self._step = step
        scores = self.score(step, state, report) if due.score else {}
        if due.probe and self._probe:
            scores |= self._run_probe(self._probe, step, state, report)
        if due.show:
            self._show(step, state, report)
        return scores

    def score(self, step: int, state: TrainState, report: Reporter) -> dict[str, float]:
        """Scores held-out samples of every bucket and reports the results; {} if a signal ended it early."""
        self._step = step
        self._watchdog.begin("evaluating", step, patient=True)
        report.say(self._held_out.announcement())
        try:
            with self._remaining.timing("score"):
                scores = self._held_out.evaluate(state.whole(state.ema), state.whole(state.params))
                self.verdict = report.judge(step, scores)
                table = self._held_out.table(step, scores, self.verdict.changes)
                report.scores(step, scores, table, self.verdict)
        except Stopped:
            return {}
        self._check_drift(step, scores)
        return scores

    def _check_drift(self, step: int, scores: Mapping[str, float]) -> None:
        """Raises TrainingFailed if the latents of a bucket have drifted further than eval.max_drift."""
        drifts = {key: value for key, value in scores.items() if key.endswith("/drift")}
        worst = max(drifts, key=drifts.__getitem__, default="")
        if self._max_drift and drifts.get(worst, 0) > self._max_drift:
            raise TrainingFailed(
                f"step {step}: {worst} = {drifts[worst]:.4f} exceeds eval.max_drift = {self._max_drift:g};"
                " earlier checkpoints are kept. Raise loss.weights.anchor, lower optim.learning_rate, or"
                " train the decoder alone (optim.train)"
            )

    def _run_probe(
        self, probe: TrainingProbe, step: int, state: TrainState, report: Reporter
    ) -> dict[str, float]:
        report.say(f"probing the latents of {probe.bucket.name} ...")
        with self._remaining.timing("probe"):
            scores, picture = probe.evaluate(state.whole(state.ema))
            if scores:
                report.scores(step, scores, probe.line(step, scores))
            if picture is not None:
                report.picture(step, probe.bucket.name, "generated", picture)
        return scores

    def _show(self, step: int, state: TrainState, report: Reporter) -> None:
        try:
            with self._remaining.timing("show"):
                for name, original, reconstruction, linear in self._held_out.panels(state.whole(state.ema)):
                    report.panels(step, name, original, reconstruction, linear)
        except Stopped:
            pass

    def _stopping(self, what: str, last_finishes: bool) -> Callable[[], bool]:
        """Returns a function that says whether to stop; all processes call it together, before each batch."""

        def stopping() -> bool:
            self._watchdog.begin(what, self._step, patient=True)
            return self._preemption.received() and not (last_finishes and self._step == self._steps)

        return stopping
