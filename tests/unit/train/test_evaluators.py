"""During training, the evaluations that are due run, and a signal ends them early."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from tests.support.small_run import BUCKET
from vaejax.codec.load import TrainedVAE
from vaejax.errors import TrainingFailed
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.reporter import Reporter
from vaejax.runtime.preemption import Preemption
from vaejax.runtime.watchdog import Watchdog
from vaejax.train.evaluators import Evaluators
from vaejax.train.schedule import Due


def due(**tasks):
    return Due(**(dict.fromkeys(Due._fields, False) | tasks))


@pytest.fixture(scope="module")
def preemption():
    return Preemption()


@pytest.fixture(scope="module")
def evaluators(setup, preemption):
    return Evaluators(setup, Watchdog(0), preemption)


@pytest.fixture(scope="module")
def state(setup):
    return setup.initialize()


def without_latents(state):
    """The state with an encoder whose last layers map everything to 0."""
    encoder = dict(state.ema["autoencoder"]["encoder"])
    for name in ("linear", "conv_out"):
        encoder[name] = jax.tree.map(jnp.zeros_like, encoder[name])
    return dataclasses.replace(
        state, ema=state.ema | {"autoencoder": state.ema["autoencoder"] | {"encoder": encoder}}
    )


def verdicts(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["verdict"] for line in lines if line["bucket"] == BUCKET}


def test_a_model_that_collapses_raises_alarms_also_after_a_resume(setup, evaluators, state, tmp_path, capsys):
    with Reporter(RunFolder(tmp_path), setup.config, 0) as report:
        evaluators.score(0, state, report)
        assert evaluators.verdict.alarms == {"mean": [], BUCKET: []}
        good = evaluators.score(6, state, report)[f"{BUCKET}/psnr"]
        assert "no alarm" in (printed := capsys.readouterr().err)
        assert "evaluating 8 held-out samples of each bucket ..." in printed
    with Reporter(RunFolder(tmp_path), setup.config, 6) as report:  # a resumed run
        scores = evaluators.score(8, without_latents(state), report)
    drop = good - scores[f"{BUCKET}/psnr"]
    console = capsys.readouterr().err
    assert f", -{drop:.2f} since step 6, -{drop:.2f} vs best (step " in console
    of_step = verdicts(tmp_path)
    assert of_step[0] == of_step[6] == []
    worse, collapsed = of_step[8]
    assert worse.startswith(f"gets worse: {drop:.2f} dB below its best, at step ")
    assert collapsed.startswith("collapses: 4 of 4 latent channels carry nothing.")
    assert all(f"  alarm: {BUCKET} {text}\n" in console for text in (worse, collapsed))


def test_what_is_due_is_evaluated_and_a_signal_ends_it_early_but_for_the_last_score(
    setup, evaluators, preemption, state, tmp_path
):
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


def test_a_run_whose_latents_leave_those_of_its_start_ends(setup, state, tmp_path, capsys):
    params = jax.tree.map(jnp.asarray, state.ema["autoencoder"])
    known = TrainedVAE("start", setup.programs.model.architecture, params, None, None, 0, "")
    limited = dataclasses.replace(setup.config.eval, max_drift=0.01)
    config = dataclasses.replace(setup.config, eval=limited, init="start")
    drifting = Evaluators(dataclasses.replace(setup, config=config, known=known), Watchdog(0), Preemption())
    moved = jax.tree.map(lambda x: 1.1 * x, state.ema["autoencoder"]["encoder"])
    moved = dataclasses.replace(
        state, ema=state.ema | {"autoencoder": state.ema["autoencoder"] | {"encoder": moved}}
    )
    with Reporter(RunFolder(tmp_path), config, 0) as report:
        assert drifting.score(0, state, report)[f"{BUCKET}/drift"] == 0
        assert "drift 0.0000 (shift 0.0000, scale 1.0000)" in capsys.readouterr().err
        with pytest.raises(TrainingFailed, match=rf"^step 4: {BUCKET}/drift = .* exceeds eval.max_drift"):
            drifting.score(4, moved, report)
