"""Statistics of latents are NumPy's and SciPy's, and stay with a checkpoint that Orbax still reads."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from scipy import fft, integrate, stats

from vaejax.errors import InputError
from vaejax.evaluate import latent_metrics as latents
from vaejax.models.posterior import DiagonalGaussian
from vaejax.rundir import latent_statistics
from vaejax.rundir.checkpoint import Checkpoints
from vaejax.runtime import mesh as sharding
from vaejax.train import state as train_state


def mixed(count=6, t=2, h=8, w=12, seed=0):
    """Latents (count, t, h, w, 4): correlated channels, off zero, smooth in space to different degrees."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(count, t, h, w, 4))
    for axis in (2, 3):
        z[..., :2] = z[..., :2] + np.roll(z[..., :2], 1, axis) + np.roll(z[..., :2], 2, axis)
    mixing = rng.normal(size=(4, 4))
    return (z @ mixing + [3, 0, -1, 10]).astype(np.float32)


def of(*batches):
    moments = latents.LatentMoments()
    for batch in batches:
        moments.add(batch)
    return moments.statistics()


def test_mean_std_spectrum_and_peak_are_numpys_whatever_the_batches():
    z = mixed()
    pixels = z.reshape(-1, 4).astype(np.float64)
    for found in (of(z), of(z[:1], z[1:5], z[5:])):
        np.testing.assert_allclose(found["mean"], pixels.mean(0), rtol=1e-10)
        np.testing.assert_allclose(found["std"], pixels.std(0), rtol=1e-10)
        spectrum = np.linalg.svd(pixels - pixels.mean(0), compute_uv=False) ** 2 / len(pixels)
        np.testing.assert_allclose(found["spectrum"], spectrum, rtol=1e-8)
        np.testing.assert_allclose(
            found["effective_rank"], np.exp(stats.entropy(spectrum / spectrum.sum())), rtol=1e-8
        )
        peak = np.abs(pixels - pixels.mean(0)).max(0) / pixels.std(0)
        np.testing.assert_allclose(found["peak"], peak, rtol=1e-8)
        assert found["samples"] == 6 and found["dead"] == found["exploding"] == []


def test_sums_of_many_latents_far_from_zero_keep_their_digits():
    z = (1000 + np.random.default_rng(0).normal(size=(300, 1, 16, 16, 2))).astype(np.float32)
    np.testing.assert_allclose(
        of(*np.split(z, 50))["std"], z.astype(np.longdouble).std((0, 1, 2, 3)), rtol=1e-7
    )


def test_sec_is_the_share_of_high_frequencies_of_scipys_cosine_transform():
    z = mixed()
    normalised = (z - z.mean((0, 1, 2, 3))) / z.std((0, 1, 2, 3), dtype=np.float64)
    energy = fft.dctn(normalised, axes=(2, 3), norm="ortho") ** 2
    u, v = np.ogrid[:8, :12]
    for rho in (0.25, 0.5, 0.75):
        high = energy[:, :, u + v > rho * (8 + 12 - 2)].sum((0, 1, 2))
        wanted = np.mean(high / energy.sum((0, 1, 2, 3)))
        np.testing.assert_allclose(of(z[:2], z[2:])["sec"][f"{rho:g}"], wanted, rtol=1e-5)


def test_sec_rises_from_smooth_latents_to_noise_and_does_not_see_scale_or_offset():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 1, 16, 16, 3))
    smooth = sum(np.roll(noise, (i, j), (2, 3)) for i in range(4) for j in range(4))
    share = [of(z)["sec"]["0.5"] for z in (smooth, smooth + noise, noise)]
    assert share[0] < share[1] < share[2]
    u, v = np.ogrid[:16, :16]
    np.testing.assert_allclose(share[2], (u + v > 15).mean(), atol=0.02)
    np.testing.assert_allclose(of(noise * [1, 50, 0.1] + 7)["sec"]["0.5"], share[2], rtol=1e-6)


