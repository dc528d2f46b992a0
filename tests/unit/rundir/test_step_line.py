"""The console line of an update: its numbers are right, and it never exceeds its width."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.config import check, defaults
from vaejax.configs import demo, image, joint, video
from vaejax.data.bucket import buckets_of
from vaejax.losses.objective import LIKELIHOODS, implied_error
from vaejax.rundir import reporter
from vaejax.rundir.console import Cost, Later
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.goodput import Goodput
from vaejax.rundir.step_line import WIDTH, Readable, fitted


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("log_scale", [0.0, -3.0])
def test_the_error_follows_from_the_likelihood(likelihood, log_scale):
    x, x_hat = np.random.default_rng(0).uniform(-1, 1, (2, 4, 1, 8, 8, 3)).astype(np.float32)
    nll = float(LIKELIHOODS[likelihood](x, x_hat, jnp.float32(log_scale)).mean())
    expected = np.abs(x - x_hat).mean() if likelihood == "laplace" else np.square(x - x_hat).mean()
    assert implied_error(likelihood, nll, log_scale) == pytest.approx(expected, rel=1e-4)


def config(**settings):
    config = defaults()
    config.data.buckets = {"image_32x32": {"batch": 8}, "video_5x32x32": {"batch": 2, "weight": 0.5}}
    config.update_from_flattened_dict(settings)
    return check(config)


def flat(terms):
    return {f"train/{bucket}/{name}": value for bucket, one in terms.items() for name, value in one.items()}


def nll(mse, log_scale):
    return 0.5 * mse * math.exp(-2 * log_scale) + log_scale + 0.5 * math.log(2 * math.pi)


def test_errors_use_the_log_scale_before_the_update_of_each_bucket():
    gaussian = config(**{"loss.likelihood": "gaussian"})
    readable = Readable(gaussian, buckets_of(gaussian))
    readable.update({"image_32x32": {}, "video_5x32x32": {}, "all": {"log_scale": jnp.float32(-1)}})
    readable.update({"image_32x32": {}, "video_5x32x32": {}, "all": {"log_scale": -2.0}})
    readable.update({"image_32x32": {}, "all": {"log_scale": -2.5}})
    terms = {"image_32x32": {"nll": nll(0.004, -2.0)}, "video_5x32x32": {"nll": nll(0.04, -1.0)}}
    assert readable.parts(flat(terms)) == [(1, "psnr 30.0 images 20.0 clips")]


def test_a_laplace_likelihood_gives_the_mean_error_in_levels():
    laplace = config()
    readable = Readable(laplace, buckets_of(laplace))
    readable.update({"all": {"log_scale": -1.0}})
    readable.update({"image_32x32": {}, "all": {"log_scale": -1.5}})
    value = (4 / 127.5) * math.e - 1 + math.log(2)
    assert readable.parts(flat({"image_32x32": {"nll": value}})) == [(1, "error 4.0 images of 255")]


def test_the_first_update_of_a_process_has_no_known_error():
    gaussian = config(**{"loss.likelihood": "gaussian"})
    readable = Readable(gaussian, buckets_of(gaussian))
    readable.update({"image_32x32": {}, "all": {"log_scale": -1.0}})
    assert readable.parts(flat({"image_32x32": {"nll": 0.5}})) == []


@pytest.mark.parametrize(
    ("normalization", "norm", "expected"),
    # Weighted pixel values: 1.5 times 64x64x3; 1.5 times 1; 32x32x3 + 0.5 * 5x32x32x3.
    [("reference", 1.5 * 12288 * 0.25, "0.25"), ("mean", 0.375, "0.25"), ("sum", 3.5 * 3072 * 0.25, "0.25")],
)
def test_the_gradient_norm_is_shown_per_pixel_value(normalization, norm, expected):
    settings = config(**{"loss.normalization": normalization})
    readable = Readable(settings, buckets_of(settings))
    readable.update({"image_32x32": {}, "video_5x32x32": {}, "all": {}})
    scalars = {"train/all/grad_norm": norm, "train/all/learning_rate": 3e-4, "train/all/bad_steps": 2}
    assert [text for _, text in readable.parts(scalars)] == ["lr 0.0003", f"grad {expected}", "2 skipped"]


def test_parts_of_the_highest_rank_give_way():
    parts = [(0, "a" * 60), (3, "b" * 30), (1, "c" * 30), (2, "d" * 25)]
    assert fitted(parts) == f"{'a' * 60}  {'c' * 30}  {'d' * 25}"
    assert fitted(parts[:2]) == f"{'a' * 60}  {'b' * 30}"


CONFIGS = {
    f"{module.__name__.split('.')[-1]}:{variant}": (module, variant)
    for module, variants in (
        (demo, ("", "tiny")),
        (image, ("", "tiny")),
        (joint, ("", "large", "tiny")),
        (video, ("",)),
    )
    for variant in variants
}


@pytest.mark.parametrize(
    ("module", "variant"),
    [
        pytest.param(*one, id=name, marks=() if name == "joint:" else pytest.mark.variants)
        for name, one in CONFIGS.items()
    ],
)
def test_no_line_of_a_shipped_configuration_is_too_long(module, variant, tmp_path, capsys, monkeypatch):
    shipped = module.get_config(variant)
    shipped.data.media, shipped.steps = "media", 1_000_000
    shipped = check(shipped)
    terms = ("loss", "nll", "kl", "perceptual", "adversarial_image", "discriminator_video")
    of_bucket = dict.fromkeys(terms, jnp.float32(-123.456))
    of_all = {"grad_norm": 2.4e4, "log_scale": -3.0, "accuracy_image": 0.75, "accuracy_video": 0.75}
    latest = {name: of_bucket for name in shipped.data.buckets} | {"all": of_all}
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    goodput = Goodput(tmp_path / "goodput.json")
    goodput.stopwatch.begin("updates")
    with reporter.Reporter(RunFolder(tmp_path), shipped, 0, 1e12, goodput) as report:
        for step in range(1, 4):
            now[0] += 123.4
            report.update(latest, Cost(12_345, 10**9, 10**14))
            numbers = {"train/all/learning_rate": 0.00098765, "train/all/bad_steps": 123}
            report.log(999_000 + step, numbers, Later(3e5, ("evaluation", "probe")))
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if line.startswith("step ") and "/1000000" in line]
    assert len(lines) == 3 and max(map(len, lines)) <= WIDTH
    assert all("123 skipped" in line for line in lines) and "eta 4d" in lines[-1]
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    details = next(line for line in logged if line["bucket"] == next(iter(shipped.data.buckets)))
    assert set(terms) <= set(details)  # all numbers stay in the metrics
