"""Drift compares latents in units of each channel's standard deviation, and decodes them crosswise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.models import SMALLEST, architecture, random_parameters
from vaejax.codec.load import TrainedVAE, fingerprint, parameter_shapes
from vaejax.evaluate.drift import DriftMeter
from vaejax.models import surgery
from vaejax.models.autoencoder import Autoencoder
from vaejax.models.pixels import from_uint8
from vaejax.runtime import mesh as sharding

FRAMES = np.random.default_rng(0).integers(256, size=(4, 3, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    return Autoencoder(architecture(**SMALLEST))


@pytest.fixture(scope="module")
def start(model):
    clip = jax.ShapeDtypeStruct(model.architecture.example_shape, jnp.float32)
    params = jax.tree.map(np.asarray, random_parameters(model, clip, jax.random.key(0)))
    return TrainedVAE("start", model.architecture, params, None, None, 0, fingerprint(params))


def measured(model, start, params, trains_encoder=True, batches=((0, 4),)):
    meter = DriftMeter(model, start, trains_encoder, sharding.over_height(jax.devices()[:1]))
    for first, last in batches:
        meter.add(params, FRAMES[[*range(first, last), *[0] * (4 - last + first)]], last - first)
    return meter.scores("image")


def test_a_widened_model_has_not_drifted_from_its_widened_start(start):
    new = start.architecture.replace(pixel_channels=4)
    params = surgery.widened(start.params, parameter_shapes(new), start.architecture, new)
    start = start._replace(architecture=new, params=params)
    meter = DriftMeter(Autoencoder(new), start, True, sharding.over_height(jax.devices()[:1]))
    meter.add(params, np.concatenate([FRAMES, FRAMES[..., :1]], -1), 4)
    scores = meter.scores("image")
    assert scores["drift"] == 0 and scores["psnr_start"] == scores["psnr_old_latents"]


def test_drift_shift_and_scale_are_those_of_numpy(model, start):
    params = start.params | {"encoder": jax.tree.map(lambda x: np.asarray(1.05 * x), start.params["encoder"])}
    old, new = (
        np.asarray(model.apply({"params": p}, from_uint8(FRAMES), method="encode").mean, np.float64)
        for p in (start.params, params)
    )
    axes = (0, 1, 2, 3)
    wanted = {
        "drift": np.sqrt(np.mean(((new - old) / old.std(axes)) ** 2)),
        "drift_shift": np.sqrt(np.mean(((new.mean(axes) - old.mean(axes)) / old.std(axes)) ** 2)),
        "drift_scale": np.mean(new.std(axes) / old.std(axes)),
    }
    found = measured(model, start, params, batches=((0, 3), (3, 4)))  # the padding does not count
    np.testing.assert_allclose([found[name] for name in wanted], list(wanted.values()), rtol=2e-4)


def test_the_cross_decode_scores_decode_new_latents_by_the_old_decoder_and_the_reverse(model, start):
    params = jax.tree.map(lambda x: np.asarray(1.05 * x), start.params)

    def psnr(encoder, decoder):
        x = from_uint8(FRAMES)
        z = model.apply({"params": encoder}, x, method="encode").mean
        y = np.clip(model.apply({"params": decoder}, z, method="decode"), -1, 1)
        return np.mean(10 * np.log10(4 / np.square(x - y).mean((2, 3, 4), dtype=np.float64)))

    found = measured(model, start, params)
    for name, encoder, decoder in (
        ("psnr_start", start.params, start.params),
        ("psnr_old_decoder", params, start.params),
        ("psnr_old_latents", start.params, params),
    ):
        np.testing.assert_allclose(found[name], psnr(encoder, decoder), rtol=1e-4)


def test_a_frozen_encoder_has_no_drift(model, start):
    params = start.params | {"decoder": jax.tree.map(lambda x: 2 * x, start.params["decoder"])}
    found = measured(model, start, params, trains_encoder=False)
    assert found["drift"] == found["drift_shift"] == 0 and set(found) == {
        "drift",
        "drift_shift",
        "drift_scale",
        "psnr_start",
    }
    np.testing.assert_allclose(found["drift_scale"], 1, rtol=1e-6)


@pytest.mark.parametrize("trains_encoder", [True, False])
def test_a_frozen_encoder_is_measured_once_per_bucket(model, start, trains_encoder):
    meter = DriftMeter(model, start, trains_encoder, sharding.over_height(jax.devices()[:1]))
    meter.add(start.params, FRAMES, 4)
    first = meter.scores("image")
    assert meter.needs("image") == trains_encoder and meter.needs("video")
    if not trains_encoder:
        assert meter.scores("image") == first
    meter.add(start.params, FRAMES[::-1] // 2, 4)
    assert meter.scores("video") != first
