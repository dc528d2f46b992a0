"""PSNR and SSIM are what scikit-image says they are; spots, flicker and seams are seen, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import ndimage
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vaejax.evaluate import metrics


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


def test_psnr_is_also_that_of_rgb_and_of_each_further_channel():
    x, y = clips()
    assert metrics.psnr_of_parts(in_range(x), in_range(y)) == {}
    x, y = (np.concatenate([one, other[..., 1:]], -1) for one, other in ((x, y), (y, x)))  # five channels
    for c, parts in (
        (4, {"psnr_rgb": [0, 1, 2], "psnr_alpha": [3]}),
        (5, {"psnr_rgb": [0, 1, 2], "psnr_channel_3": [3], "psnr_channel_4": [4]}),
    ):
        found = metrics.psnr_of_parts(in_range(x[..., :c]), in_range(y[..., :c]))
        assert found.keys() == parts.keys()
        for name, channels in parts.items():
            wanted = of_every_frame(peak_signal_noise_ratio, x[..., channels], y[..., channels])
            np.testing.assert_allclose(found[name], wanted, atol=1e-4)


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


def test_pooled_psnr_is_that_of_the_whole_set_as_one_picture():
    x, y = clips()
    errors = metrics.squared_error(in_range(x), in_range(y))
    wanted = peak_signal_noise_ratio(x, y, data_range=255)
    np.testing.assert_allclose(metrics.psnr_pooled(errors), wanted, atol=1e-4)
    parts = [metrics.squared_error(in_range(x[i : i + 1]), in_range(y[i : i + 1])) for i in range(2)]
    np.testing.assert_allclose(metrics.psnr_pooled(np.concatenate(parts)), wanted, atol=1e-4)
    assert wanted < np.mean(metrics.psnr(in_range(x), in_range(y))) - 3
    assert metrics.psnr_pooled(metrics.squared_error(in_range(x), in_range(x))) == np.inf


def test_pooled_psnr_of_a_million_frames_keeps_its_digits():
    errors = np.random.default_rng(0).uniform(0.5, 1.5, (1000, 1000)).astype(np.float32) * 1e-3
    wanted = 10 * np.log10(4 / errors.astype(np.longdouble).mean())
    np.testing.assert_allclose(metrics.psnr_pooled(errors), float(wanted), rtol=1e-12)


def test_flicker_is_the_error_of_frame_differences_in_8_bit_levels():
    x, y = clips()
    a, b = x.astype(float), y.astype(float)
    wanted = np.abs((a[:, 1:] - a[:, :-1]) - (b[:, 1:] - b[:, :-1])).mean((1, 2, 3, 4))
    np.testing.assert_allclose(metrics.flicker(in_range(x), in_range(y)), wanted, rtol=1e-5)
    tint = np.clip(x[:, :1] + np.array([9, 0, -5]), 0, 255) - x[:, :1]  # wrong, but the same at all times
    still = in_range(x[:, :1].repeat(3, 1) + tint)
    np.testing.assert_allclose(metrics.flicker(in_range(x[:, :1].repeat(3, 1)), still), 0, atol=1e-5)
    assert np.isnan(metrics.flicker(in_range(x[:, :1]), in_range(y[:, :1]))).all()


def grey(*boxes, size=64):
    """A grey frame (1, 1, size, size, 3), and a copy with coloured boxes (y, x, height, width)."""
    x = np.full((1, 1, size, size, 3), 110, np.uint8)
    y = x.copy()
    for top, left, height, width in boxes:
        y[0, 0, top : top + height, left : left + width, 2] = 230
    return in_range(x), in_range(y)


@pytest.mark.parametrize("width", [1, 3, 8, 16])
def test_a_coloured_spot_is_counted_pixel_for_pixel_wherever_it_is(width):
    for top, left in ((24, 30), (0, 0), (64 - width, 20)):
        share = metrics.spots(*grey((top, left, width, width)))
        np.testing.assert_allclose(share, [[width**2 / 64**2]], rtol=1e-6)


def test_two_spots_are_two_and_a_faint_one_is_none():
    np.testing.assert_allclose(metrics.spots(*grey((10, 10, 3, 3), (40, 45, 3, 3))), [[18 / 64**2]])
    x, y = grey((10, 10, 3, 3))
    assert metrics.spots(x, x + 0.2 * (y - x)) == 0


def test_errors_along_an_edge_all_over_or_of_texture_are_no_spots():
    x, _ = grey()
    slope = np.linspace(0, 1, 64, dtype=np.float32)[:, None, None]
    assert metrics.spots(x, x + slope) == 0
    for edge in ((0, 30, 64, 2), (30, 0, 1, 64), (63, 0, 1, 64)):
        assert metrics.spots(*grey(edge)) == 0
    diagonal = np.eye(64, dtype=np.float32)[:, :, None]
    assert metrics.spots(x, x + diagonal) <= 2 * 16 / 64**2  # its ends, in two corners
    circle = np.abs(np.hypot(*(np.mgrid[:64, :64] - 32)) - 20) < 1.5
    assert metrics.spots(x, x + circle[:, :, None].astype(np.float32)) == 0
    noise = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    assert metrics.spots(x, x + 0.3 * noise) == 0


def test_what_a_codec_blurs_in_a_photo_are_no_spots_and_a_spot_in_it_is_one():
    photo = data.astronaut()[None, None, :256, :256]
    blurred = ndimage.gaussian_filter(photo.astype(float), (0, 0, 2, 2, 0))
    x, y = in_range(photo), in_range(blurred)
    assert np.abs(x - y).max() > 10 * metrics.SPOT_FLOOR / 3  # edges are far above the floor
    before = metrics.spots(x, y)
    assert before < 2e-3
    y = y.at[0, 0, 40:45, 200:205].set(jnp.array([1.0, -1, 1]))
    np.testing.assert_allclose(metrics.spots(x, y) - before, 25 / 256**2, rtol=0.1)


def test_spots_are_those_of_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    x, y = (rng.uniform(-1, 1, (1, 1, 34, 40, 3)).astype(np.float32) ** 9 for _ in range(2))
    error = np.abs(x - y).max(-1)[0, 0]
    count = 0
    for i, j in np.ndindex(error.shape):
        alone = False
        for reach in metrics.SPOT_REACH:
            ring = [
                error[a, b]
                for a in range(max(0, i - reach), min(34, i + reach + 1))
                for b in range(max(0, j - reach), min(40, j + reach + 1))
                if max(abs(a - i), abs(b - j)) == reach
            ]
            alone |= error[i, j] > metrics.SPOT_RATIO * max(ring)
        count += alone and error[i, j] > metrics.SPOT_FLOOR
    np.testing.assert_allclose(metrics.spots(x, y), [[count / error.size]], rtol=1e-6)


def test_a_frame_too_small_for_rings_has_no_share_of_spots():
    assert np.isnan(metrics.spots(*grey(size=15))).all()
    assert metrics.spots(*grey((5, 5, 2, 2), size=16)) == 4 / 256


def test_seam_error_is_the_change_at_the_seams_and_elsewhere():
    x, _ = clips()
    parts = x.astype(float)
    parts[:, 1, :, 39:41] += 20
    parts[:, :, :10] += 3
    at = np.zeros((1, 1, 80), bool)
    at[..., 38:42] = True
    change = np.abs(parts - x).mean(-1)
    where = np.broadcast_to(at, change.shape[1:])
    seam, elsewhere = metrics.seam_error(in_range(x), in_range(parts), at)
    np.testing.assert_allclose(seam, change[:, where].mean(1), rtol=1e-5)
    np.testing.assert_allclose(elsewhere, change[:, ~where].mean(1), rtol=1e-5)
    assert (seam > 2 * elsewhere).all()
    seam, elsewhere = metrics.seam_error(in_range(x), in_range(x), at)
    assert not seam.any() and not elsewhere.any()
