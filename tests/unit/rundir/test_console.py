"""Console lines: speed, remaining time, metrics, and the introduction of a run."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from vaejax.config import check, defaults
from vaejax.data.bucket import Bucket
from vaejax.rundir import console
from vaejax.rundir.folder import RunFolder
from vaejax.runtime import stopwatch


class Clock:
    """A clock that advances only by assignment, and the stopwatch that reads it."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(stopwatch.time, "monotonic", lambda: self.now)
        self.stopwatch = stopwatch.Stopwatch("updates")


def run(clock, progress, first, last, seconds, waited=0.0):
    for _ in range(first, last + 1):
        clock.now += seconds - waited
        with clock.stopwatch.on("data"):
            clock.now += waited
        progress.tick(samples=6, pixels=3_000_000)


def test_progress_reports_speed_and_waiting_time(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    progress = console.Progress(1000, clock.stopwatch)
    run(clock, progress, 1, 1, seconds=90)  # compiles
    run(clock, progress, 2, 11, seconds=2, waited=0.5)
    speeds = progress.log(11, {})
    assert speeds == {
        "train/all/step_seconds": 2.0,
        "train/all/samples_per_second": 3.0,
        "train/all/megapixels_per_second": 1.5,
        "train/all/data_wait": 0.25,
    }
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    for part in ("11/1000", "1.1%", "eta 32m58s", "2 s/step", "3 samples/s", "1.5 Mpx/s", "data wait 25%"):
        assert part in line  # 989 steps of 2 s: 32m58s


def test_neither_compilation_nor_evaluation_distorts_the_remaining_time(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    progress = console.Progress(1000, clock.stopwatch, start_step=500)
    for first, compilation in ((501, 90), (511, 40), (521, 0), (531, 0)):  # 511: a new phase of the loss
        with clock.stopwatch.on("compilation"):
            clock.now += compilation
        run(clock, progress, first, first + 9, seconds=1)
        with clock.stopwatch.on("evaluation"):
            clock.now += 300
        progress.log(first + 9, {})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("eta ")[1].split()[0] for line in lines] == ["8m10s", "8m00s", "7m50s", "7m40s"]


def test_the_remaining_time_includes_other_tasks_and_names_those_of_unknown_length(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    progress = console.Progress(100, clock.stopwatch)
    run(clock, progress, 1, 11, seconds=2)
    progress.log(11, later=console.Later(60))
    run(clock, progress, 12, 21, seconds=2)
    progress.log(21, later=console.Later(0, ("evaluation", "probe")))
    run(clock, progress, 22, 100, seconds=2)
    progress.log(100, later=console.Later(90))
    etas = [line.split("eta ")[1].split("  ")[0] for line in capsys.readouterr().err.splitlines()]
    assert etas == ["3m58s", "2m38s + evaluation + probe", "1m30s"]  # 89, 79 and 0 updates of 2 s


def test_other_processes_print_nothing(capsys):
    console.Progress(10, stopwatch.Stopwatch("updates"), is_main=False).log(1, {})
    assert capsys.readouterr().err == ""


def test_the_overview_counts_encoder_and_decoder():
    class Codec(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = nn.with_partitioning(nn.initializers.ones, (None, "model"))
            x = nn.Dense(5, name="encoder", kernel_init=kernel)(x)
            scale = self.param("log_scale", nn.initializers.zeros, ())
            return nn.Dense(3, name="decoder")(x) * scale

    shapes = jax.eval_shape(Codec().init, jax.random.key(0), jnp.zeros((1, 3)))
    table, total = console.parameter_table(shapes)
    assert total == "parameters: 39 (encoder 20, decoder 18, other 1)"
    assert "encoder/kernel" in table and "(3, 5)" in table


def small(**settings):
    config = defaults()
    config.data.buckets = {"image_32x32": {"batch": 8}}
    config.steps = 900
    config.loss.weights.update({"perceptual": 1.0, "adversarial": 0.05})
    config.loss.perceptual.start = 650
    config.loss.adversarial.update({"start": 700, "warmup": 50})
    config.update_from_flattened_dict(settings)
    return check(config)


BUCKETS = [Bucket(1, 32, 32, batch=8), Bucket(9, 32, 32, batch=2, every=4)]


def test_the_setup_line_names_devices_samples_and_steps():
    few = {"photo": 12, "clip": 0}
    line = console.setup_line(small(**{"model.dtype": "float32"}), BUCKETS[:1], few, start=0)
    assert line == (
        "8 x cpu, float32, global batch image_32x32 8, training on 12 photos, starting, ends at step 900"
    )
    line = console.setup_line(small(), BUCKETS, {"photo": 12, "clip": 1}, start=61)
    assert line.endswith(
        "global batch image_32x32 8 + video_9x32x32 2 (every 4 updates), training on 12 photos + 1 clip,"
        " resuming at step 61, ends at step 900"
    )
    assert "starting from runs/images," in console.setup_line(small(init="runs/images"), BUCKETS, few, 0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {},
            [
                "updates 0-649: reconstruction, kl; from 650: perceptual, discriminators;"
                " from 700: adversarial"
            ],
        ),
        (
            {"loss.weights.perceptual": 0.0, "loss.weights.adversarial": 0.0},
            ["updates 0-899: reconstruction, kl"],
        ),
        (
            {"loss.weights.perceptual": 0.0, "loss.adversarial.start": 0, "loss.adversarial.warmup": 0},
            ["updates 0-899: reconstruction, kl, adversarial"],
        ),
        (
            {"steps": 120},
            [
                "updates 0-119: reconstruction, kl",
                "warning: loss.perceptual.start = 650 is not below steps = 120:"
                " the perceptual term never starts",
                "warning: loss.adversarial.start = 700 is not below steps = 120:"
                " the adversarial term never starts",
            ],
        ),
    ],
    ids=["two late terms", "no late term", "from the beginning", "too short a run"],
)
def test_the_schedule_names_each_phase_and_terms_that_never_start(settings, expected):
    assert console.schedule_lines(small(**settings)) == expected


def test_a_run_introduces_itself_and_keeps_the_parameter_table_in_a_file(tmp_path, capsys, monkeypatch):
    params = {"encoder": {"kernel": jnp.zeros((3, 5))}}
    console.introduce(RunFolder(tmp_path), small(), BUCKETS, {"photo": 12}, 0, params)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[-1] == "parameters: 15 (encoder 15, decoder 0, other 0)"
    table = (tmp_path / "parameters.txt").read_text()
    assert "encoder/kernel" in table and table.endswith(lines[-1] + "\n")

    monkeypatch.setattr(jax, "process_index", lambda: 1)
    console.introduce(RunFolder(tmp_path / "other"), small(), BUCKETS, {"photo": 12}, 0, params)
    assert capsys.readouterr().err == "" and not (tmp_path / "other").exists()
