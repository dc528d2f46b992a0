"""An autoencoder of diffusers as a codec is what torch makes of it."""

import importlib.util
import json

import numpy as np
import pytest

from tests.support.frames import pans, photos
from vaejax.errors import InputError
from vaejax.evaluate.codecs.registry import open_codec

SHORT = {"block_out_channels": [4, 4, 4, 4], "norm_num_groups": 2, "layers_per_block": 1}
TINY = {
    "AutoencoderKL": SHORT
    | {"down_block_types": 4 * ["DownEncoderBlock2D"], "up_block_types": 4 * ["UpDecoderBlock2D"]},
    "AutoencoderKLWan": {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    "AutoencoderKLCogVideoX": SHORT | {"latent_channels": 4},
    "AutoencoderKLHunyuanVideo": SHORT | {"latent_channels": 4},
    "AutoencoderKLLTXVideo": {
        "latent_channels": 8,
        "block_out_channels": [4, 4, 4, 4],
        "decoder_block_out_channels": [4, 4, 4, 4],
        "layers_per_block": 5 * [1],
        "decoder_layers_per_block": 5 * [1],
    },
}
# (spatial factor, temporal factor, latent channels), lengths accepted, and one that is not
FACTORS = {
    "AutoencoderKL": ((8, 1, 4), (1, 2), None),
    "AutoencoderKLWan": ((8, 4, 4), (1, 5), 4),
    "AutoencoderKLCogVideoX": ((8, 4, 4), (1, 9), 5),
    "AutoencoderKLHunyuanVideo": ((8, 4, 4), (1, 5, 21), 8),
    "AutoencoderKLLTXVideo": ((32, 8, 8), (1, 9), 5),
}


@pytest.fixture
def torch():
    """PyTorch, on one thread: two of them wait for each other on a machine that is busy."""
    reason = "of the extra diffusers: a plain torch can pull gigabytes"
    torch = pytest.importorskip("torch", reason=reason)
    pytest.importorskip("diffusers", reason=reason)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


def of_diffusers(torch, kind):
    """The class's own model of the codec's seed, and the codec."""
    import diffusers

    torch.manual_seed(0)
    vae = getattr(diffusers, kind).from_config(TINY[kind]).eval()
    return vae, open_codec(f"diffusers:{kind}:{json.dumps(TINY[kind])}")


@pytest.mark.parametrize("kind", TINY)
def test_an_autoencoder_of_diffusers_is_what_torch_makes_of_it(torch, kind):
    vae, codec = of_diffusers(torch, kind)
    (s, t, c), lengths, bad = FACTORS[kind]
    assert (codec.spatial_factor, codec.temporal_factor) == (s, t)
    for length in lengths:
        frames = pans(2, length, 32, 64)
        x = torch.tensor(np.float32(frames) / 127.5 - 1).movedim(-1, 1)
        with torch.no_grad():
            if kind == "AutoencoderKL":  # one frame at a time
                means = [vae.encode(x[:, :, i]).latent_dist.mean for i in range(length)]
                wanted = torch.stack([vae.decode(mean).sample for mean in means], dim=2)
                mean = torch.stack(means, dim=2)
            else:
                mean = vae.encode(x).latent_dist.mode()
                wanted = vae.decode(mean).sample
        latents, log_variance = codec.posterior(frames)
        assert latents.shape == log_variance.shape == (2, *codec.latent_shape(length, 32, 64))
        assert latents.shape[-1] == c and latents.shape[1] == 1 + (length - 1) // t
        np.testing.assert_allclose(latents, mean.movedim(1, -1), atol=1e-5)
        decoded = codec.decode(latents)
        assert decoded.shape == frames.shape and decoded.dtype == np.float32
        np.testing.assert_allclose(decoded, wanted.clamp(-1, 1).movedim(1, -1), atol=2e-5)
    if bad:
        with pytest.raises(
            InputError, match=rf"{kind}.*clips of {bad}x32x64 .*accepted: T = 1 \+ a multiple"
        ):
            codec.encode(pans(1, bad, 32, 64))
    with pytest.raises(InputError, match=rf"clips of 1x32x50 .*accepted: .*H and W multiples of {s}"):
        codec.encode(photos(1, 32, 50))
    json.dumps(codec.settings)


def test_random_weights_are_those_of_the_seed_and_leave_torchs_own_alone(torch):
    name = f"diffusers:AutoencoderKL:{json.dumps(TINY['AutoencoderKL'])}"
    frames, state = photos(1, 16, 16), torch.random.get_rng_state()
    first, again, other = (open_codec(name, seed=seed).encode(frames) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    assert torch.equal(torch.random.get_rng_state(), state)


def test_weights_are_read_from_a_folder_and_a_configuration_from_a_file(torch, tmp_path):
    vae, _ = of_diffusers(torch, "AutoencoderKL")
    with torch.no_grad():
        for weight in vae.parameters():
            weight.mul_(1.1)
    vae.save_pretrained(tmp_path)
    frames = photos(1, 16, 16)
    x = torch.tensor(np.float32(frames[:, 0]) / 127.5 - 1).movedim(-1, 1)
    with torch.no_grad():
        wanted = vae.encode(x).latent_dist.mean.movedim(1, -1)[:, None]
    codec = open_codec(f"diffusers:AutoencoderKL:{tmp_path}")
    np.testing.assert_allclose(codec.encode(frames), wanted, atol=1e-5)
    random = open_codec(f"diffusers:AutoencoderKL:{tmp_path / 'config.json'}")
    assert codec.settings["weights"] == "file" and random.settings["weights"] == "random, seed 0"
    assert np.abs(random.encode(frames) - wanted.numpy()).max() > 0.01
    text = (tmp_path / "config.json").read_text()
    with pytest.raises(InputError, match="the configuration is for AutoencoderKL; accepted: diffusers"):
        open_codec(f"diffusers:AutoencoderKLWan:{text}")
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"accepted: a folder with config\.json and weights") as error:
        open_codec(f"diffusers:AutoencoderKL:{tmp_path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", TINY)
def test_tiles_of_diffusers_are_its_own(torch, kind):
    vae, codec = of_diffusers(torch, kind)
    s = codec.spatial_factor
    latents = codec.encode(pans(1, 1, 5 * s, 10 * s))
    if kind in ("AutoencoderKL", "AutoencoderKLCogVideoX"):  # these take the overlap's share
        sizes = ("size",) if kind == "AutoencoderKL" else ("height", "width")
        vae.use_tiling = True
        for name in sizes:
            setattr(vae, f"tile_sample_min_{name}", 4 * s)
            setattr(vae, f"tile_latent_min_{name}", 4)
            setattr(vae, "tile_overlap_factor" + ("" if name == "size" else f"_{name}"), 0.25)
    else:
        sides = {f"tile_sample_min_{side}": 4 * s for side in ("height", "width")}
        strides = {f"tile_sample_stride_{side}": 3 * s for side in ("height", "width")}
        vae.enable_tiling(**sides, **strides)
    z = torch.tensor(latents).movedim(-1, 1)
    with torch.no_grad():
        wanted = vae.decode(z[:, :, 0] if kind == "AutoencoderKL" else z).sample.clamp(-1, 1).movedim(1, -1)
    whole = codec.decode(latents)
    tiled = codec.decode_tiled(latents, 4, 1)
    np.testing.assert_allclose(tiled, wanted.reshape(whole.shape), atol=2e-5)
    assert np.abs(tiled - whole).max() > 1e-3
    np.testing.assert_array_equal(codec.decode(latents), whole)  # and not by tiles again
    for overlap in range(5):
        assert codec.decode_tiled(latents, 5, overlap).shape == whole.shape


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("", "cannot be read; accepted: a folder of weights, a config.json"),
        ("/nowhere", "cannot be read"),
        ("{nonsense", "not JSON"),
        ("[]", "cannot be read"),
        ('{"z_dims": 4}', "unknown key z_dims; accepted: attn_scales, base_dim"),
        ('{"base_dim": "wide"}', "accepted: a configuration of AutoencoderKLWan"),
    ],
)
def test_a_bad_path_of_diffusers_gets_one_line(torch, path, told):
    with pytest.raises(InputError) as error:
        open_codec(f"diffusers:AutoencoderKLWan:{path}")
    assert told in str(error.value) and "\n" not in str(error.value)


def test_without_torch_a_line_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    told = r"torch( and diffusers)? not installed; accepted: pip install torch diffusers"
    with pytest.raises(InputError, match=told):
        open_codec("diffusers:AutoencoderKL:{}")
