"""The codec gives what the autoencoder gives of the whole clip, however the clip arrives or is cut."""

import pathlib
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data

from tests.support.frames import pans, photos
from tests.support.models import randomized
from vaejax.codec import network
from vaejax.codec.codec import Codec
from vaejax.codec.load import TrainedVAE, fingerprint
from vaejax.codec.stream import StreamEncoder
from vaejax.errors import InputError

LENGTHS = [
    *((n, film) for n in (1, 2, 81) for film in (False, True) if n < 3 or not film),
    *(pytest.param(n, False, marks=pytest.mark.variants) for n in (3, 5, 16, 17, 31, 33)),
]
MEAN, STD = np.float32([0.5, -1.0, 0.0, 2.0]), np.float32([0.5, 2.0, 1.0, 0.1])


def opened(statistics=True, **options):
    """The codec of a random autoencoder, and the autoencoder and its parameters."""
    how = {key: options.pop(key) for key in ("tile", "overlap", "devices") if key in options}
    model, params = randomized(**options)
    known = (MEAN, STD) if statistics else (None, None)
    trained = TrainedVAE("run", model.architecture, params, *known, 7, fingerprint(params))
    return Codec(trained, **how), model, params


@cache
def whole(method, **options):
    model, params = randomized(**options)
    return jax.jit(partial(model.apply, {"params": params}, method=method))


def filled(frames):
    """(B, T, H, W, 3) uint8 in [-1, 1], filled up with copies of the last frame and of the edges by NumPy."""
    _, t, h, w, _ = frames.shape
    room = ((0, 0), (0, -(t - 1) % 4), (0, -h % 8), (0, -w % 8), (0, 0))
    return np.pad(np.float32(frames) / 127.5 - 1, room, mode="edge")


def split(x, rng, largest=9):
    """Parts of any lengths, some of them empty."""
    at = 0
    while at < x.shape[1]:
        n = int(rng.integers(0, largest))
        yield x[:, at : at + n]
        at += n


def streamed(stream, x, seed):
    parts = [stream.push(part) for part in split(x, np.random.default_rng(seed))]
    return np.concatenate([*parts, stream.flush()], axis=1)


@pytest.mark.parametrize(("length", "film"), LENGTHS)
def test_a_clip_in_parts_is_the_whole_clip(length, film):
    options = {"film": True} if film else {}
    codec, *_ = opened(**options)
    frames = pans(2, length, 21, 30)
    posterior = whole("encode", **options)(filled(frames))
    wanted = (posterior.mean - MEAN) / STD
    pixels = whole("decode", **options)(posterior.mean)[:, :length, :21, :30]
    exact = 1e-5 * np.abs(pixels).max()  # random parameters give pixels far beyond [-1, 1]
    pixels = np.clip(pixels, -1, 1)
    for seed in range(3):
        latents = streamed(codec.stream_encoder(), frames, seed)
        np.testing.assert_allclose(latents, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))
        decoder = codec.stream_decoder((length, 21, 30), dtype="float32")
        again = streamed(decoder, latents, seed)
        assert again.shape == frames.shape and decoder.frames == length
        np.testing.assert_allclose(again, pixels, atol=exact)
    latent = codec.encode(frames)
    np.testing.assert_allclose(latent, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))
    np.testing.assert_allclose(codec.decode(latent, dtype="float32"), pixels, atol=exact)


def test_latents_come_as_soon_as_they_exist():
    codec, *_ = opened()
    encoder, decoder = codec.stream_encoder(), codec.stream_decoder()
    frames = pans(1, 12, 16, 16)[0]
    there = [encoder.push(frames[t : t + 1]) for t in range(12)]
    assert [len(one) for one in there] == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    assert [len(decoder.push(one)) for one in there] == [1, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0]
    assert len(encoder.flush()) == 1 and encoder.frames == 12
    with pytest.raises(ValueError, match="flushed"):
        encoder.push(frames)


def test_frames_come_back_as_they_went_in():
    codec, *_ = opened()
    clip = pans(1, 6, 17, 40)
    for frames in (clip, clip[0], clip[0, 0]):
        latent = codec.encode(frames)
        assert latent.values.ndim == frames.ndim and latent.shape[-3:] == (3, 5, 4)
        decoded = codec.decode(latent)
        assert isinstance(decoded, np.ndarray) and decoded.dtype == np.uint8 and decoded.shape == frames.shape
        real = codec.decode(codec.encode(np.float32(frames) / 127.5 - 1))
        assert real.dtype == np.float32
        assert np.abs((real + 1) * 127.5 - decoded).max() < 0.51
        copy = np.array(latent)
        copy[:], decoded[:] = 0, decoded.copy()  # both are the caller's to change
        assert np.abs(latent.values).max() > 0
        on_device = codec.encode(jnp.asarray(frames))
        assert isinstance(on_device.values, jax.Array)
        np.testing.assert_array_equal(codec.decode(on_device), decoded)
        assert isinstance(codec.decode(on_device), jax.Array)
    # An image is a clip of one frame, and a bare array is as long and as large as it can be.
    np.testing.assert_array_equal(codec.decode(np.asarray(latent)), codec.decode(np.asarray(latent)[None])[0])
    assert codec.decode(np.asarray(codec.encode(clip))).shape == (1, 9, 24, 40, 3)


