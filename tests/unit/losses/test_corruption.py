"""The decoder sees noise, a token or zeros in place of some of the latent, by the formulas of the papers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vaejax.losses import corruption
from vaejax.losses.corruption import Corruption

FRAMES = pytest.mark.parametrize("t", [1, 5])
TOKEN = jnp.arange(4.0) + 100


def latents(b, t, h=6, w=8, c=4):
    return jnp.asarray(np.random.default_rng(0).normal(2, [1, 2, 3, 4][:c], (b, t, h, w, c)), jnp.float32)


@FRAMES
def test_without_probabilities_the_latent_passes_unchanged(t):
    z = latents(2, t)
    assert Corruption()(jax.random.key(0), z) is z and not Corruption().hides


def test_masking_keeps_a_prefix_of_the_channels_of_some_samples():
    kept = corruption.masked(jax.random.key(0), jnp.ones((400, 1, 1, 1, 8)), 0.5)[:, 0, 0, 0]
    counts = np.asarray(kept.sum(-1)).astype(int)
    np.testing.assert_array_equal(kept, np.arange(8) < counts[:, None])
    assert abs((counts < 8).mean() - 0.5) < 0.1 and set(counts) == set(range(1, 9))


@FRAMES
def test_noise_is_interpolated_with_a_share_of_its_own_per_sample(t):
    """Two scales of the noise, with the same draws, give both unknowns of (1 - u) z + u n."""
    z, key = latents(64, t), jax.random.key(1)
    one, three = (np.asarray(corruption.noised(key, z, 0.8, std), np.float64) for std in (1.0, 3.0))
    noise = (three - one) / 2  # u times the channel's standard deviation times a normal number
    clean = one - noise
    u = 1 - (clean / np.asarray(z)).mean((1, 2, 3, 4))
    np.testing.assert_allclose(clean, (1 - u)[:, None, None, None, None] * np.asarray(z), atol=2e-5)
    assert u.min() >= -1e-6 and u.max() <= 0.8 and abs(u.mean() - 0.4) < 0.1
    normal = noise / u[:, None, None, None, None] / np.asarray(z).std((0, 1, 2, 3))
    assert np.abs(normal.mean((0, 1, 2, 3))).max() < 0.05
    np.testing.assert_allclose(normal.std((0, 1, 2, 3)), 1, atol=0.05)


@FRAMES
@pytest.mark.parametrize("side", [1, 2])
def test_blocks_are_hidden_whole_in_some_samples(t, side):
    hidden = np.asarray(corruption.hidden_blocks(jax.random.key(2), (600, t, 6, 8), 0.3, side))
    for axis in (1, 2, 3):
        first = np.repeat(np.take(hidden, range(0, hidden.shape[axis], side), axis), side, axis)
        np.testing.assert_array_equal(hidden, np.take(first, range(hidden.shape[axis]), axis))
    shares = hidden.mean((1, 2, 3))
    assert abs((shares > 0).mean() - 0.3) < 0.06
    assert abs(shares[shares > 0].mean() - np.mean(corruption.RATIOS)) < 0.05
    assert shares.max() > 0.6 and shares[shares > 0].min() < 0.4


def test_the_future_of_some_clips_is_hidden_but_never_their_first_frame():
    hidden = np.asarray(corruption.hidden_future(jax.random.key(3), 900, 5, 0.5))
    counts = hidden.sum(1)
    np.testing.assert_array_equal(hidden, np.arange(5) >= 5 - counts[:, None])
    assert abs((counts == 0).mean() - 0.5) < 0.06
    for count in range(1, 5):
        assert abs((counts == count).mean() - 0.5 / 4) < 0.05


@FRAMES
def test_what_is_hidden_is_the_token_and_the_rest_stays(t):
    z = latents(40, t)
    for settings in (Corruption(blocks=0.6, block=2), Corruption(future=0.6)):
        seen = settings(jax.random.key(4), z, TOKEN)
        hidden = (seen == TOKEN).all(-1)
        np.testing.assert_array_equal(seen, jnp.where(hidden[..., None], TOKEN, z))
        assert hidden.any() == (settings.blocks > 0 or t > 1)
        with pytest.raises(ValueError, match="need a token"):
            dataclasses.replace(settings, blocks=0.5)(jax.random.key(4), z)
