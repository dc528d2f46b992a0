"""Verdicts on a run: each alarm is in force under its condition, and not in a healthy run."""

import json

import pytest

from vaejax.rundir.verdict import History, counts_from

IMAGE, VIDEO = "image_64x64", "video_9x64x64"
HEALTHY = {
    "psnr": 27.2,
    "psnr_raw": 27.1,
    "psnr_linear": 27.4,
    "psnr_train": 28.0,
    "kl": 0.3,
    "dead_channels": 1,
    "spread_encoder_level_0": 3.0,
    "spread_decoder_level_2": 9.0,
    "samples": 32,
    "files": 2,
}


def scores(image=None, video=None):
    """Scores of two buckets, which differ from HEALTHY as given."""
    buckets = {IMAGE: HEALTHY | (image or {}), VIDEO: HEALTHY | (video or {})}
    found = {f"{bucket}/{name}": value for bucket, one in buckets.items() for name, value in one.items()}
    return found | {"mean/psnr": 0.0}


def history(steps=900):
    return History(steps, channels=16)


def in_force(verdict):
    return {bucket: texts for bucket, texts in verdict.alarms.items() if texts}


def test_a_run_like_the_demo_has_no_alarm():
    run = history()
    for step, psnr in ((0, 25.0), (300, 26.6), (600, 27.5), (900, 27.2)):
        run.waited(0.05)
        verdict = run.judge(step, scores({"psnr": psnr}))
    assert in_force(verdict) == {}
    assert verdict.alarms == {"mean": [], IMAGE: [], VIDEO: []}
    assert verdict.lines() == ["  no alarm"]
    assert verdict.changes[IMAGE] == "-0.30 since step 600, -0.30 vs best (step 600)"


def test_changes_name_the_last_and_the_best_evaluation():
    run = history()
    found = [run.judge(step, scores({"psnr": psnr})).changes[IMAGE] for step, psnr in ((0, 25), (300, 26))]
    assert found == ["", "+1.00 since step 0, best so far"]
    run.judge(600, scores({"psnr": 25.25}))
    assert run.judge(900, scores({"psnr": 25.5})).changes[IMAGE] == (
        "+0.25 since step 600, -0.50 vs best (step 300)"
    )


def test_being_below_the_linear_codec_counts_from_half_of_the_run_on():
    below = scores(video={"psnr": 26.8, "psnr_linear": 27.4})
    assert [counts_from(steps) for steps in (1, 80, 81, 20_000, 200_000)] == [1, 40, 41, 10_000, 10_000]
    assert in_force(history().judge(449, below)) == {}
    ((bucket, [text]),) = in_force(history().judge(450, below)).items()
    assert bucket == VIDEO and text.startswith("is 0.60 dB below the linear codec")
    by_a_hair = scores(video={"psnr": 27.0, "psnr_linear": 27.4})
    assert in_force(history().judge(900, by_a_hair)) == {}


# What differs from HEALTHY at the first and at the last evaluation, and the beginning of the alarm.
ALARMS = {
    "worse": ({"psnr": 28.5}, {}, "gets worse: 1.30 dB below its best, at step 0"),
    "not a number": ({}, {"psnr": float("nan")}, "gets worse: nan dB below its best"),
    "overfits": (
        {"psnr_train": 26.0},
        {"psnr": 27.0, "psnr_train": 30.0},
        "overfits: since step 0, training samples gained +4.00 dB, held-out ones -0.20 dB",
    ),
    "dead channels": ({}, {"dead_channels": 5}, "collapses: 5 of 16 latent channels carry nothing"),
    "no KL": ({}, {"kl": 2e-6, "dead_channels": 16}, "collapses: its latents carry nothing (KL 2.0e-06"),
    "explodes": (
        {},
        {"spread_decoder_level_2": 80.0, "spread_encoder_level_0": 31.0},
        "explodes: the largest activation of decoder level 2 is 80 times the median",
    ),
}


@pytest.mark.parametrize(("first", "last", "expected"), ALARMS.values(), ids=ALARMS)
def test_each_alarm_is_raised_for_its_bucket_until_its_cause_is_gone(first, last, expected):
    run = history()
    assert in_force(run.judge(0, scores(first))) == {}
    verdict = run.judge(300, scores(last))
    assert list(in_force(verdict)) == [IMAGE]
    (text,) = verdict.alarms[IMAGE]
    assert text.startswith(expected) and ". " in text  # then comes what to try
    assert verdict.lines() == [f"  alarm: {IMAGE} {text}"]
    assert in_force(run.judge(600, scores(first | {"psnr_train": 26.0}))) == {}


@pytest.mark.parametrize("last", [{"kl": 2e-6}, {"dead_channels": 5}])
def test_a_frozen_encoder_gets_no_advice_on_its_loss(last):
    verdict = History(900, channels=16, trains_encoder=False).judge(300, scores(last))
    (text,) = verdict.alarms[IMAGE]
    assert text.startswith("cannot reconstruct: ") and "loss.weights" not in text


def test_waiting_for_samples_counts_since_the_last_evaluation():
    run = history()
    for share in (0.7, float("nan"), 0.6, 0.1):
        run.waited(share)
    verdict = run.judge(300, scores())
    assert list(in_force(verdict)) == ["mean"]
    assert verdict.alarms["mean"][0].startswith("the updates waited for samples 60% of the time.")
    assert in_force(run.judge(600, scores())) == {}


def test_a_resumed_run_knows_its_best_evaluation_and_how_long_it_waited(tmp_path):
    lines = [
        {"step": 300, "split": "eval", "bucket": IMAGE, "psnr": 29.0, "verdict": ["is bad"]},
        {"step": 300, "split": "eval", "bucket": "mean", "psnr": 40.0},
        {"step": 300, "split": "eval", "bucket": VIDEO, "probe_kernel": 0.5},
        {"step": 320, "split": "train", "bucket": "all", "data_wait": 0.9, "grad_norm": "NaN"},
        {"step": 600, "split": "eval", "bucket": IMAGE, "psnr": 27.0, "kl": "NaN"},
        {"step": 620, "split": "train", "bucket": "all", "data_wait": 0.5},
        {"step": 640, "split": "train", "bucket": "all", "data_wait": 0.6},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = history()
    run.read(path)
    verdict = run.judge(900, scores({"psnr": 27.5}))
    assert verdict.changes == {IMAGE: "+0.50 since step 600, -1.50 vs best (step 300)", VIDEO: ""}
    assert verdict.alarms[IMAGE][0].startswith("gets worse: 1.50 dB below its best, at step 300")
    assert "55%" in verdict.alarms["mean"][0]
