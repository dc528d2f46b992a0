import jax
import numpy as np
import pytest
from scipy import fft

from tests.support.models import clip
from vaejax.models import resample
from vaejax.models.dct_init import low_frequencies


@pytest.mark.parametrize("kind", ["haar", "patch"])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_stem_keeps_the_energy_and_is_undone_exactly(kind, factor):
    x = clip(2, 16, 24)
    y = resample.stem(x, factor, kind)
    assert y.shape == (1, 2, 16 // factor, 24 // factor, 3 * factor**2)
    np.testing.assert_allclose(np.sum(np.square(y)), np.sum(np.square(x)), rtol=1e-5)
    np.testing.assert_allclose(resample.unstem(y, factor, kind), x, atol=1e-6)


def test_the_haar_stem_is_the_haar_transform():
    x = np.asarray(clip(1))[0, 0, :2, :2, 0]
    a, b, c, d = x.ravel()
    bands = np.array([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d]) / 2
    y = resample.stem(clip(1), 2, "haar")[0, 0, 0, 0].reshape(4, 3)[:, 0]
    np.testing.assert_allclose(y, bands, atol=1e-6)


@pytest.mark.parametrize(("channels", "features"), [(6, 6), (6, 3), (6, 12), (4, 6)])
def test_averaging_channels_keeps_the_mean(channels, features):
    x = jax.random.normal(jax.random.key(0), (2, channels))
    y = resample.average_channels(x, features)
    assert y.shape == (2, features)
    np.testing.assert_allclose(y.mean(-1), x.mean(-1), atol=1e-6)


def test_the_shortcuts_are_average_pooling_and_nearest_neighbour():
    x = np.asarray(clip(1, 4, 4))
    pooled = resample.average_channels(resample.space_to_depth(x, 2), 3)
    np.testing.assert_allclose(pooled, x.reshape(1, 1, 2, 2, 2, 2, 3).mean((3, 5)), atol=1e-6)
    enlarged = resample.depth_to_space(resample.average_channels(x, 12), 2)
    np.testing.assert_array_equal(enlarged, x.repeat(2, axis=2).repeat(2, axis=3))


def test_depth_to_space_undoes_space_to_depth():
    x = clip(2, 16, 24)
    np.testing.assert_array_equal(resample.depth_to_space(resample.space_to_depth(x, 4), 4), x)


def test_the_untrained_basis_is_orthonormal_and_that_of_scipy():
    basis = low_frequencies(16, 4, 8)
    flat = basis.reshape(16, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(16), atol=1e-12)
    for function in basis:  # each is one coefficient of a separable cosine transform, in one colour axis
        coefficients = fft.dctn(function, axes=(0, 1, 2), norm="ortho")
        energy = np.square(coefficients).sum(-1)
        assert np.isclose(energy.max(), 1) and np.isclose(energy.sum(), 1)
