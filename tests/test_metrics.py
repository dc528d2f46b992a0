"""PSNR and SSIM are what scikit-image says they are, and the spot alarm sees a spot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vaejax.evaluation import metrics


def clips():
    """Two clips (2, 3, 48, 80, 3) uint8 of real photos, and a noisy, tinted copy; noise grows with time."""
    rng = np.random.default_rng(0)
    photos = [data.astronaut(), data.coffee()]
    x = np.stack([[photo[20 + 9 * t :][:48, 100:180] for t in range(3)] for photo in photos])
    strength = np.array([2, 10, 40]).reshape(1, 3, 1, 1, 1)
    noise = rng.normal(size=x.shape) * strength + [0, 6, -4]
    return x, (x + noise).round().clip(0, 255).astype(np.uint8)


def in_range(frames):
    return jnp.asarray(frames / 127.5 - 1, jnp.float32)


def of_every_frame(score, x, y):
    return np.array([[score(a, b) for a, b in zip(p, q, strict=True)] for p, q in zip(x, y, strict=True)])


def skimage_ssim(x, y):
    return structural_similarity(
        x.astype(np.float64),
        y.astype(np.float64),
        data_range=255,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


def test_psnr_is_that_of_the_8_bit_frames():
    x, y = clips()
    wanted = of_every_frame(lambda a, b: peak_signal_noise_ratio(a, b, data_range=255), x, y)
    assert wanted.max() - wanted.min() > 10  # frames differ, so one score for all would not pass
    got = metrics.psnr(in_range(x), in_range(y))
    assert got.shape == (2, 3) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_psnr_of_a_large_frame_keeps_its_digits():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (1, 1, 720, 1280, 3)).astype(np.float32)
    y = x + rng.normal(size=x.shape).astype(np.float32) * 0.01
    wanted = 10 * np.log10(4 / np.mean((x.astype(np.float64) - y) ** 2))
    np.testing.assert_allclose(metrics.psnr(jnp.asarray(x), jnp.asarray(y)), [[wanted]], atol=1e-4)


def test_identical_frames_have_infinite_psnr_and_ssim_one():
    x = in_range(clips()[0])
    assert np.isposinf(metrics.psnr(x, x)).all()
    np.testing.assert_allclose(metrics.ssim(x, x), 1, atol=1e-6)


def test_ssim_is_that_of_the_8_bit_frames():
    x, y = clips()
    wanted = of_every_frame(skimage_ssim, x, y)
    assert wanted.max() - wanted.min() > 0.3
    got = metrics.ssim(in_range(x), in_range(y))
    assert got.shape == (2, 3) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("level", [0, 128, 250])
def test_ssim_keeps_its_digits_on_flat_frames(level):
    """Where variances are far smaller than squared means, and float32 would cancel."""
    rng = np.random.default_rng(0)
    x, y = level + rng.integers(0, 6, (2, 1, 1, 40, 40, 3))
    np.testing.assert_allclose(
        metrics.ssim(in_range(x), in_range(y)), of_every_frame(skimage_ssim, x, y), atol=1e-5
    )


def test_ssim_of_the_smallest_frame_is_a_number_and_of_a_smaller_one_is_not():
    x, y = (frames[:, :, :11, :11] for frames in clips())
    np.testing.assert_allclose(
        metrics.ssim(in_range(x), in_range(y)), of_every_frame(skimage_ssim, x, y), atol=1e-5
    )
    assert np.isnan(metrics.ssim(in_range(x[..., :10, :]), in_range(y[..., :10, :]))).all()


def test_bfloat16_frames_are_scored_in_float32():
    x, y = (in_range(frames).astype(jnp.bfloat16) for frames in clips())
    for score in (metrics.psnr, metrics.ssim):
        np.testing.assert_array_equal(score(x, y), score(x.astype(jnp.float32), y.astype(jnp.float32)))


def test_scores_under_a_sharded_jit_are_those_of_one_device():
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    batch = [np.tile(in_range(frames), (jax.device_count(), 1, 1, 1, 1)) for frames in clips()]
    for score in (metrics.psnr, metrics.ssim):
        sharded = jax.jit(score)(*jax.device_put(batch, sharding))
        np.testing.assert_allclose(sharded, score(*map(jnp.asarray, batch)), rtol=1e-5)


def test_activation_spread_is_the_largest_norm_over_the_median_one():
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8, 16)).astype(np.float32)
    norms = np.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(metrics.activation_spread(x), norms.max() / np.median(norms), rtol=1e-5)
    x[1, 2, 3, 4] *= 100  # one spot in 384 pixels
    assert metrics.activation_spread(x) > 50
    np.testing.assert_allclose(metrics.activation_spread(7 * x), metrics.activation_spread(x), rtol=1e-5)
