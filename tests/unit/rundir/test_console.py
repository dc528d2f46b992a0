"""The console tells the truth about speed and time left."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from vaejax.rundir import console


class Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(console.time, "monotonic", lambda: self.now)


def run(clock, progress, first, last, seconds, waited=0.0):
    for _ in range(first, last + 1):
        clock.now += seconds
        progress.tick(samples=6, pixels=3_000_000, waited=waited)


def test_progress_tells_speed_and_waiting(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    progress = console.Progress(total_steps=1000)
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
    for told in ("11/1000", "1.1%", "eta 32m58s", "2 s/step", "3 samples/s", "1.5 Mpx/s", "data wait 25%"):
        assert told in line  # 989 steps of 2 s: 32m58s


def test_neither_compilation_nor_evaluation_spoils_the_time_left(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    progress = console.Progress(total_steps=1000, start_step=500)
    for first, compilation in ((501, 90), (511, 40), (521, 0), (531, 0)):  # 511: a bucket not seen before
        clock.now += compilation
        run(clock, progress, first, first + 9, seconds=1)
        with progress.paused():
            clock.now += 300
        progress.log(first + 9, {})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("eta ")[1].split()[0] for line in lines] == ["8m10s", "8m00s", "7m50s", "7m40s"]


def test_progress_shows_the_chosen_metrics_of_every_bucket(monkeypatch, capsys):
    Clock(monkeypatch)
    scalars = {
        "train/all/grad_norm": 0.5,
        "train/all/learning_rate": 1e-3,
        "train/image_64x64/kl": jnp.float32(3.25),
        "train/image_64x64/nll": -0.81239,
        "train/video_9x64x64/perceptual": 0.25,
    }
    console.Progress(10).log(1, scalars)
    line = capsys.readouterr().err.strip()
    assert line.split(" | ")[1:] == [
        "image_64x64 nll -0.8124 kl 3.25",
        "video_9x64x64 perceptual 0.25",
        "grad_norm 0.5",
    ]


def test_other_processes_print_nothing(capsys):
    console.Progress(10, is_main=False).log(1, {})
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
    text = console.parameter_overview(shapes)
    assert text.splitlines()[-1] == "parameters: 39 (encoder 20, decoder 18, other 1)"
    assert "encoder/kernel" in text and "(3, 5)" in text
