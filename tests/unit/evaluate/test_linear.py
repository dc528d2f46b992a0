"""No linear codec of the same latent size is better than ours."""

import numpy as np
import pytest
from skimage import data
from skimage.metrics import peak_signal_noise_ratio
from sklearn import decomposition

from vaejax.evaluate import metrics
from vaejax.evaluate.codecs import linear


def clips(count, length, seed=0):
    """Clips (count, length, 32, 48, 3) that pan over photos."""
    rng = np.random.default_rng(seed)
    photos = [data.astronaut(), data.coffee(), data.rocket()]
    out = np.empty((count, length, 32, 48, 3), np.uint8)
    for clip in out:
        photo = photos[rng.integers(len(photos))]
        y, x = rng.integers(0, 250, 2)
        for t in range(length):
            clip[t] = photo[y + t : y + t + 32, x + 2 * t : x + 2 * t + 48]
    return out


def blocks_of(frames, t0, t1, s):
    """Every block (t1-t0, s, s, 3) of the frames, cut out one at a time, in [-1, 1]."""
    _, _, height, width, _ = frames.shape
    cuts = [
        clip[t0:t1, y : y + s, x : x + s].ravel() / 127.5 - 1
        for clip in frames
        for y in range(0, height, s)
        for x in range(0, width, s)
    ]
    return np.array(cuts)


def test_each_kind_of_block_is_coded_as_by_scikit_learns_pca():
    train, held_out = clips(12, 5), clips(3, 5, seed=1)
    codec = linear.LinearCodec.fit(train, channels=6, spatial=8, temporal=4)
    decoded = codec.reconstruct(held_out)
    for t0, t1 in ((0, 1), (1, 5)):
        pca = decomposition.PCA(6, svd_solver="full").fit(blocks_of(train, t0, t1, 8))
        wanted = pca.inverse_transform(pca.transform(blocks_of(held_out, t0, t1, 8))).clip(-1, 1)
        # Back to the pixels through the same cuts.
        got = blocks_of((decoded + 1) * 127.5, t0, t1, 8)
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_groups_of_frames_share_their_components_wherever_they_stand_in_the_clip():
    train = clips(4, 9)
    codec = linear.LinearCodec.fit(train, channels=6, spatial=4, temporal=4)
    blocks = np.concatenate([blocks_of(train, 1, 5, 4), blocks_of(train, 5, 9, 4)])
    np.testing.assert_allclose(codec.rest.mean, blocks.mean(0), atol=1e-12)
    pca = decomposition.PCA(6, svd_solver="full").fit(blocks)
    overlap = np.abs(np.diag(pca.components_ @ codec.rest.basis))  # up to sign
    np.testing.assert_allclose(overlap, 1, atol=1e-6)


def test_batches_give_the_codec_of_all_samples_at_once():
    train, held_out = clips(9, 5), clips(2, 5, seed=1)
    whole = linear.LinearCodec.fit(train, 6, 4, 4).reconstruct(held_out)
    batches = linear.LinearCodec.fit((train[i : i + 4] for i in (0, 4, 8)), 6, 4, 4).reconstruct(held_out)
    np.testing.assert_allclose(batches, whole, atol=1e-6)


def test_an_image_is_coded_as_the_first_frame_of_a_video():
    codec = linear.LinearCodec.fit(clips(12, 5), 6, 8, 4)
    held_out = clips(3, 5, seed=1)
    np.testing.assert_array_equal(codec.reconstruct(held_out[:, :1]), codec.reconstruct(held_out)[:, :1])


def test_alpha_is_coded_like_a_color():
    """Four channels of which the last is the first again cost a linear codec nothing."""
    frames = clips(6, 5)
    rgba = np.concatenate([frames, frames[..., :1]], -1)
    codec = linear.LinearCodec.fit(rgba, 12, 8, 4)
    found = codec.reconstruct(rgba)
    assert codec.pixel_channels == 4 and found.shape == rgba.shape
    np.testing.assert_allclose(found[..., 3], found[..., 0], atol=1e-6)


def test_as_many_channels_as_numbers_in_a_block_lose_nothing_and_the_score_is_the_ceiling():
    frames = clips(40, 1)
    codec = linear.LinearCodec.fit(frames, channels=2 * 2 * 3, spatial=2, temporal=4)
    np.testing.assert_allclose(codec.reconstruct(frames), frames / 127.5 - 1, atol=1e-6)
    assert linear.psnr_linear(codec, frames) == metrics.PSNR_CEILING


def test_psnr_linear_is_the_mean_over_frames_of_scikit_images_psnr():
    codec = linear.LinearCodec.fit(clips(12, 5), 6, 8, 4)
    held_out = clips(3, 5, seed=1)
    x, y = held_out / 127.5 - 1, codec.reconstruct(held_out).astype(np.float64)
    assert y.min() >= -1 and y.max() <= 1
    assert not np.allclose((y + 1) * 127.5, np.round((y + 1) * 127.5))  # not rounded
    wanted = np.mean(
        [peak_signal_noise_ratio(x[i, t], y[i, t], data_range=2) for i in range(3) for t in range(5)]
    )
    np.testing.assert_allclose(linear.psnr_linear(codec, held_out), wanted, atol=1e-3)


def test_more_channels_code_better():
    train, held_out = clips(12, 5), clips(3, 5, seed=1)
    scores = [linear.psnr_linear(linear.LinearCodec.fit(train, c, 4, 4), held_out) for c in (1, 4, 16)]
    assert scores[0] < scores[1] < scores[2]


@pytest.mark.parametrize(
    ("frames", "told"),
    [
        (np.zeros((1, 4, 32, 48, 3), np.uint8), "4x32x48"),
        (np.zeros((1, 5, 32, 44, 3), np.uint8), "multiples of 8"),
        (np.zeros((1, 5, 32, 48, 3), np.float32), "uint8"),
        (np.zeros((0, 5, 32, 48, 3), np.uint8), "no samples"),
    ],
)
def test_frames_that_do_not_divide_into_blocks_are_told(frames, told):
    with pytest.raises(ValueError, match=told):
        linear.LinearCodec.fit(frames, 6, 8, 4)


def test_a_codec_of_images_says_that_it_cannot_code_a_video():
    codec = linear.LinearCodec.fit(clips(3, 1), 6, 8, 4)
    with pytest.raises(ValueError, match="images"):
        codec.reconstruct(clips(1, 5))