def test_a_channel_that_carries_nothing_is_dead_and_a_huge_one_explodes():
    z = np.random.default_rng(0).normal(size=(4, 1, 8, 8, 6))
    found = of(z * [1, 2, 1e-3, 0, 30, 1])
    assert found["dead"] == [2, 3] and found["exploding"] == [4]
    assert 1 < found["effective_rank"] < 2
    assert of(z)["effective_rank"] > 5.5
    z[0, 0, 0, 0, 1] = np.inf
    with np.errstate(invalid="ignore"):
        assert of(z)["exploding"] == [1]


def test_constant_latents_have_statistics_too():
    found = of(np.ones((2, 1, 4, 4, 3)))
    assert found["dead"] == [0, 1, 2] and found["effective_rank"] == 0 and found["sec"]["0.5"] == 0


def test_kl_a_channel_is_the_posteriors():
    rng = np.random.default_rng(0)
    mean, log_variance = mixed(), rng.uniform(-9, 1, (6, 2, 8, 12, 4)).astype(np.float32)
    moments = latents.LatentMoments()
    moments.add(mean[:4], log_variance[:4])
    moments.add(mean[4:], log_variance[4:])
    wanted = DiagonalGaussian(jnp.asarray(mean), jnp.asarray(log_variance)).kl().mean((0, 1, 2, 3))
    np.testing.assert_allclose(moments.statistics()["kl"], wanted, rtol=1e-5)


def test_latents_of_several_sizes_are_counted_by_their_pixels():
    image, clip = mixed(3, t=1), mixed(2, t=3, h=4, w=4, seed=1)
    pixels = np.concatenate([z.reshape(-1, 4) for z in (image, clip)])
    np.testing.assert_allclose(of(image, clip)["std"], pixels.std(0, dtype=np.float64), rtol=1e-6)


def test_pooled_statistics_are_those_of_buckets_that_count_the_same():
    image, clip = mixed(3, t=1), mixed(40, t=3, seed=1) * 2
    mean, std = latents.pooled([of(image), of(clip)])
    a, b = (z.reshape(-1, 4)[:288].astype(np.float64) for z in (image, clip))  # as many of both
    np.testing.assert_allclose(mean, (of(image)["mean"] + np.array(of(clip)["mean"])) / 2, rtol=1e-9)
    mean, std = latents.pooled([of(a.reshape(3, 1, 8, 12, 4)), of(b.reshape(3, 1, 8, 12, 4))])
    np.testing.assert_allclose(std, np.concatenate([a, b]).std(0), rtol=1e-9)


def test_viv_is_what_flow_matching_of_a_gaussian_class_cannot_learn():
    """The least loss at time t of a Gaussian of variance λ is λ / ((1 - t)² + t² λ); VIV is its integral."""
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.2, 3, 8)
    z = np.concatenate([rng.normal(size=(40, 8)) * scales + 5 * label for label in range(3)])
    labels = np.repeat(["cat", "dog", "fox"], 40)
    normalised = (z - z.mean()) / z.std()  # one channel
    wanted = 0.0
    for label in np.unique(labels):
        variances = np.linalg.eigvalsh(np.cov(normalised[labels == label].T))
        for v in variances:
            wanted += integrate.quad(lambda t, v=v: v / ((1 - t) ** 2 + t**2 * v), 0, 1)[0] / 3
    got = latents.viv(z.reshape(120, 1, 2, 4, 1), labels)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    # Classes that lie apart say where a path leads: without them it is less sure.
    assert latents.viv(z.reshape(120, 1, 2, 4, 1), ["all"] * 120) > got
    # Scale and offset of a channel do not count.
    np.testing.assert_allclose(latents.viv(7 * z.reshape(120, 1, 2, 4, 1) - 3, labels), got, rtol=1e-9)


def test_viv_of_more_dimensions_than_samples_leaves_out_single_ones():
    z, labels = mixed(7), [0, 0, 0, 1, 1, 1, 2]
    normalised = (z - z.mean((0, 1, 2, 3))) / z.std((0, 1, 2, 3), dtype=np.float64)
    roots = [
        np.sqrt(np.linalg.eigvalsh(np.cov(normalised[i].reshape(3, -1).T)).clip(0))
        for i in (slice(3), slice(3, 6))
    ]
    np.testing.assert_allclose(
        latents.viv(z, labels), np.pi / 2 * np.mean([r.sum() for r in roots]), rtol=1e-4
    )
    assert np.isnan(latents.viv(z, range(7)))


