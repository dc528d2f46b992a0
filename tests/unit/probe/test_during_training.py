"""The probe and the latent statistics of a training run, and the checkpoints that it keeps by its scores."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest

from tests.support import media_files
from tests.support.models import SMALLEST, randomized
from tests.unit.probe.test_probe import TINY
from vaejax.configs import demo
from vaejax.data import bucket, pipeline, sources
from vaejax.errors import InputError
from vaejax.evaluate.codecs.vae import VaeCodec
from vaejax.evaluate.features import Features
from vaejax.probe import during_training
from vaejax.probe.samples import Media
from vaejax.probe.score import Probe
from vaejax.rundir import latent_statistics
from vaejax.runtime import mesh as sharding
from vaejax.train import loop as train

NAME = "image_32x32"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    media_files.write_photos(folder, 40)
    config = demo.get_config("tiny")
    config.data.media = str(folder)
    config.data.buckets = {NAME: {"batch": 8}}
    config.loss.weights.perceptual = config.loss.weights.adversarial = 0.0
    config.model.update(SMALLEST)
    config.steps, config.log_every = 6, 3
    config.eval.samples, config.eval.linear_samples, config.eval.latent_samples = 4, 0, 12
    config.eval.every = config.panels.every = 100
    config.checkpoint.every = config.probe.every = 2
    config.checkpoint.keep, config.checkpoint.best = 1, f"-{NAME}/probe_kernel"
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(during_training, "PRESETS", {"cpu": TINY})
        assert train.fit(config, str(workdir))
    return workdir


def opened(config):
    return sources.open_sources(config.data), bucket.parse_buckets(config.data.buckets, 8, 4)


@pytest.mark.runs
def test_the_checkpoint_with_the_best_probe_score_is_kept(run, config):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kernels = {line["step"]: line["probe_kernel"] for line in lines if "probe_kernel" in line}
    assert sorted(kernels) == [2, 4, 6] and len(set(kernels.values())) == 3
    best = min(kernels, key=kernels.get)
    assert {p.name for p in (run / "checkpoints").iterdir()} == {str(best), "6"}
    assert (run / "panels" / str(best) / f"{NAME}_generated.png").exists()

    # The checkpoint has the same score outside the run.
    (source,), (shape,) = opened(config)
    probe, codec = Probe(Media([source], shape, config.data), TINY, Features()), VaeCodec.open(str(run), best)
    scores, _ = probe.score(probe.latents(codec), codec.decode, [0])
    assert scores["kernel"]["mean"] == pytest.approx(kernels[best], rel=1e-4)


@pytest.mark.runs
def test_the_last_checkpoint_has_the_mean_and_std_of_training_latents(run, config):
    (source,), (shape,) = opened(config)
    frames = np.concatenate(list(pipeline.train_samples([source], shape, config.data, 12, config.seed)))
    z = VaeCodec.open(str(run)).encode(frames).reshape(-1, 4).astype(np.float64)
    stored = latent_statistics.load(run, 6)
    np.testing.assert_allclose(stored["mean"], z.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stored["std"], z.std(0), rtol=1e-5)
    assert stored["buckets"][NAME]["samples"] == 12


@pytest.mark.variants
def test_a_probe_stops_with_the_run(config, monkeypatch):
    """It stops while it reads samples and while it learns."""
    monkeypatch.setattr(during_training, "PRESETS", {"cpu": TINY})
    (model, params), mesh = randomized(), sharding.make_mesh(config.mesh)
    asked, last = 0, 10**9

    def stopping():
        nonlocal asked
        asked += 1
        return asked >= last

    probe = during_training.TrainingProbe(*opened(config), config, model, mesh, stopping)
    scores, picture = probe.evaluate({"autoencoder": params})
    assert set(scores) == {f"{NAME}/{name}" for name in during_training.SCORES} and picture is not None
    total, asked = asked, 0
    for last in (1, total // 2):
        asked = 0
        again = during_training.TrainingProbe(*opened(config), config, model, mesh, stopping)
        assert again.evaluate({"autoencoder": params}) == ({}, None)
        assert asked == last


@pytest.mark.runs
def test_a_signal_ends_an_evaluation_at_once(config, tmp_path, monkeypatch):
    """The evaluation has no result, and the checkpoint is of the current step."""
    config = config.copy_and_resolve_references()
    config.probe.every, config.eval.every, config.checkpoint.every, config.checkpoint.best = 0, 2, 100, ""

    def noticed(*arguments, read=pipeline.eval_batches):
        os.kill(os.getpid(), signal.SIGTERM)
        yield from read(*arguments)

    monkeypatch.setattr(pipeline, "eval_batches", noticed)
    assert not train.fit(config, str(tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert not [line for line in lines if line["split"] == "eval"]


def test_a_failed_probe_does_not_end_the_run(config, monkeypatch, capsys):
    def fail(*_):
        raise InputError("features of 1 of 9 samples are not finite")

    monkeypatch.setattr(during_training, "PRESETS", {"cpu": TINY})
    monkeypatch.setattr(Probe, "score", fail)
    model, params = randomized()
    probe = during_training.TrainingProbe(
        *opened(config), config, model, sharding.make_mesh(config.mesh), lambda: False
    )
    assert probe.evaluate({"autoencoder": params}) == ({}, None)
    assert f"{NAME} is not probed: features of 1 of 9" in capsys.readouterr().err


@pytest.mark.runs
def test_a_finished_run_without_statistics_gets_them(run, config):
    stored = latent_statistics.load(run, 6)
    (run / "checkpoints" / "6" / latent_statistics.FILE).unlink()
    assert train.fit(config, str(run))
    again = latent_statistics.load(run, 6)
    np.testing.assert_allclose(again["mean"], stored["mean"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(again["std"], stored["std"], rtol=1e-4)


def test_a_patch_that_does_not_divide_the_latents_is_refused_before_the_run(config, tmp_path, monkeypatch):
    monkeypatch.setattr(during_training, "PRESETS", {"cpu": dataclasses.replace(TINY, patch=8)})
    with pytest.raises(
        InputError, match=r"probe\.bucket = 'image_32x32': its latents are 4x4; accepted: .* multiples of 8"
    ):
        train.fit(config, str(tmp_path))