def test_a_latent_is_a_tree_of_its_values():
    codec, *_ = opened()
    latent = codec.encode(pans(1, 5, 16, 16)[0])
    assert repr(latent).startswith("Latent(2x2x2x4 normalized, of 5x16x16 uint8 frames, model ")
    np.testing.assert_array_equal(jnp.asarray(latent), latent.values)
    doubled = jax.tree.map(lambda x: 2 * x, latent)
    np.testing.assert_array_equal(doubled.values, 2 * latent.values)
    assert doubled.frames == 5 and doubled.model == codec.fingerprint


def test_samples_are_drawn_from_the_posterior_whatever_the_parts():
    codec, *_ = opened()
    frames = np.repeat(pans(1, 17, 16, 24), 100, axis=0)
    posterior = whole("encode")(filled(frames[:1]))
    latent = codec.encode(frames, key=jax.random.key(3), normalize=False)
    noise = (latent.values - posterior.mean) / np.exp(0.5 * posterior.log_variance)
    count = np.sqrt(noise.size)
    assert abs(noise.mean()) < 4 / count and abs(noise.std() - 1) < 4 / count
    for a in range(1, noise.shape[1]):  # no two frames and no two clips share their noise
        assert abs(np.corrcoef(noise[:, 0].ravel(), noise[:, a].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.4
    parts = streamed(codec.stream_encoder(key=jax.random.key(3), normalize=False), frames, 0)
    np.testing.assert_allclose(parts, latent.values, atol=1e-4)
    large = pans(1, 1, 96, 128)
    samples = [opened(**how)[0].encode(large, key=jax.random.key(3)).values for how in ({}, {"tile": 88})]
    np.testing.assert_allclose(*samples, atol=1e-3)
    other = codec.encode(frames, key=jax.random.key(4), normalize=False)
    assert (
        np.abs(other.values - latent.values).mean()
        > 0.5 * np.abs(np.exp(0.5 * posterior.log_variance)).mean()
    )


@pytest.mark.parametrize("options", [{"decoder_blocks": 2}, {"spatial_factor": 16}])
def test_reach_is_what_a_pixel_depends_on(options):
    """One latent pixel, and one pixel, are changed; nothing farther than the reach notices, its edge does."""
    codec, model, params = opened(**options)
    s, n, at = codec.architecture.spatial_factor, 41, 20
    z = np.zeros((1, 1, n, n, 4), np.float32)
    there = z.copy()
    there[:, :, at, at] = 5
    decode, encode = (
        jax.jit(partial(model.apply, {"params": params}, method=m)) for m in ("decode", "encode")
    )
    changed = np.abs(np.asarray(decode(there) - decode(z))).max((0, 1, 4)) > 0
    far = np.abs(np.argwhere(changed) // s - at).max()
    assert codec.architecture.decoder.decoder_reach - 1 <= far <= codec.architecture.decoder.decoder_reach

    x = np.zeros((1, 1, n * s, n * s, 3), np.float32)
    far = 0
    for corner in (0, s - 1):
        there = x.copy()
        there[:, :, at * s + corner, at * s + corner] = 5
        changed = np.abs(np.asarray(encode(there).mean - encode(x).mean)).max((0, 1, 4)) > 0
        far = max(far, np.abs(np.argwhere(changed) - at).max())
    assert codec.architecture.encoder.encoder_reach - 1 <= far <= codec.architecture.encoder.encoder_reach


def test_tiles_are_the_whole_frame():
    frames = pans(1, 1, 110, 133)
    at_once, *_ = opened()
    latent = at_once.encode(frames)
    pixels = at_once.decode(latent, dtype="float32")
    for how in ({"tile": 88}, {"tile": 96, "overlap": 88}):
        codec, *_ = opened(**how)
        assert codec.tiles_exact and len(codec._tile_layout(codec._reach[1])(14, 17).places) > 3
        np.testing.assert_allclose(codec.encode(frames), latent, atol=1e-4)
        stream = codec.stream_decoder((1, 110, 133), dtype="float32")
        parts = np.concatenate([stream.push(np.asarray(latent)), stream.flush()], axis=1)
        np.testing.assert_allclose(parts, pixels, atol=1e-5)
        assert stream.disagreement == 0
        assert np.abs(codec.decode(latent).astype(int) - at_once.decode(latent)).max() <= 1
    # Tiles that overlap by less than the network sees do differ: the above is no accident.
    codec, *_ = opened(tile=88, overlap=8)
    stream = codec.stream_decoder(dtype="float32")
    stream.push(np.asarray(latent))
    assert not codec.tiles_exact and stream.disagreement > 1e-4
    assert np.abs(codec.decode(latent, dtype="float32") - pixels).max() > 1e-3


@pytest.mark.variants
def test_tiles_of_a_large_frame_are_the_whole_frame():
    frames = np.tile(data.astronaut(), (2, 1, 1, 1))
    (at_once, *_), (codec, *_) = opened(), opened(tile=256)
    latent = at_once.encode(frames)
    np.testing.assert_allclose(codec.encode(frames), latent, atol=1e-4)
    pixels = at_once.decode(latent, dtype="float32")
    assert pixels.shape == (2, 512, 512, 3)
    np.testing.assert_allclose(codec.decode(latent, dtype="float32"), pixels, atol=1e-4)


def test_tiles_of_a_network_that_sees_all_of_a_frame_are_blended_and_told_apart():
    options = {"attention": True}
    frames = pans(1, 5, 96, 128)
    at_once, *_ = opened(**options)
    codec, *_ = opened(**options, tile=64)
    latent = at_once.encode(frames)
    assert not codec.tiles_exact
    stream = codec.stream_decoder(dtype="float32")
    parts = np.concatenate([stream.push(np.asarray(latent)), stream.flush()], axis=1)
    apart = np.abs(parts[:, :5] - at_once.decode(latent, dtype="float32"))
    assert 1e-4 < stream.disagreement < 0.2 and 1e-4 < apart.mean() < 0.2


def test_devices_that_share_a_frame_change_nothing():
    frames = pans(1, 6, 90, 40)  # 12 latent rows among 8 devices
    one, _, _ = opened()
    eight, _, _ = opened(devices=jax.devices()[:8])
    latent = one.encode(frames)
    np.testing.assert_allclose(eight.encode(frames), latent, atol=1e-4)
    np.testing.assert_allclose(
        eight.decode(latent, dtype="float32"), one.decode(latent, dtype="float32"), atol=1e-5
    )
    rows = network.shard_frames(jnp.zeros((1, 1, 96, 40, 3)), eight._network.mesh).sharding.shard_shape(
        (1, 1, 96, 40, 3)
    )
    assert rows[2] == 12


def test_what_cannot_be_encoded_or_decoded_is_told():
    codec, *_ = opened()
    clip = pans(1, 5, 16, 16)[0]
    with pytest.raises(InputError, match=r"frames of 12x16 \(HxW\); accepted: at least 16x16"):
        codec.encode(clip[:, :12])
    for frames in (clip + np.float32(200), clip - np.float32(200), jnp.asarray(clip + 200, jnp.float32)):
        with pytest.raises(
            ValueError, match=r"absolute value of .*; accepted: floats in \[-1, 1\], or uint8"
        ):
            codec.encode(frames)
    with pytest.raises(
        ValueError, match=r"frames have 2 axes, shape \(16, 16\); accepted: an image \(H, W, 3\)"
    ):
        codec.encode(clip[0, :, :, 0])
    for path in ("a.png", pathlib.Path("a.png")):
        with pytest.raises(ValueError, match=r"frames = .*a\.png.*; accepted: an image .* vaejax\.codec"):
            codec.encode(path)
    for frames in (clip[..., :2], clip.astype(np.int32), clip[0, :, :, 0], clip[None, None]):
        with pytest.raises(ValueError, match="accepted"):
            codec.encode(frames)
    with pytest.raises(ValueError, match="4 channels"):
        codec.decode(np.zeros((2, 2, 2, 5)))
    stream = codec.stream_encoder()
    stream.push(clip)
    with pytest.raises(ValueError, match="accepted"):
        stream.push(photos(1, 24, 24)[0])
    with pytest.raises(ValueError, match="uint8, as before"):
        stream.push(np.float32(clip))
    with pytest.raises(ValueError, match="no axis of size 0 except the time axis"):
        codec.encode(clip[None][:0])
    for ended in (codec.stream_encoder(), codec.stream_decoder()):
        with pytest.raises(ValueError, match="was pushed"):
            ended.flush()
        ended.push(clip if isinstance(ended, StreamEncoder) else np.zeros((2, 2, 2, 4)))
        ended.flush()
        with pytest.raises(ValueError, match="was flushed"):
            ended.flush()
    latent = codec.encode(clip)
    with pytest.raises(
        ValueError,
        match=r"shape \(2, 1, 2, 4\), which does not match .* 5x16x16 .*; accepted: shape \(2, 2, 2, 4\)",
    ):
        codec.decode(jax.tree.map(lambda x: x[:, :1], latent))
    other, *_ = opened(seed=5)
    told = rf"\({codec.fingerprint}\); accepted: latents from run \({other.fingerprint}\)"
    with pytest.raises(InputError, match=told):
        other.decode(codec.encode(clip))
    bare, *_ = opened(statistics=False)
    with pytest.raises(InputError, match="no latent statistics"):
        bare.encode(clip)
    values = bare.encode(clip, normalize=False).values
    np.testing.assert_allclose((values - MEAN) / STD, codec.encode(clip), atol=1e-4)
    for how, told in (
        ({"tile": 60}, "multiples of 8"),
        ({"tile": 64, "overlap": 64}, "less than the tile"),
        ({"tile": 32}, "88 or more"),
        ({"overlap": 8}, "without a tile"),
    ):
        with pytest.raises(InputError, match=told):
            opened(**how)
