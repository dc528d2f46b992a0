"""During training, the evaluations that are due run, and a signal ends them early."""

import json

from tests.support.small_run import BUCKET
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.reporter import Reporter
from vaejax.runtime.preemption import Preemption
from vaejax.runtime.watchdog import Watchdog
from vaejax.train.evaluators import Evaluators
from vaejax.train.schedule import Due


def due(**tasks):
    return Due(**(dict.fromkeys(Due._fields, False) | tasks))


def test_what_is_due_is_evaluated_and_a_signal_ends_it_early_but_for_the_last_score(setup, tmp_path):
    preemption, state = Preemption(), setup.initialize()
    evaluators = Evaluators(setup, Watchdog(0), preemption)
    with Reporter(RunFolder(tmp_path), setup.config, 0) as report:
        assert evaluators.run(due(show=True), 4, state, report) == {}
        assert [path.stem for path in (tmp_path / "panels" / "4").iterdir()] == [BUCKET]
        scores = evaluators.run(due(score=True), 8, state, report)
        assert {f"{BUCKET}/psnr", f"{BUCKET}/psnr_raw", "mean/lpips_alexnet"} <= set(scores)
        assert not (tmp_path / "panels" / "8").exists()

        preemption._received = True  # a signal
        assert evaluators.run(due(score=True, show=True), 11, state, report) == {}
        assert not (tmp_path / "panels" / "11").exists()
        assert evaluators.run(due(score=True, last=True), 12, state, report) == scores  # the same state
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"] for line in logged if line["split"] == "eval" and "psnr" in line} == {8, 12}
