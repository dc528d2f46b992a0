"""Every loss term against its formula, SciPy, PyTorch or NumPy, and their balance over shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from tests.support import losses
from vaejax.losses import latent as latent_terms
from vaejax.losses.adversarial import LOSSES
from vaejax.losses.crops import random_windows
from vaejax.losses.objective import Outputs, high_pass, temporal, wavelet
from vaejax.models.discriminator import power_iteration
from vaejax.models.posterior import DiagonalGaussian
from vaejax.networks import lpips as perceptual

IMAGE, VIDEO = (3, 1, 16, 24, 3), (2, 5, 8, 16, 3)
REFERENCE = (1, 8, 8)


def outputs(x_hat, posterior, s=0.0):
    return Outputs(x_hat, posterior, posterior.mean, jnp.float32(s), {})


def flat_posterior(*latent):
    return DiagonalGaussian(jnp.zeros(latent), jnp.zeros(latent))


def weighed(likelihood, normalization, kl=1e-6, **more):
    weights = {"reconstruction": 1.0, "kl": kl, **more}
    return losses.objective(
        weights, likelihood=likelihood, normalization=normalization, reference=REFERENCE, perceptual_side=0
    )


def batch(shape):
    rng = np.random.default_rng(0)
    latent = (shape[0], 1 + (shape[1] - 1) // 4, shape[2] // 8, shape[3] // 8, 4)
    x, x_hat = rng.uniform(-1, 1, shape), rng.uniform(-1, 1, shape)
    return x, x_hat, rng.normal(size=latent), rng.normal(size=latent)


def by_hand(shape, likelihood, normalization, s, kl_weight):
    """The loss from the formulas, in float64, sample by sample."""
    x, x_hat, mean, log_variance = batch(shape)
    b = shape[0]
    size = np.prod(shape[1:])
    scale = {"sum": 1.0, "mean": 1 / size, "reference": shape[-1] * np.prod(REFERENCE) / size}[normalization]
    total = 0.0
    for i in range(b):
        if likelihood == "laplace":
            nll = np.abs(x[i] - x_hat[i]) * np.exp(-s) + s + np.log(2)
        else:
            variance = np.exp(2 * s)
            nll = 0.5 * (x[i] - x_hat[i]) ** 2 / variance + 0.5 * np.log(2 * np.pi * variance)
        kl = 0.5 * (mean[i] ** 2 + np.exp(log_variance[i]) - 1 - log_variance[i])
        total += scale * (nll.sum() + kl_weight * kl.sum()) / b
    return total


@pytest.mark.parametrize("shape", [IMAGE, VIDEO], ids=["image", "video"])
@pytest.mark.parametrize("likelihood", ["laplace", "gaussian"])
@pytest.mark.parametrize("normalization", ["sum", "mean", "reference"])
def test_the_loss_is_that_of_the_formulas(shape, likelihood, normalization):
    x, x_hat, mean, log_variance = map(jnp.float32, batch(shape))
    objective = weighed(likelihood, normalization, kl=0.3)
    out = outputs(x_hat, DiagonalGaussian(mean, log_variance), -0.7)
    loss, terms = jax.jit(lambda *given: objective(*given))(x, out, {}, jax.random.key(0))
    np.testing.assert_allclose(loss, by_hand(shape, likelihood, normalization, -0.7, 0.3), rtol=1e-5)
    per_pixel = by_hand(shape, likelihood, "mean", -0.7, 0.3)
    np.testing.assert_allclose(terms["loss"], per_pixel, rtol=1e-5)  # what a person reads has no shape in it


def test_the_likelihoods_are_those_of_scipy():
    x, x_hat, *_ = batch(IMAGE)
    zero = flat_posterior(3, 1, 1, 1, 1)
    for likelihood, distribution in (("laplace", stats.laplace), ("gaussian", stats.norm)):
        objective = weighed(likelihood, "mean")
        terms = objective.likelihood_terms(jnp.float32(x), jnp.float32(x_hat), zero, jnp.float32(-0.7))
        expected = -distribution.logpdf(x, x_hat, np.exp(-0.7)).mean((1, 2, 3, 4))
        np.testing.assert_allclose(terms["nll"], expected, rtol=1e-5)


def test_the_kl_is_that_of_torch():
    torch = pytest.importorskip("torch")  # not in the test extra: a plain torch can pull gigabytes of CUDA
    _, _, mean, log_variance = batch(VIDEO)
    q = torch.distributions.Normal(torch.tensor(mean), torch.tensor(log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    ours = DiagonalGaussian(jnp.float32(mean), jnp.float32(log_variance)).kl()
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-4, atol=1e-6)


def test_a_fixed_error_costs_the_same_at_every_shape_under_reference_and_not_otherwise():
    def loss(normalization, t, h, w):
        x = jnp.zeros((1, t, h, w, 3))
        out = outputs(x + 0.1, flat_posterior(1, 1, 1, 1, 1))
        objective = weighed("laplace", normalization)
        return jax.jit(lambda *given: objective(*given)[0])(x, out, {}, jax.random.key(0))

    shapes = [(1, 8, 8), (1, 16, 32), (5, 8, 8), (17, 16, 16)]
    np.testing.assert_allclose([loss("reference", *s) for s in shapes], loss("reference", 1, 8, 8), rtol=1e-5)
    sizes = np.array([np.prod(s) for s in shapes]) / 64
    np.testing.assert_allclose([loss("sum", *s) / loss("sum", 1, 8, 8) for s in shapes], sizes, rtol=1e-5)

    def gradient_of_a_pixel(normalization, *shape):
        x = jnp.zeros((1, *shape, 3))
        objective, posterior = weighed("laplace", normalization), flat_posterior(1, 1, 1, 1, 1)

        def loss(y):
            return objective(x, outputs(y, posterior), {}, jax.random.key(0))[0]

        return jax.jit(jax.grad(loss))(x + 0.1).ravel()[0]

    np.testing.assert_allclose([gradient_of_a_pixel("sum", *s) for s in shapes], 1, rtol=1e-5)
    np.testing.assert_allclose(
        [gradient_of_a_pixel("mean", *s) * 3 * 64 for s in shapes], 1 / sizes, rtol=1e-5
    )


@pytest.fixture(scope="module")
def alexnet():
    return perceptual.load("alexnet")


@functools.cache
def settled_discriminator():
    """A discriminator of images whose spectral norms have converged."""
    judge = losses.discriminator()
    variables = jax.jit(judge.init)(jax.random.key(0), jnp.zeros((1, 1, 32, 32, 3)))
    settle = jax.jit(functools.partial(power_iteration, squarings=5))
    variables |= {"spectral": settle(variables["params"], variables["spectral"])}
    return jax.jit(functools.partial(judge.apply, variables))


@pytest.mark.parametrize(
    ("size", "frames"),
    [
        *(((40, 40), frames) for frames in (1, 5)),
        *(pytest.param((40, 40), frames, marks=pytest.mark.variants) for frames in (9, 17)),
        *(pytest.param((64, 96), frames, marks=pytest.mark.variants) for frames in (1, 5, 9)),
        ((64, 96), 17),
    ],
)
def test_every_term_means_the_same_at_every_shape(alexnet, frames, size):
    """A grey clip, wrong by 0.1 everywhere, whose latent has the same KL in every element."""
    weights = {"reconstruction": 1.0, "kl": 0.5, "perceptual": 2.0, "high_pass": 1.0, "wavelet": 1.0}
    objective = losses.objective(
        weights, reference=REFERENCE, perceptual_network="alexnet", perceptual_frames=4, perceptual_side=32
    )
    h, w = size
    x = jnp.full((2, frames, h, w, 3), 0.2)
    latent = (2, 1 + (frames - 1) // 4, h // 8, w // 8, 16)
    posterior = DiagonalGaussian(jnp.full(latent, 0.5), jnp.full(latent, -1.0))
    costs = jax.jit(lambda x_hat, net: objective(x, outputs(x_hat, posterior), net, jax.random.key(3)))
    loss, terms = costs(x + 0.1, {"lpips": alexnet})

    np.testing.assert_allclose(terms["nll"], 0.1 + np.log(2), rtol=1e-5)
    kl = 0.5 * (0.25 + np.exp(-1) - 1 + 1) * 16 / (3 * 8 * 8)  # of an element, times elements a pixel value
    k = (frames - 1) // 4
    np.testing.assert_allclose(terms["kl"], kl * (1 + k) / (1 + 4 * k), rtol=1e-5)
    one = jnp.full((1, 32, 32, 3), 0.2)
    expected = jax.jit(perceptual.lpips, static_argnums=3)(alexnet, one, one + 0.1, "alexnet")[0]
    np.testing.assert_allclose(terms["perceptual"], expected, rtol=1e-5)
    np.testing.assert_allclose([terms["high_pass"], terms["wavelet"]], 0, atol=1e-6)
    per_pixel = terms["nll"] + 0.5 * terms["kl"] + 2 * terms["perceptual"]
    np.testing.assert_allclose([terms["loss"], loss], [per_pixel, per_pixel * 3 * 64], rtol=1e-5)

    judge = settled_discriminator()
    few, here = judge(jnp.full((1, 1, 32, 32, 3), 0.3)), judge(x + 0.1)
    for _, generator_loss in LOSSES.values():
        # Thousands of equal numbers, added up one by one, are wrong by 2e-5 in float32.
        with jax.enable_x64(True):
            means = [generator_loss(jnp.asarray(logits, jnp.float64)) for logits in (here, few)]
        np.testing.assert_allclose(*means, rtol=1e-5, atol=1e-5)


def test_the_extra_reconstruction_terms_are_those_of_scipy_and_numpy():
    x, x_hat, *_ = batch((2, 3, 16, 24, 3))
    error = x - x_hat
    blurred = ndimage.gaussian_filter(error, (0, 0, 1, 1, 0), mode="nearest", truncate=3)
    x, x_hat = jnp.float32(x), jnp.float32(x_hat)
    np.testing.assert_allclose(high_pass(x, x_hat), np.abs(error - blurred).mean(), rtol=1e-5)
    np.testing.assert_allclose(temporal(x, x_hat), np.abs(error[:, 1:] - error[:, :-1]).mean(), rtol=1e-5)
    a, b, c, d = (error[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1))
    bands = np.stack([a - b + c - d, a + b - c - d, a - b - c + d]) / 2
    expected = (np.sqrt(bands**2 + 1e-6) - 1e-3).mean()
    np.testing.assert_allclose(wavelet(x, x_hat), expected, rtol=1e-4)
    assert temporal(x[:, :1], x_hat[:, :1]) == 0


def test_the_outlier_penalty_is_that_of_the_formula():
    z = np.random.default_rng(0).normal(size=(2, 3, 8, 8, 4)).astype(np.float32)
    z[0, 1, 2, 3] = 30
    expected = []
    for frame in z.reshape(6, 64, 4):
        norms = np.linalg.norm(frame - frame.mean(0), axis=-1)
        expected.append(np.maximum(norms - 2 * np.linalg.norm(frame.std(0)), 0).mean())
    np.testing.assert_allclose(latent_terms.outliers(jnp.array(z), 2.0), np.mean(expected), rtol=1e-4)
    for flat in (jnp.ones((1, 1, 4, 4, 2)), jnp.array(z).at[..., 0].set(1.0), jnp.ones((2, 1, 1, 1, 4))):
        assert np.isfinite(jax.jit(jax.grad(latent_terms.outliers))(flat, 2.0)).all()


def test_rough_latents_cost_and_smooth_ones_do_not():
    noise = jax.random.normal(jax.random.key(0), (2, 4, 32, 32, 8))
    ramp = jnp.broadcast_to(jnp.linspace(-1, 1, 32)[:, None, None], (2, 1, 32, 32, 8))
    assert abs(latent_terms.roughness(noise, 0.75) - 0.75) < 0.05  # neighbours are not correlated
    assert latent_terms.roughness(ramp, 0.75) < 0.01
    x = np.random.default_rng(1).normal(size=(1, 1, 6, 7, 1))
    centred = x - x.mean()
    down, right = centred[:, :, :-1] * centred[:, :, 1:], centred[:, :, :, :-1] * centred[:, :, :, 1:]
    expected = np.mean([max(0, 0.5 - part.mean() / centred.var()) for part in (down, right)])
    np.testing.assert_allclose(latent_terms.roughness(jnp.array(x), 0.5), expected, rtol=1e-4)


@pytest.mark.parametrize(("scales", "rotate"), [((0.5, 0.25), False), ((1.0,), True)])
def test_a_decoder_that_is_equivariant_costs_nothing(scales, rotate):
    """Nearest-neighbour upsampling commutes with rotation, and with scaling of what is linear in place."""
    settings = losses.latent_settings(scales=scales, rotate=rotate)

    def decode(z):
        return jnp.repeat(jnp.repeat(z, 8, axis=2), 8, axis=3)

    noise = jax.random.normal(jax.random.key(1), (2, 1, 4, 4, 3))
    z = noise if rotate else jnp.ones((2, 1, 8, 8, 3)) * noise[:, :, :1, :1]
    tilt = 0.1 * jnp.arange(8.0 * z.shape[2])[:, None, None]
    tilted = []
    for seed in range(6):
        key = jax.random.key(seed)
        cost = latent_terms.equivariance(decode, z, decode(z), key, settings)
        np.testing.assert_allclose(cost, 0, atol=1e-6)
        tilted.append(latent_terms.equivariance(decode, z, decode(z) + tilt, key, settings))
    assert min(tilted) > 0.1  # what no decoder of z shows


def test_both_clips_get_the_same_random_window():
    clip = jnp.arange(2 * 9 * 40 * 48 * 3.0).reshape(2, 9, 40, 48, 3)
    a, b = random_windows(jax.random.key(0), (clip, clip + 1), 4, 32)
    assert a.shape == (8, 32, 32, 3)
    np.testing.assert_array_equal(a + 1, b)
    whole = np.lib.stride_tricks.sliding_window_view(np.asarray(clip), (32, 32), axis=(2, 3))
    assert (whole == np.asarray(a[0]).transpose(2, 0, 1)).all((-1, -2, -3)).any()
    assert len({float(frame[0, 0, 0]) for frame in a}) == 8  # different frames


def test_samples_of_the_posterior_have_its_moments(key):
    posterior = DiagonalGaussian(jnp.full((50_000,), 2.0), jnp.full((50_000,), np.log(0.25)))
    z = posterior.sample(key)
    np.testing.assert_allclose([z.mean(), z.std()], [2.0, 0.5], atol=0.01)


def test_moments_out_of_range_are_clipped():
    posterior = DiagonalGaussian.from_moments(jnp.array([[1.0, 1000.0], [2.0, -1000.0]]))
    np.testing.assert_array_equal(posterior.mean, [[1.0], [2.0]])
    assert np.isfinite(posterior.kl()).all()
