"""Distances are SciPy's and a plain loop's; identical sets are at none; intervals hold what they say."""

import functools

import numpy as np
import pytest
import scipy.linalg

from vaejax.errors import InputError
from vaejax.evaluate.distances import frechet_distance, interval, kernel_distance, mean_interval


def sets(n, m, d, seed=0):
    """Two sets of features, (n, d) and (m, d): correlated, of other means and covariances."""
    rng = np.random.default_rng(seed)
    mix, other = rng.normal(size=(2, d, d)) / np.sqrt(d)
    return rng.normal(size=(n, d)) @ mix + 1, rng.normal(size=(m, d)) @ (mix + 0.3 * other) + 0.8


def by_square_root(x, y):
    """As pytorch-fid: the principal root of the product of the covariances, in float64."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    return np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * root)


def by_loop(x, y, paired=False):
    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = [k(x[i], x[j]) for i in range(n) for j in range(n) if i != j]
    within_y = [k(y[i], y[j]) for i in range(m) for j in range(m) if i != j]
    across = [k(x[i], y[j]) for i in range(n) for j in range(m) if not (paired and i == j)]
    return np.mean(within_x) + np.mean(within_y) - 2 * np.mean(across)


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 30), (60, 61, 60), (300, 25, 30)])
def test_the_frechet_distance_is_that_of_scipy_s_matrix_root(n, m, d):
    x, y = sets(n, m, d)
    np.testing.assert_allclose(frechet_distance(x, y), by_square_root(x, y), rtol=1e-6)


@pytest.mark.parametrize(("n", "m", "d"), [(20, 20, 100), (12, 30, 64), (30, 300, 100)])
def test_fewer_samples_than_features_are_no_trouble(n, m, d):
    """There SciPy's root of a singular product loses digits; that of a symmetric one is well conditioned."""
    x, y = sets(n, m, d)
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    half = vectors * np.sqrt(values.clip(0)) @ vectors.T
    b = np.cov(y, rowvar=False)
    root = np.sqrt(np.linalg.eigvalsh(half @ b @ half).clip(0)).sum()
    wanted = np.square(x.mean(0) - y.mean(0)).sum() + np.square(half).sum() + np.trace(b) - 2 * root
    np.testing.assert_allclose(frechet_distance(x, y), wanted, rtol=1e-5)
    np.testing.assert_allclose(frechet_distance(x, y), by_square_root(x, y), rtol=1e-2)


def test_gaussians_are_at_the_distance_of_the_formula():
    """Of diagonal covariances: |shift|² + Σ (s - t)²."""
    rng = np.random.default_rng(0)
    s, t, shift = np.array([1.0, 2, 3]), np.array([2.0, 2, 1]), np.array([1.0, 0, -1])
    x, y = rng.normal(size=(2, 200_000, 3))
    np.testing.assert_allclose(frechet_distance(x * s, y * t + shift), 2 + 1 + 0 + 4, rtol=0.02)


def test_identical_sets_are_at_no_distance():
    for n, d in ((200, 30), (20, 300)):
        x = np.float32(sets(n, n, d)[0])
        scale = np.square(x).sum(1).mean()
        assert 0 <= frechet_distance(x, x) < 1e-12 * scale
        assert kernel_distance(x, x, paired=True) == 0
        assert kernel_distance(x, x) < -1e-3  # taken for independent ones, they are closer than chance
        low, high = interval(frechet_distance, x, x, resamples=5)
        assert -1e-12 * scale < low <= high < 1e-12 * scale
        assert interval(functools.partial(kernel_distance, paired=True), x, x, resamples=5) == (0, 0)


@pytest.mark.parametrize("paired", [False, True])
def test_the_kernel_distance_is_that_of_a_plain_loop(paired, monkeypatch):
    monkeypatch.setattr("vaejax.evaluate.distances._ROWS", 7)  # several blocks of rows
    x, y = sets(19, 19 if paired else 23, 5)
    np.testing.assert_allclose(kernel_distance(x, y, paired), by_loop(x, y, paired), rtol=1e-10)


def test_the_kernel_distance_is_unbiased_at_any_number_of_samples():
    rng = np.random.default_rng(0)
    apart, pairs = [], []
    for _ in range(2000):
        x, noise = rng.normal(size=(2, 10, 4))
        apart.append(kernel_distance(x, noise))
        pairs.append(kernel_distance(x, 0.8 * x + 0.6 * noise, paired=True))  # of the same distribution
    for found in (apart, pairs):
        assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))


def test_the_mean_s_interval_holds_the_mean_19_times_in_20():
    rng = np.random.default_rng(0)
    held = [low <= 3 <= high for low, high in (mean_interval(rng.gamma(3, size=60)) for _ in range(200))]
    assert 0.90 <= np.mean(held) <= 0.98


@pytest.mark.parametrize("distance", [frechet_distance, functools.partial(kernel_distance, paired=True)])
def test_a_distance_s_interval_holds_its_mean_19_times_in_20(distance):
    def draw(rng):
        scale = 2 / np.sqrt(np.arange(1, 9))
        x, noise = rng.normal(size=(2, 100, 8)) * scale
        return x, 0.8 * x + 0.3 * noise + 0.2 * scale

    rng = np.random.default_rng(0)
    truth = np.mean([distance(*draw(rng)) for _ in range(500)])
    intervals = [interval(distance, *draw(rng), resamples=40) for _ in range(100)]
    assert 0.88 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.99
    widths = np.diff(intervals)
    assert 0.1 < np.median(widths) / truth < 1.5  # not by being wide


def test_frames_of_one_clip_are_drawn_together():
    """Frames that are all alike tell no more than one of them: the interval must not be narrower."""
    x, y = sets(50, 50, 4)
    frames_x, frames_y = (np.repeat(z[:, None], 16, axis=1) for z in (x, y))
    one, many, apart = (
        np.ptp(interval(frechet_distance, a, b, resamples=60))
        for a, b in ((x, y), (frames_x, frames_y), (frames_x.reshape(-1, 4), frames_y.reshape(-1, 4)))
    )
    assert many > 0.8 * one and apart < 0.5 * one


def test_intervals_repeat_and_follow_the_seed():
    x, y = sets(30, 40, 5)
    given = functools.partial(interval, frechet_distance, x, y, resamples=10, paired=False)
    assert given(seed=1) == given(seed=1) != given(seed=2)
    assert mean_interval(x[:, 0], seed=1) == mean_interval(x[:, 0], seed=1) != mean_interval(x[:, 0], seed=2)


def test_infinite_scores_have_an_infinite_mean_and_one_score_no_interval():
    assert mean_interval(np.full(5, np.inf)) == (np.inf, np.inf)
    assert np.isnan(mean_interval(np.ones(1))).all()


def test_what_has_no_distance_is_told_in_one_line():
    x, y = sets(10, 12, 4)
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(InputError, match=r"\(1, 4\).*at least 2"):
            distance(x[:1], y)
        with pytest.raises(InputError, match=r"\(10, 4\) and \(12, 3\)"):
            distance(x, y[:, :3])
        with pytest.raises(InputError, match="1 of 10 samples are not finite"):
            distance(np.where(np.arange(10)[:, None] == 3, np.nan, x), y)
    with pytest.raises(InputError, match="paired features of 10 and 12 samples"):
        interval(frechet_distance, x, y)
    with pytest.raises(InputError, match="paired features of 10 and 12 samples"):
        kernel_distance(x, y, paired=True)
