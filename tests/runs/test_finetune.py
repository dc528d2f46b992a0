"""Runs that start from a model: fine-tuning on latents from files, and distillation into a pair of halves."""

import json

import jax
import numpy as np
import pytest

import vaejax
from tests.support import media_files
from tests.support.models import SMALLEST
from vaejax.codec.__main__ import main as codec
from vaejax.codec.load import load_vae
from vaejax.configs import demo
from vaejax.export.__main__ import main as export
from vaejax.models.autoencoder import Autoencoder
from vaejax.train import loop as train

pytestmark = pytest.mark.runs
BUCKET = "image_32x32"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A trained model as an export, photos, and their latents."""
    root = tmp_path_factory.mktemp("finetune")
    (root / "media").mkdir()
    media_files.write_photos(root / "media", 24)
    assert train.fit(settings(root), str(root / "start"))
    assert export([str(root / "start"), str(root / "model")]) == 0
    assert codec(["encode", str(root / "media"), str(root / "latents"), f"--model={root / 'model'}"]) == 0
    return root


def settings(root, **changes):
    config = demo.get_config("tiny")
    config.data.media = str(root / "media")
    config.data.buckets = {BUCKET: {"batch": 8}}
    config.data.holdout = 0.2
    config.loss.weights.perceptual = config.loss.weights.adversarial = 0.0
    config.model.update(SMALLEST)
    config.eval.linear_samples, config.eval.latent_samples, config.eval.samples = 0, 8, 4
    config.checkpoint.every = config.eval.every = config.panels.every = 2
    config.steps = 4
    config.update_from_flattened_dict(changes)
    return config


def logged(run, name):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line and line["bucket"] == BUCKET}


def equal(one, other) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def test_a_decoder_fine_tuned_on_latents_from_files_resumes_exactly(folders, tmp_path):
    changes = {
        "init": str(folders / "model"),
        "model.family": "",
        "optim.train": ("decoder",),
        "data.latents": str(folders / "latents"),
        "data.workers": 1,
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.fit(settings(folders, **changes), str(whole))
    assert train.fit(settings(folders, **changes, steps=2), str(parts))
    changes["init"] = "/moved/away"  # a resumed run reads RUN/init
    assert train.fit(settings(folders, **changes), str(parts))
    one, other, start = (load_vae(str(path)) for path in (whole, parts, folders / "model"))
    assert equal(one.params, other.params)
    assert equal(one.params["encoder"], start.params["encoder"])
    assert not equal(one.params["decoder"], start.params["decoder"])
    for vae in (one, load_vae(str(whole), 2)):  # the latents are those that others know
        np.testing.assert_array_equal(vae.mean, start.mean)
    assert set(logged(whole, "drift").values()) == {0.0}


def test_a_distilled_decoder_is_loaded_and_exported_beside_its_teachers_encoder(folders, tmp_path):
    changes = {
        "teacher": str(folders / "model"),
        "optim.train": ("decoder",),
        "model.widths": (6,),
        "loss.weights.teacher": 1.0,
        "loss.weights.features": 1.0,
    }
    run, out = tmp_path / "run", tmp_path / "out"
    assert train.fit(settings(folders, **changes), str(run))
    teacher, student = load_vae(str(folders / "model")), load_vae(str(run))
    assert student.architecture.encoder == teacher.architecture.encoder
    assert student.architecture.decoder.widths == (6,)
    assert equal(student.params["encoder"], teacher.params["encoder"])
    assert export([str(run), str(out)]) == 0
    frames = np.random.default_rng(0).integers(256, size=(48, 48, 3), dtype=np.uint8)
    latents = [np.asarray(vaejax.load(str(path)).encode(frames).values) for path in (folders / "model", out)]
    np.testing.assert_array_equal(*latents)
    decoded = [vaejax.load(str(path)).decode(latents[0]) for path in (run, out)]
    np.testing.assert_array_equal(*decoded)


def test_a_folder_of_diffusers_is_fine_tuned_and_given_back(folders, tmp_path):
    """After 0 updates it has the same bits; after 20, diffusers decodes like vaejax."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    from tests.support.wan import design, moments, pair, pixels

    start, run, out = tmp_path / "start", tmp_path / "run", tmp_path / "out"
    of = design("2.1", latent_channels=16)
    theirs, params = pair(of)
    theirs.save_pretrained(start)
    changes = {"init": str(start), "model.family": "", "optim.train": ("decoder",), "steps": 20}
    changes |= {"checkpoint.every": 20, "eval.every": 20, "panels.every": 20, "optim.learning_rate": 1e-3}
    assert train.fit(settings(folders, **changes), str(run))
    assert equal(load_vae(str(run / "init")).params, params)
    assert export([str(run), str(out), "--format=diffusers"]) == 0
    tuned, vae = diffusers.AutoencoderKLWan.from_pretrained(out).eval(), load_vae(str(run))
    assert equal(vae.params["encoder"], params["encoder"])
    assert not equal(vae.params["decoder"], params["decoder"])
    np.testing.assert_array_equal(tuned.config.latents_mean, theirs.config.latents_mean)
    model = Autoencoder(vae.architecture)
    x = np.random.default_rng(0).uniform(-1, 1, (1, 5, 32, 40, 3)).astype(np.float32)
    with torch.no_grad():
        posterior = model.apply({"params": vae.params}, x, method="encode")
        wanted = moments(tuned, x).numpy()[..., :16]
        assert np.abs(posterior.mean - wanted).max() <= 1e-5 * np.abs(wanted).max()
        wanted = pixels(tuned, wanted).numpy()
        x_hat = model.apply({"params": vae.params}, posterior.mean, method="decode")
        assert np.abs(x_hat - wanted).max() <= 1e-5 * np.abs(wanted).max()