def test_equivariance_errors_are_those_of_the_transformed_clip():
    """Of a codec that enlarges every pixel: turning commutes with it, halving does for smooth latents."""

    def decode(z):
        return np.asarray(z)[..., :3].repeat(2, 2).repeat(2, 3)

    rng = np.random.default_rng(0)
    z = rng.uniform(-1, 1, (2, 1, 6, 8, 3)).astype(np.float32)
    exact = latents.equivariance(decode, z, decode(z))
    np.testing.assert_allclose(exact["equivariance_rotation"], 0, atol=1e-5)
    assert (exact["equivariance_scale"] > 1).all()
    flat = np.full_like(z, 0.3)
    np.testing.assert_allclose(
        latents.equivariance(decode, flat, decode(flat))["equivariance_scale"], 0, atol=1e-4
    )
    other = decode(z)
    other[1] = np.clip(other[1] + 2 / 255 * 5, -2, 2)  # five levels brighter
    np.testing.assert_allclose(
        latents.equivariance(decode, z, other)["equivariance_rotation"], [0, 5], atol=1e-4
    )
    # A decoder that tells rows from columns is caught.
    tilted = latents.equivariance(
        lambda z: decode(z) * np.linspace(0, 1, 2 * z.shape[2])[:, None, None], z, decode(z)
    )
    assert (tilted["equivariance_rotation"] > 10).all()
    assert set(latents.equivariance(decode, z[:, :, :1], decode(z)[:, :, :2])) == {"equivariance_rotation"}


@pytest.fixture
def run(tmp_path):
    """A run with a checkpoint at step 3, and how to restore it."""
    mesh = sharding.make_mesh(ConfigDict({"data": 0, "fsdp": 1, "space": 1}))
    params = {"autoencoder": {"kernel": jnp.arange(64.0).reshape(8, 8)}}
    state = train_state.TrainState(jnp.int32(3), params, params, optax.adam(1e-3).init(params), {})
    state = jax.device_put(state, sharding.state_shardings(mesh, state))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, train_state.to_items(state), {"image_16x16": 7}, {"seed": 1}, {})
    return tmp_path, state


def test_statistics_stay_with_a_checkpoint_that_orbax_still_reads(run):
    workdir, state = run
    assert latent_statistics.load(workdir, 3) is None
    statistics = of(mixed()) | {"outlier": float("inf")}
    latent_statistics.store(workdir, 3, statistics)
    assert latent_statistics.load(workdir, 3) == statistics | {"outlier": "Infinity"}
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.latest() == 3 and checkpoints.config(3) == {"seed": 1}
        items, positions = checkpoints.restore(3, train_state.to_items(state))
        restored = train_state.from_items(state, items)
        jax.tree.map(np.testing.assert_array_equal, restored, state)
        assert positions == {"image_16x16": 7}
        checkpoints.save(
            4, train_state.to_items(state), {}, {}, {}
        )  # keeps one: the statistics go with their checkpoint
    assert not (workdir / "checkpoints" / "3").exists() and latent_statistics.load(workdir, 3) is None
    assert latent_statistics.load(workdir, 4) is None


def test_what_cannot_be_kept_or_read_is_told_in_one_line(run):
    workdir, _ = run
    with pytest.raises(InputError, match=r"checkpoints/9/latents.json: No such file"):
        latent_statistics.store(workdir, 9, {})
    latent_statistics.store(workdir, 3, {"mean": [0.5]})
    path = workdir / "checkpoints" / "3" / "latents.json"
    assert [p.name for p in path.parent.glob("latents*")] == ["latents.json"]
    path.write_text(path.read_text()[:-4])
    with pytest.raises(InputError, match="damaged") as raised:
        latent_statistics.load(workdir, 3)
    assert "\n" not in str(raised.value)
