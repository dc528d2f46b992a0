"""The codec of a run is its autoencoder; a name that opens nothing is an error of one line."""

import json
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.support import saved_run
from tests.support.frames import pans
from tests.support.models import SMALL, randomized
from vaejax.codec import network
from vaejax.codec import tiling as tile
from vaejax.configs import demo
from vaejax.errors import InputError
from vaejax.evaluate.codecs.base import check_shape
from vaejax.evaluate.codecs.registry import open_codec
from vaejax.evaluate.codecs.vae import VaeCodec
from vaejax.models.autoencoder import Autoencoder
from vaejax.runtime import mesh as sharding


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with two checkpoints, saved by eight devices, and the EMA parameters of each."""
    folder = tmp_path_factory.mktemp("run")
    config = demo.get_config("tiny")
    config.model.update(SMALL)
    averages = {step: saved_run.scaled(randomized()[1], 1 - step / 20) for step in (3, 7)}
    mesh = sharding.make_mesh(ConfigDict({"data": 4, "fsdp": 2, "space": 1}))
    saved_run.write(folder, config, averages, mesh)
    model = Autoencoder(randomized()[0].architecture)
    return folder, model, averages


def tree(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_run_is_the_autoencoder_with_its_averaged_parameters(run):
    folder, model, averages = run
    frames, before = pans(2, 5, 16, 24), tree(folder)
    x = np.float32(frames) / 127.5 - 1
    encode, decode = (jax.jit(partial(model.apply, method=method)) for method in ("encode", "decode"))
    opened = {
        7: open_codec(str(folder)),
        3: open_codec(str(folder), step=3),
        (3, "path"): open_codec(str(folder / "checkpoints" / "3")),
    }
    for key, codec in opened.items():
        step = key if isinstance(key, int) else key[0]
        posterior = encode({"params": averages[step]}, x)
        wanted = decode({"params": averages[step]}, posterior.mean)
        latents = codec.encode(frames)
        np.testing.assert_allclose(latents, posterior.mean, atol=1e-5)
        np.testing.assert_allclose(codec.posterior(frames)[1], posterior.log_variance, atol=1e-5)
        np.testing.assert_allclose(
            codec.decode(latents), np.clip(wanted, -1, 1), atol=1e-5 * np.abs(wanted).max()
        )
        assert codec.settings["step"] == step and codec.settings["parameters"] == "ema"
        assert latents.shape[1:] == codec.latent_shape(5, 16, 24) == (2, 2, 3, 4)
        np.testing.assert_allclose(codec.bits(latents), 16 * 2 * 2 * 3 * 4 / (5 * 16 * 24))
        json.dumps(codec.settings)
    assert tree(folder) == before


def test_devices_that_share_a_batch_change_nothing(run):
    mesh = sharding.make_mesh(ConfigDict({"data": 8, "fsdp": 1, "space": 1}))
    frames = pans(3, 5, 16, 24)  # fewer than devices
    one, eight = open_codec(str(run[0])), open_codec(str(run[0]), mesh=mesh)
    latents = one.encode(frames)
    np.testing.assert_allclose(eight.encode(frames), latents, atol=1e-5)
    np.testing.assert_allclose(eight.decode(latents), one.decode(latents), atol=1e-5)


def test_a_run_may_be_computed_in_another_precision(run):
    frames = pans(1, 5, 16, 24)
    wide, narrow = (open_codec(str(run[0]), dtype=dtype) for dtype in ("", "bfloat16"))
    assert (wide.settings["dtype"], narrow.settings["dtype"]) == ("float32", "bfloat16")
    exact, rounded = (codec.encode(frames).ravel() for codec in (wide, narrow))
    assert np.abs(exact - rounded).max() > 1e-3 * np.abs(exact).max()
    assert np.corrcoef(exact, rounded)[0, 1] > 0.999


@pytest.fixture(scope="module")
def decoded():
    """A codec, latents of two clips of 17 frames, and what they decode to, neither clipped nor in parts."""
    codec = VaeCodec("run", *randomized())
    latents = codec.encode(pans(2, 17, 16, 24))
    variables = {"params": codec.params}
    return codec, latents, jax.jit(partial(codec.model.apply, method="decode"))(variables, latents)


@pytest.mark.parametrize("latent_frames", [1, 2, 3, 9])
def test_decoding_in_chunks_is_decoding_the_whole(decoded, latent_frames):
    codec, latents, whole = decoded
    parts = codec.decode_chunked(latents, latent_frames)
    np.testing.assert_allclose(parts, np.clip(whole, -1, 1), atol=1e-5 * np.abs(whole).max())


def test_tiles_that_overlap_enough_leave_no_seam():
    codec = VaeCodec("run", *randomized())
    latents = codec.encode(pans(1, 5, 48, 256))
    whole = codec.decode(latents)
    errors = [np.abs(codec.decode_tiled(latents, 16, n) - whole) for n in (0, 8, 12)]
    assert errors[0].max() > 5 * errors[1].max() and errors[1].max() > 1.3 * errors[2].max()
    assert errors[0].mean() > 5 * errors[1].mean() and errors[2].mean() < 0.01
    far = np.s_[:, :, :, : 4 * 8]  # only the first tile, and far from its end, whatever the overlap
    assert errors[1][far].max() < 1e-5
    np.testing.assert_allclose(codec.decode_tiled(latents, 32, 4), whole, atol=1e-5)


@pytest.mark.parametrize(("size", "overlap"), [(4, 0), (4, 1), (5, 3), (5, 4), (7, 2), (13, 1), (14, 3)])
def test_tiles_cover_every_pixel_and_blends_add_up(size, overlap):
    """A decoder that looks at one latent pixel gives the same by tiles, whatever they are."""
    latents = np.random.default_rng(0).normal(size=(2, 3, 9, 13, 3)).astype(np.float32)
    decode = lambda z: z.repeat(4, axis=2).repeat(4, axis=3)  # noqa: E731
    tiled = tile.decode_tiled(decode, latents, size, overlap, 4)
    np.testing.assert_allclose(tiled, decode(latents), atol=1e-5)


def test_a_tile_passes_into_the_next_along_a_straight_line():
    numbers = iter(range(2))
    decode = lambda z: np.full((1, 1, 4 * z.shape[2], 4 * z.shape[3], 3), next(numbers), np.float32)  # noqa: E731
    tiled = tile.decode_tiled(decode, np.zeros((1, 1, 2, 10, 3), np.float32), 6, 2, 4)
    line = tiled[0, 0, 3, :, 0]
    np.testing.assert_allclose(line, np.clip((np.arange(40) - 15.5) / 8, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "nowhere",
            "no such name or folder; accepted: folder of a run or export, diffusers:CLASS:PATH, linear",
        ),
        ("jpeg", "no such name"),
        ("jpeg:0", "accepted: jpeg:1 to jpeg:100 or jpeg:matched"),
        ("jpeg:best", "accepted: jpeg:1 to jpeg:100"),
        ("h264:52", "accepted: h264:0 to h264:51"),
        ("h264:-1", "accepted: h264:0 to h264:51"),
        ("linear", "there are no samples; accepted: --data or a run"),
        ("jpeg:matched", "no training samples to choose its quality by; accepted: --data or a run"),
        ("diffusers:AutoencoderKLOther:x", "no such class; accepted: AutoencoderKL, AutoencoderKLWan"),
    ],
)
def test_a_bad_name_gets_one_line(name, told):
    with pytest.raises(InputError) as error:
        open_codec(name)
    assert told in str(error.value) and "\n" not in str(error.value) and name in str(error.value)


def test_a_folder_that_is_no_run_gets_one_line(run, tmp_path):
    folder, _, _ = run
    with pytest.raises(InputError, match=r"config.json: no such file; accepted: the --workdir of a run"):
        open_codec(str(tmp_path))
    with pytest.raises(InputError, match=r"no completed checkpoint of step 4; accepted: 3, 7"):
        open_codec(str(folder), step=4)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no completed checkpoint;"):
        open_codec(str(tmp_path))
    os.symlink(folder / "checkpoints", tmp_path / "checkpoints")
    config["model"]["latent_channels"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"has shape .*accepted: .*, as config.json describes") as error:
        open_codec(str(tmp_path))
    assert "\n" not in str(error.value)
    for text in ("{", "{}", '{"model": {"widths": "wide"}}', '{"model": {"size": "vast"}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(
            InputError,
            match=r"config\.json:? (does not describe an autoencoder|not a run's configuration)|model.size",
        ) as error:
            open_codec(str(tmp_path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (
            (4, 16, 16),
            r"run: clips of 4x16x16 \(T, H, W\); accepted: T = 1 \+ a multiple of 4, H and W multiples of 8",
        ),
        ((5, 20, 16), "run: clips of 5x20x16"),
        ((0, 16, 16), "run: clips of 0x16x16"),
    ],
)
def test_a_size_that_a_codec_cannot_take_is_told_before_it_is_encoded(shape, told):
    codec = VaeCodec("run", *randomized())
    with pytest.raises(InputError, match=told):
        check_shape(codec, *shape)
    with pytest.raises(InputError, match=told):
        codec.encode(np.zeros((1, *shape, 3), np.uint8))
    with pytest.raises(ValueError, match="accepted: uint8"):
        codec.encode(np.zeros((1, 5, 16, 16, 3), np.float32))


def test_precision_is_asked_for_where_an_accelerator_would_save_it():
    """On a CPU all is float32: what can be seen here is what every product asks of the compiler."""
    codec = VaeCodec("run", *randomized())
    latents, frames = jnp.zeros((1, 2, 2, 2, 4)), jnp.zeros((1, 5, 16, 16, 3), jnp.uint8)
    statistics = jnp.zeros(4), jnp.ones(4)
    for lowered in (
        network.posterior.lower(codec.model, codec.params, frames),
        network.decode.lower(codec.model, codec.params, latents),
        network.decode_chunk.lower(
            codec.model, None, codec.params, statistics, {}, latents, True, True, "uint8"
        ),
    ):
        text = lowered.as_text()
        assert "HIGHEST" in text and "DEFAULT" not in text
