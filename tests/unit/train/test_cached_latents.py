"""Training on latents from files: they belong to the pixels, and save the encoder's pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.support import media_files
from tests.support.models import SMALLEST, architecture, random_parameters
from tests.support.small_run import small_config
from vaejax import load
from vaejax.codec.__main__ import main as codec
from vaejax.codec.load import TrainedVAE, fingerprint, load_vae
from vaejax.codec.save import save_vae
from vaejax.data import media
from vaejax.data.sampler import Sampler
from vaejax.errors import InputError
from vaejax.models.autoencoder import Autoencoder
from vaejax.runtime import flops
from vaejax.train.setup import Setup

IMAGES, CLIPS = "image_32x32", "video_5x32x32"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model, photos and clips larger than the buckets, and their latents."""
    root = tmp_path_factory.mktemp("cached")
    model = Autoencoder(architecture(**(SMALLEST | {"temporal_factor": 4})))
    clip = jax.ShapeDtypeStruct(model.architecture.example_shape, jnp.float32)
    params = jax.tree.map(np.asarray, random_parameters(model, clip, jax.random.key(0)))
    mean, std = np.linspace(-1, 1, 4).astype(np.float32), np.linspace(0.5, 2, 4).astype(np.float32)
    (root / "model").mkdir()
    save_vae(root / "model", TrainedVAE("", model.architecture, params, mean, std, 7, fingerprint(params)))
    (root / "media").mkdir()
    media_files.write_photos(root / "media", 6)
    for i in range(2):
        photo = np.asarray(Image.open(root / "media" / f"{i:02}.png"))
        frames = [np.roll(photo, 3 * t, axis=1) for t in range(12)]
        media_files.write_clip(root / "media" / f"{i}.mp4", frames, rate=12)
    arguments = [str(root / "media"), str(root / "latents"), f"--model={root / 'model'}", "--dtype=float32"]
    assert codec(["encode", *arguments]) == 0
    return root


def config_of(folders, **changes):
    return small_config(
        folders / "media",
        **{
            "data.buckets": {IMAGES: {"batch": 8}, CLIPS: {"batch": 8}},
            "data.latents": str(folders / "latents"),
            "data.holdout": 0.0,
            "optim.train": ("decoder",),
            "init": str(folders / "model"),
            "model.latent_channels": 4,
            "model.temporal_factor": 4,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def setup(folders):
    return Setup.of(config_of(folders), known=load_vae(str(folders / "model")))


def test_the_latents_of_a_sample_are_those_of_its_pixels(folders, setup):
    whole = load(str(folders / "model"))
    corners = set()
    for bucket in setup.buckets:
        sampler = Sampler(setup.sources, bucket, "train", setup.config.data, seed=3)
        for i in range(4):
            sample = sampler[i]
            path, _, start = sample.name.rpartition("@")
            frames = np.stack([frame for _, _, frame in media.stream(path, media.kind_of(path))])
            latents = np.asarray(whole.encode(frames, normalize=False).values)
            size, shape = np.array(frames.shape[1:3]), sample.frames.shape
            places = [
                (y, x)
                for y in range(0, size[0] - 31, 8)
                for x in range(0, size[1] - 31, 8)
                if np.array_equal(frames[: shape[0], y : y + 32, x : x + 32], sample.frames)
            ]
            assert start == "0.000" and len(places) == 1
            ((y, x),) = places
            corners.add((y, x))
            part = latents[: sample.latents.shape[0], y // 8 : y // 8 + 4, x // 8 : x // 8 + 4]
            np.testing.assert_allclose(sample.latents, part, atol=1e-5)
    assert len(corners) > 2


def test_the_encoder_does_not_run(folders, setup):
    known, bucket = setup.known, setup.buckets[1]
    model, variables = Autoencoder(known.architecture), {"params": known.params}
    z = jnp.zeros((bucket.batch, *known.architecture.latent_shape(5, 32, 32)))
    decode = flops.count(jax.make_jaxpr(lambda z: model.apply(variables, z, method="decode"))(z))
    phase = setup.programs.phase(0)
    counted = setup.programs.model_flops(phase, bucket)
    assert 2 * decode < counted <= 3 * decode
    without = dataclasses.replace(setup.programs, cached=False)
    assert without.model_flops(phase, bucket) > counted + 0.5 * decode


def test_latents_of_another_model_and_missing_ones_are_refused(folders, tmp_path):
    known = load_vae(str(folders / "model"))
    other = Setup.of(config_of(folders), known=known._replace(fingerprint="0" * 16))
    sampler = Sampler(other.sources, other.buckets[0], "train", other.config.data)
    with pytest.raises(InputError, match=f"latents of model {known.fingerprint}, not 0000000000000000"):
        sampler[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=rf"^data.latents: no training file with latents fits {IMAGES}"):
        Setup.of(config_of(folders, **{"data.latents": str(tmp_path / "empty")}), known=known)
    with pytest.raises(InputError, match=r"data\.latents = .*nowhere: no such folder"):
        Setup.of(config_of(folders, **{"data.latents": str(tmp_path / "nowhere")}), known=known)
    with pytest.raises(InputError, match=r"^data\.latents = .*optim\.train"):
        config_of(folders, **{"optim.train": ("encoder", "decoder")})
