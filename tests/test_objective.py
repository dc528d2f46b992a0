import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vaejax.models.posterior import DiagonalGaussian
from vaejax.objective import Objective

IMAGE, VIDEO = (3, 1, 16, 24, 3), (2, 5, 8, 16, 3)
REFERENCE = (1, 8, 8)


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
    objective = Objective(likelihood, normalization, REFERENCE, kl=0.3)
    loss, terms = objective(x, x_hat, DiagonalGaussian(mean, log_variance), jnp.float32(-0.7))
    np.testing.assert_allclose(loss, by_hand(shape, likelihood, normalization, -0.7, 0.3), rtol=1e-5)
    per_pixel = by_hand(shape, likelihood, "mean", -0.7, 0.3)
    np.testing.assert_allclose(terms["loss"], per_pixel, rtol=1e-5)  # what a person reads has no shape in it


def test_the_likelihoods_are_those_of_scipy():
    x, x_hat, *_ = batch(IMAGE)
    zero = DiagonalGaussian(jnp.zeros((3, 1, 1, 1, 1)), jnp.zeros((3, 1, 1, 1, 1)))
    for likelihood, distribution in (("laplace", stats.laplace), ("gaussian", stats.norm)):
        terms = Objective(likelihood).terms(jnp.float32(x), jnp.float32(x_hat), zero, jnp.float32(-0.7))
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
        posterior = DiagonalGaussian(jnp.zeros((1, 1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1, 1)))
        return Objective("laplace", normalization, REFERENCE)(x, x + 0.1, posterior, jnp.float32(0))[0]

    shapes = [(1, 8, 8), (1, 16, 32), (5, 8, 8), (17, 16, 16)]
    np.testing.assert_allclose([loss("reference", *s) for s in shapes], loss("reference", 1, 8, 8), rtol=1e-5)
    sizes = np.array([np.prod(s) for s in shapes]) / 64
    np.testing.assert_allclose([loss("sum", *s) / loss("sum", 1, 8, 8) for s in shapes], sizes, rtol=1e-5)

    def gradient_of_a_pixel(normalization, *shape):
        x = jnp.zeros((1, *shape, 3))
        posterior = DiagonalGaussian(jnp.zeros((1, 1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1, 1)))
        objective = Objective("laplace", normalization, REFERENCE)
        return jax.grad(lambda y: objective(x, y, posterior, jnp.float32(0))[0])(x + 0.1).ravel()[0]

    np.testing.assert_allclose([gradient_of_a_pixel("sum", *s) for s in shapes], 1, rtol=1e-5)
    np.testing.assert_allclose(
        [gradient_of_a_pixel("mean", *s) * 3 * 64 for s in shapes], 1 / sizes, rtol=1e-5
    )


def test_samples_of_the_posterior_have_its_moments(key):
    posterior = DiagonalGaussian(jnp.full((50_000,), 2.0), jnp.full((50_000,), np.log(0.25)))
    z = posterior.sample(key)
    np.testing.assert_allclose([z.mean(), z.std()], [2.0, 0.5], atol=0.01)


def test_moments_out_of_range_are_clipped():
    posterior = DiagonalGaussian.from_moments(jnp.array([[1.0, 1000.0], [2.0, -1000.0]]))
    np.testing.assert_array_equal(posterior.mean, [[1.0], [2.0]])
    assert np.isfinite(posterior.kl()).all()
