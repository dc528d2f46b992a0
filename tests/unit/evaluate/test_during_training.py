"""Scores of held-out samples during training equal those of scikit-image and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from tests.support import losses
from tests.support.models import randomized
from vaejax.config import schema
from vaejax.data import sources
from vaejax.data.bucket import parse_buckets
from vaejax.evaluate import metrics
from vaejax.evaluate.during_training import TrainingEvaluation, score
from vaejax.runtime import mesh as sharding


def test_scores_are_those_of_what_the_mean_decodes_to():
    model, params = randomized()
    frames = np.random.default_rng(0).integers(256, size=(2, 5, 32, 32, 3), dtype=np.uint8)
    params = {"autoencoder": params, "likelihood": {"log_scale": jnp.zeros(())}}
    objective = losses.objective({"reconstruction": 1.0, "kl": 1e-6})

    @jax.jit
    def scored(params, frames):
        return score(params, {}, frames, model=model, objective=objective, shown=1)

    scores, _, shown = scored(params, frames)
    x, variables = frames / np.float32(127.5) - 1, {"params": params["autoencoder"]}
    z = jax.jit(lambda x: model.apply(variables, x, method="encode").mean)(x)
    y = np.clip(jax.jit(lambda z: model.apply(variables, z, True, method="decode"))(z), -1, 1)
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for i in range(2):
        pairs = list(zip(x[i], y[i], strict=True))
        psnr = [peak_signal_noise_ratio(a, b, data_range=2) for a, b in pairs]
        pairs = [((a + 1) / 2, (b + 1) / 2) for a, b in pairs]
        ssim = [structural_similarity(*pair, data_range=1, channel_axis=-1, **gaussian) for pair in pairs]
        np.testing.assert_allclose(scores["psnr"][i], np.mean(psnr), atol=1e-4)
        np.testing.assert_allclose(scores["ssim"][i], np.mean(ssim), atol=1e-5)
        flicker = 127.5 * np.abs(np.diff(x[i] - y[i], axis=0)).mean()
        np.testing.assert_allclose(scores["flicker"][i], flicker, rtol=1e-4)
        spots = metrics.spots(x[i : i + 1], y[i : i + 1])
        np.testing.assert_allclose(scores["spots"][i], np.mean(spots), atol=1e-6)
    np.testing.assert_allclose(shown[0] / 127.5 - 1, y[0], atol=0.5 / 127.5 + 1e-5)
    np.testing.assert_allclose(scores["latent"], z.mean((1, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(scores["latent_square"], (z**2).mean((1, 2, 3)), rtol=1e-4)
    of_images = scored(params, frames[:, :1])[0]
    assert "flicker" not in of_images and "spots" in of_images


def test_alpha_is_scored_beside_rgb():
    model, params = randomized(pixel_channels=4)
    frames = np.random.default_rng(0).integers(256, size=(2, 1, 32, 32, 4), dtype=np.uint8)
    params = {"autoencoder": params, "likelihood": {"log_scale": jnp.zeros(())}}
    settings = {"model": model, "objective": losses.objective(), "shown": 2}
    scores, _, shown = jax.jit(lambda params, x: score(params, {}, x, **settings))(params, frames)
    for name, channels in (("psnr", slice(4)), ("psnr_rgb", slice(3)), ("psnr_alpha", slice(3, 4))):
        pairs = ((x[0, ..., channels], y[0, ..., channels]) for x, y in zip(frames, shown, strict=True))
        wanted = [peak_signal_noise_ratio(x, y, data_range=255) for x, y in pairs]
        np.testing.assert_allclose(scores[name], wanted, atol=0.05)  # what is shown has 8 bits


def test_training_samples_are_scored_beside_held_out_ones(tmp_path):
    for grey in (40, 80):
        Image.fromarray(np.full((40, 40, 3), grey, np.uint8)).save(tmp_path / f"{grey}.png")
    config = schema.defaults()
    config.data.sources = {"photos": {"kind": "media", "path": str(tmp_path)}}
    config.data.buckets = {"image_32x32": {"batch": 8}}
    config.eval.linear_samples = 0
    opened = sources.open_sources(config.data)
    evaluation = TrainingEvaluation(
        opened,
        parse_buckets(config.data.buckets, 8, 4),
        config,
        randomized()[0],
        losses.objective({}),
        sharding.make_mesh(config.mesh),
        {},
    )
    evaluation._score = lambda params, lpips, frames: (
        {"psnr": frames.astype(jnp.float32).mean((1, 2, 3, 4))},  # the grey level in place of a PSNR
        {},
        frames,
    )
    scores = evaluation.evaluate({}, {})
    (held_out,) = (row["path"] for row in opened[0].table.to_pylist() if row["held_out"])
    grey = 40 if held_out.endswith("40.png") else 80
    assert (scores["image_32x32/psnr"], scores["image_32x32/psnr_train"]) == (grey, 120 - grey)


def test_the_table_compares_with_the_linear_codec_and_explains_missing_buckets(tmp_path):
    for name in "abcd":
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / f"{name}.png")
    config = schema.defaults()
    config.data.sources = {"photos": {"kind": "media", "path": str(tmp_path)}}
    config.data.buckets = {"image_32x32": {"batch": 8}, "video_5x32x32": {"batch": 8}}
    buckets = parse_buckets(config.data.buckets, 8, 4)
    model, params = randomized()
    params = {"autoencoder": params, "likelihood": {"log_scale": jnp.zeros(())}}
    evaluation = TrainingEvaluation(
        sources.open_sources(config.data),
        buckets,
        config,
        model,
        losses.objective({}),
        sharding.make_mesh(config.mesh),
        {},
    )
    frames = np.zeros((8, 1, 32, 32, 3), np.uint8)
    # The network's scores are tested above: here only the bookkeeping counts.
    values = {
        name: jnp.full(8, value) for name, value in (("psnr", 19.5), ("ssim", 0.5), ("nll", 1), ("kl", 0))
    }
    evaluation._score = lambda *_: (values, {}, jnp.asarray(frames))
    evaluation._linear = {"image_32x32": None}
    scores = evaluation.evaluate(params, params) | {"image_32x32/psnr_linear": 32.25}
    assert scores["image_32x32/samples"] == config.eval.samples and "video_5x32x32/psnr" not in scores
    changes = {"image_32x32": "-0.50 since step 40, best so far"}
    heading, image, more, video, hint = evaluation.table(80, scores, changes).splitlines()
    assert heading == "evaluation at step 80: EMA parameters (raw parameters)"
    assert "psnr 19.50 (19.50) dB, -12.75 dB vs linear codec (32.25)" in image
    assert image.endswith("(32.25), -0.50 since step 40, best so far")
    assert more.endswith("32 samples of 1 file") and scores["image_32x32/files"] == 1
    assert (
        "video_5x32x32" in video
        and "not evaluated: no held-out sample fits; there are no held-out clips" in video
    )
    assert "few held-out files in image_32x32" in hint
    assert len(evaluation.table(90, scores).splitlines()) == 4  # the hint is given once
