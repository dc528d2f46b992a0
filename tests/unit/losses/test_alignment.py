"""Latents are drawn towards a network's features by VA-VAE's loss and adaptive weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import losses
from tests.support.models import SMALLEST, architecture
from vaejax.losses import alignment
from vaejax.losses.alignment import Alignment
from vaejax.models.autoencoder import Autoencoder
from vaejax.networks import efficientnet
from vaejax.train import step as steps

SETTINGS = Alignment("efficientnet", 0.5, 0.25)


@pytest.fixture(scope="module")
def network():
    return efficientnet.load()


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def by_definition(z, f, m1, m2):
    points = [max(0, 1 - m1 - cosine(a, b)) for a, b in zip(z, f, strict=True)]
    pairs = [
        max(0, abs(cosine(z[i], z[j]) - cosine(f[i], f[j])) - m2)
        for i in range(len(z))
        for j in range(len(z))
    ]
    return np.mean(points) + np.mean(pairs)


@pytest.mark.parametrize("t", [1, 5])
def test_the_distance_is_that_of_the_paper(t):
    rng = np.random.default_rng(0)
    z, kernel, f = (rng.normal(size=size) for size in ((2, t, 2, 3, 4), (4, 7), (2, t, 2, 3, 7)))
    found = SETTINGS(jax.random.key(0), *(jnp.asarray(a, jnp.float32) for a in (z, kernel, f)))
    frames = zip((z @ kernel).reshape(-1, 6, 7), f.reshape(-1, 6, 7), strict=True)
    np.testing.assert_allclose(
        found, np.mean([by_definition(*pair, 0.5, 0.25) for pair in frames]), rtol=1e-5
    )


def test_aligned_latents_cost_nothing():
    """A rotation keeps all cosines, so it costs only what lies between points and features."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(3, 20, 5)), jnp.float32)
    assert alignment.distance(z, 3 * z, 0.5, 0.25) == 0
    assert alignment.distance(z, -z, 0.5, 0.25) == pytest.approx(1.5)
    assert jnp.isfinite(jax.grad(lambda z: alignment.distance(z, z, 0.0, 0.0))(jnp.zeros((1, 2, 3)))).all()


def test_of_large_frames_some_latent_pixels_are_compared(monkeypatch):
    monkeypatch.setattr(alignment, "TOKENS", 200)
    rng = np.random.default_rng(1)
    z, kernel, f = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((1, 1, 20, 20, 4), (4, 7), (1, 1, 20, 20, 7))
    )
    some = np.mean([SETTINGS(jax.random.key(seed), z, kernel, f) for seed in range(10)])
    monkeypatch.setattr(alignment, "TOKENS", 400)
    np.testing.assert_allclose(some, SETTINGS(jax.random.key(0), z, kernel, f), rtol=0.02)


def test_the_gradient_joins_that_of_the_other_terms_in_proportion():
    rng = np.random.default_rng(2)
    z, other, g = (jnp.asarray(rng.normal(size=(2, 1, 3, 3, 4)), jnp.float32) for _ in range(3))
    value, found = jax.value_and_grad(lambda z: (alignment.pulled(z, g, jnp.float32(0.1)) * other).sum())(z)
    np.testing.assert_allclose(value, (z * other).sum(), rtol=1e-5)
    expected = other + 0.1 * np.linalg.norm(other) / np.linalg.norm(g) * g
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_latent_frame_has_the_features_of_its_last_frame(network):
    x = jnp.asarray(np.random.default_rng(3).uniform(-1, 1, (1, 17, 24, 16, 4)), jnp.float32)
    features = jax.jit(SETTINGS.features, static_argnums=2)
    found = features(network, x, (5, 3, 2))
    assert found.shape == (1, 5, 3, 2, 112)
    for k in range(5):
        image = features(network, x[:, 4 * k : 4 * k + 1, :, :, :3], (1, 3, 2))
        np.testing.assert_allclose(found[:, k : k + 1], image, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 5])
def test_training_pulls_the_encoder_and_fits_the_projection(frames, network):
    model = Autoencoder(architecture(**SMALLEST))
    x = np.random.default_rng(4).uniform(-1, 1, (2, frames, 16, 16, 3)).astype(np.float32)
    key, channels = jax.random.key(0), model.architecture.latent_channels
    params = {"autoencoder": model.init(key, x, key)["params"], "likelihood": {"log_scale": jnp.zeros(())}}
    params["alignment"] = {"kernel": jax.random.normal(key, (channels, 112))}

    def loss(params, weight):
        weights = {"reconstruction": 1.0, "kl": 0.0, "alignment": weight}
        objective = losses.objective(weights, normalization="mean", alignment=SETTINGS)
        networks = {"alignment": network}
        out = steps.reconstruct(model, objective, params, x, key, networks=networks)
        return objective(jnp.asarray(x), out, networks, key)[0]

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    without, pulled = (gradient(params, weight) for weight in (0.0, 1.0))
    kernels = [np.linalg.norm(g["alignment"]["kernel"]) for g in (without, pulled)]
    assert kernels[0] == 0 and kernels[1] > 0
    halves = [g["autoencoder"] for g in (without, pulled)]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *(half["decoder"] for half in halves)
    )
    one, other = (half["encoder"]["conv_out"]["kernel"] for half in halves)
    assert np.linalg.norm(other - one) > 0.1 * np.linalg.norm(one)
