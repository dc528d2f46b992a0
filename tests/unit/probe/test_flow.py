"""The probe's flow, against analytic solutions for Gaussian data."""

import jax
import numpy as np
import pytest

from tests.unit.probe.test_dit import normal
from vaejax.probe import flow


def best_for_gaussian(std):
    """E[noise - x | x_t] for x ~ N(0, std²): the covariance of noise - x and x_t over the variance of x_t."""

    def best(x_t, times):
        t = times[:, None]
        return (t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2) * x_t

    return best


@pytest.mark.parametrize("std", [1.0, 0.3])
def test_the_optimal_velocity_of_gaussian_data_has_the_analytic_loss(std):
    times = np.repeat([0.05, 0.5, 0.8], 4)
    x, noise = std * normal(12, 20_000), normal(12, 20_000, seed=1)
    got, white = (
        np.asarray(flow.losses(best_for_gaussian(s), x, noise, times)).reshape(3, 4).mean(1) for s in (std, 1)
    )
    t = times[::4]
    wanted = std**2 / ((1 - t) ** 2 * std**2 + t**2)
    np.testing.assert_allclose(got, wanted, rtol=0.02)
    # A model that assumes a variance of 1 is optimal there, and worse elsewhere.
    np.testing.assert_allclose(flow.white_loss(t, std**2), white, rtol=0.02)
    assert std == 1 or (white > 1.01 * got).all()


def test_the_solver_maps_noise_to_gaussian_data_with_second_order_error():
    std, mean = 0.3, 2.0

    def exact(x, times):
        return best_for_gaussian(std)(x - (1 - times[:, None]) * mean, times) - mean

    noise = normal(4, 50)
    # The flow preserves the order of points, so it must be the monotone map between the two Gaussians.
    errors = [np.abs(flow.solve(exact, noise, n) - (mean + std * noise)).max() for n in (10, 20, 40)]
    assert errors[2] < 2e-3
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 4, rtol=0.3)


def test_training_times_are_logit_normal():
    t = np.asarray(flow.logit_normal(jax.random.key(0), (40_000,)), np.float64)
    logit = np.log(t / (1 - t))
    np.testing.assert_allclose([logit.mean(), logit.std()], [0, 1], atol=0.02)
