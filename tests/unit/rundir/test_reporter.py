"""The reporter of a run: its files, its alarms, and its silence off process 0."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.config import check, defaults
from vaejax.rundir.console import Cost
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.reporter import SETTLING, Reporter


@pytest.fixture
def config():
    config = defaults()
    config.data.buckets = {"image_32x32": {"batch": 8}}
    return check(config)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def report_everything(report):
    frames = np.zeros((2, 1, 8, 8, 3), np.uint8)
    report.update({"image_32x32": {"nll": jnp.float32(0.5)}}, Cost(8, 8192, 0))
    report.update(
        {"image_32x32": {"nll": jnp.float32(0.25)}, "all": {"grad_norm": 2.0, "finite": True}},
        Cost(8, 8192, 0),
    )
    report.log(2, {"train/all/learning_rate": 1e-3})
    report.scores(2, {"image_32x32/psnr": 30.0}, "the table of scores")
    report.picture(2, "image_32x32", "generated", frames[0, 0])
    report.panels(2, "image_32x32", frames, frames, None)
    report.flush()


def test_it_writes_metrics_scores_pictures_and_console_lines(tmp_path, config, capsys):
    with Reporter(RunFolder(tmp_path), config, start=0) as report:
        report_everything(report)
    of_all, trained, evaluated = sorted(
        lines(tmp_path), key=lambda line: (line["split"] != "train", line["bucket"])
    )
    assert trained == {"step": 2, "split": "train", "bucket": "image_32x32", "nll": 0.25}  # the latest
    assert of_all.items() >= {"bucket": "all", "grad_norm": 2.0, "learning_rate": 1e-3}.items()
    assert "finite" not in of_all and of_all["samples_per_second"] > 0
    assert evaluated == {"step": 2, "split": "eval", "bucket": "image_32x32", "psnr": 30.0}
    panels = sorted(path.name for path in (tmp_path / "panels" / "2").iterdir())
    assert panels == ["image_32x32.png", "image_32x32_generated.png"]
    assert list((tmp_path / "tensorboard").iterdir())
    progress, table = capsys.readouterr().err.splitlines()
    assert progress.startswith("step ") and "lr 0.001" in progress
    assert table == "the table of scores"


def test_it_is_silent_off_process_0(tmp_path, config, capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Reporter(RunFolder(tmp_path), config, start=0) as report:
        report_everything(report)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ""


def test_a_resumed_run_drops_later_lines(tmp_path, config):
    for start in (0, 1):
        with Reporter(RunFolder(tmp_path), config, start) as report:
            for step in range(start + 1, 4 - start):
                report.scores(step, {"all/psnr": float(10 * start + step)}, "")
    assert [(line["step"], line["psnr"]) for line in lines(tmp_path)] == [(1, 1.0), (2, 12.0)]


def test_an_alarm_is_raised_once_until_it_changes(tmp_path, config, capsys):
    def alarms(report, step, accuracy):
        report.update({"all": {"accuracy_image": accuracy}}, Cost(8, 8192, 0))
        report.log(step, {})
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"step {step}: ")]

    with Reporter(RunFolder(tmp_path), config, start=0) as report:
        assert not alarms(report, SETTLING - 1, 1.0)  # too early
        (won,) = alarms(report, SETTLING, 1.0)
        assert not alarms(report, SETTLING + 1, 1.0)
        assert not alarms(report, SETTLING + 2, 0.75)  # healthy again
        assert alarms(report, SETTLING + 3, 1.0) == [won.replace(str(SETTLING), str(SETTLING + 3), 1)]
