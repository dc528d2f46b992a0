"""The PyTorch module of an export computes what the model in Flax computes."""

import copy
import importlib
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import vaejax
from tests.support.frames import pans
from tests.support.models import SMALL, architecture, clip, random_parameters, randomized
from tests.unit.export.test_export import SHAPE, STATISTICS, write_run
from tests.unit.models.test_autoencoder import EACH
from vaejax.codec.load import TrainedVAE, load_vae
from vaejax.codec.save import rounded, save_vae
from vaejax.errors import InputError, TrainingFailed
from vaejax.export import __main__ as export
from vaejax.export import pytorch, verify
from vaejax.export.source import Source
from vaejax.models.autoencoder import Architecture, Autoencoder
from vaejax.models.wan import SIZES, WanDesign

REASON = "of the extra diffusers: a plain torch can pull gigabytes"
torch = pytest.importorskip("torch", reason=REASON)
torch_autoencoder = importlib.import_module("vaejax.export.torch_autoencoder")

# The default suite compares three models that have every option between them; marked tests show which option
# is wrong.
# Upsampling from 8 channels to 12 in time alone: the shortcut's channels differ from phase to phase.
MIXED = {
    "film": True,
    "pixel_norm": True,
    "attention": True,
    "stem_factor": 4,
    "widths": (6, 12, 8),
    "encoder_blocks": 2,
}
OTHER = {
    "conv": "groupnorm",
    "attention": True,
    "qk_norm": False,
    "stem": "patch",
    "stem_factor": 4,
    "temporal_factor": 2,
}
MORE = {
    "film": {"film": True},
    "stem of 1": {"stem_factor": 1},
    "one level": {"stem_factor": 4, "spatial_factor": 4, "temporal_factor": 1},
}
OPTIONS = [
    pytest.param({}, id="default"),
    pytest.param(MIXED, id="mixed"),
    pytest.param(OTHER | {"decoder_blocks": 2}, id="other"),
    *(
        pytest.param(options, id=name, marks=pytest.mark.variants)
        for name, options in (EACH | MORE).items()
        if name != "recomputed"  # the same function
    ),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A function from options of a model to the model, its parameters, and its module in PyTorch."""
    known = {}

    def open_(options):
        key = tuple(options.items())
        if key not in known:
            model, params = randomized(**options)
            params = rounded(params, "float32")
            vae = TrainedVAE("made up", model.architecture, params, None, None, 0, "0" * 16)
            folder = tmp_path_factory.mktemp("torch")
            pytorch.write(folder, Source(vae, STATISTICS, {}, None), params)
            known[key] = model, params, torch_autoencoder.Autoencoder.from_pretrained(folder)
        return known[key]

    return open_


def first(x):
    """(B, T, H, W, C) to a tensor (B, C, T, H, W)."""
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy())


def last(x):
    """A tensor (B, C, T, H, W) to an array (B, T, H, W, C)."""
    return np.moveaxis(x.detach().numpy(), 1, -1)


def assert_equal(found, wanted, tolerance=1e-5):
    """Equal shapes, and a largest difference relative to the largest value below the tolerance."""
    wanted = np.asarray(wanted)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("frames", [1, 5, pytest.param(9, marks=pytest.mark.variants), 17])
@pytest.mark.parametrize("options", OPTIONS)
def test_pytorch_computes_what_flax_computes(opened, options, frames):
    model, params, vae = opened(options)
    ft, fs = model.architecture.temporal_factor, model.architecture.spatial_factor
    if (frames - 1) % ft:
        pytest.skip("no clip of this model")
    x = clip(frames, 3 * fs, 5 * fs, batch=2)
    apply = jax.jit(model.apply, static_argnames="method")  # faster to compile than each operation alone
    wanted = apply({"params": params}, x, method="encode")
    with torch.no_grad():
        found = vae.encode(first(x)).latent_dist
        assert_equal(last(found.mean), wanted.mean)
        assert_equal(last(found.logvar) + 8, wanted.log_variance + 8)  # a constant would hide differences
        z = np.random.default_rng(0).normal(size=wanted.mean.shape).astype(np.float32)
        assert_equal(last(vae.decode(first(z)).sample), apply({"params": params}, z, method="decode"))


@pytest.mark.parametrize("options", OPTIONS)
def test_a_stream_in_chunks_is_the_whole_clip(opened, options):
    vae = opened(options)[2]
    ft, fs = vae.temporal_compression_ratio, vae.spatial_compression_ratio
    x = clip(1 + 6 * ft, 3 * fs, 5 * fs)
    with torch.no_grad():
        z = vae.encode(first(x)).latent_dist
        whole = vae.decode(z.mean).sample
        for pixels in ((1, ft, 3 * ft, 2 * ft), (1 + 2 * ft, 4 * ft)):
            cache = {}
            found = [vae.encode(part, cache=cache).latent_dist for part in first(x).split(pixels, dim=2)]
            assert_equal(last(torch.cat([one.mean for one in found], dim=2)), last(z.mean))
            assert_equal(last(torch.cat([one.std for one in found], dim=2)), last(z.std))
        for latents in ((1,) * 7, (2, 1, 4)):
            cache = {}
            found = [vae.decode(part, cache=cache).sample for part in z.mean.split(latents, dim=2)]
            assert_equal(last(torch.cat(found, dim=2)), last(whole))


def test_all_gradients_are_those_of_flax(opened):
    model, params, vae = opened(MIXED)
    x = clip(5, 8, 16)
    noise = np.asarray(jax.random.normal(jax.random.key(2), (1, 2, 1, 2, 4)))
    weights = np.asarray(clip(5, 8, 16, seed=3))

    @jax.jit
    def gradients(params):
        def loss(params):
            posterior = model.apply({"params": params}, x, method="encode")
            z = posterior.mean + jax.numpy.exp(0.5 * posterior.log_variance) * noise
            x_hat = model.apply({"params": params}, z, method="decode")
            return (x_hat * weights).sum() + (posterior.log_variance * noise).sum()

        return jax.grad(loss)(params)

    wanted = pytorch.state_dict(gradients(params))

    def found():
        vae.zero_grad()
        posterior = vae.encode(first(x)).latent_dist
        x_hat = vae.decode(posterior.mean + posterior.std * first(noise)).sample
        ((x_hat * first(weights)).sum() + (posterior.logvar * first(noise)).sum()).backward()
        return {name: p.grad.numpy().copy() for name, p in vae.named_parameters()}

    plain = found()
    assert plain.keys() == wanted.keys()
    for name, gradient in plain.items():
        # FiLM's rows for images get no gradient from a clip.
        assert np.abs(gradient[1 if "modality" in name else ...]).max() > 0, name
        assert_equal(gradient, wanted[name], 1e-4)
    vae.enable_gradient_checkpointing()
    recomputed = found()
    vae.enable_gradient_checkpointing(False)
    for name, gradient in plain.items():
        np.testing.assert_array_equal(recomputed[name], gradient)


def test_gradient_checkpointing_keeps_fewer_activations(opened):
    vae = opened({})[2]

    def kept(cache=None):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            vae.encode(first(clip(5)), cache=cache)
        return sum(sizes)

    everything, in_stream = kept(), kept({})
    vae.enable_gradient_checkpointing()
    assert kept() < 0.8 * everything
    assert kept({}) == in_stream  # recomputing would read a cache that has moved on
    vae.enable_gradient_checkpointing(False)


def test_the_weights_of_an_image_are_a_third_of_the_work(opened):
    """An image takes the 2D convolution."""
    vae = opened({})[2]
    from torch.utils.flop_counter import FlopCounterMode

    def flops(frames):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            vae.decode(torch.zeros(1, 4, frames, 2, 2), is_video=True)
        return counter.get_total_flops()

    cache = {}
    vae.decode(torch.zeros(1, 4, 1, 2, 2), cache=cache)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae.decode(torch.zeros(1, 4, 1, 2, 2), cache=cache)  # a later latent frame, by 3D convolutions
    assert 0 < flops(1) < 0.34 * counter.get_total_flops()


def test_the_posterior_is_that_of_diffusers():
    module = pytest.importorskip("diffusers.models.autoencoders.vae", reason="of the extra diffusers")
    moments = 30 * torch.randn(2, 6, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    one, other = torch_autoencoder.DiagonalGaussian(moments), module.DiagonalGaussianDistribution(moments)
    for name in ("mean", "logvar", "std", "var"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    draws = [each.sample(torch.Generator().manual_seed(1)) for each in (one, other)]
    assert torch.equal(*draws) and torch.equal(one.mode(), other.mode())
    assert not torch.equal(one.sample(), one.sample())
    moments = torch.randn(2, 6, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    one, other = torch_autoencoder.DiagonalGaussian(moments), module.DiagonalGaussianDistribution(moments)
    torch.testing.assert_close(one.kl(), other.kl().sum(dim=-1))  # diffusers sums all axes but the last


def test_the_calls_are_those_of_diffusers(opened):
    """As its pipelines and training scripts call an autoencoder of videos."""
    diffusers = pytest.importorskip("diffusers", reason="of the extra diffusers")
    vae = opened({})[2]
    theirs = diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        num_res_blocks=1,
        dim_mult=[1, 1, 1, 1],
        latents_mean=4 * [0.0],
        latents_std=4 * [1.0],
    )
    x = first(clip(5))
    with torch.no_grad():
        for each in (theirs, vae):
            assert each.dtype == torch.float32 and each.device == torch.device("cpu")
            assert len(each.config.latents_mean) == len(each.config.latents_std) == 4
            encoded = each.encode(x)
            z = encoded.latent_dist.sample(torch.Generator().manual_seed(0))
            torch.testing.assert_close(z, encoded[0].sample(torch.Generator().manual_seed(0)))
            assert z.shape == (1, 4, 2, 2, 2)
            assert torch.equal(each.encode(x, return_dict=False)[0].mean, encoded.latent_dist.mean)
            decoded = each.decode(z).sample
            assert decoded.shape == x.shape and decoded.dtype == torch.float32
            assert torch.equal(each.decode(z, return_dict=False)[0], decoded)
            torch.testing.assert_close(each(x).sample, each.decode(encoded.latent_dist.mode()).sample)
            seeds = (torch.Generator().manual_seed(0) for _ in range(2))
            one, two = (each(x, sample_posterior=True, generator=seed).sample for seed in seeds)
            torch.testing.assert_close(one, two)
            torch.testing.assert_close(one, decoded)
    assert (vae.spatial_compression_ratio, vae.temporal_compression_ratio) == (8, 4)
    mean, std = (np.float32(STATISTICS[key]).reshape(4, 1, 1, 1) for key in ("mean", "std"))
    np.testing.assert_allclose(vae.normalize(z), (z.numpy() - mean) / std, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(vae.denormalize(vae.normalize(z)), z)


def test_half_precision_stays_near(opened):
    """In bfloat16 the moments and pixels are still float32."""
    vae = opened(MIXED)[2]
    half = torch_autoencoder.Autoencoder(vars(vae.config))
    half.load_state_dict(vae.state_dict())
    half = half.to(torch.bfloat16)
    assert half.dtype == torch.bfloat16
    x = first(clip(5))
    with torch.no_grad():
        mean = vae.encode(x).latent_dist.mean
        pixels = vae.decode(mean).sample
        with torch.autocast("cpu", torch.bfloat16):
            found = [(vae.encode(x).latent_dist.mean, vae.decode(mean).sample)]
        found.append((half.encode(x.bfloat16()).latent_dist.mean, half.decode(mean.bfloat16()).sample))
    for results in found:
        for one, other in zip(results, (mean, pixels), strict=True):
            assert one.dtype == torch.float32
            assert 1e-4 < (one - other).abs().max() / other.abs().max() < 0.03


def test_the_linear_paths_compute_in_float32(opened):
    vae = opened({})[2]
    linear = torch_autoencoder.Autoencoder(vars(vae.config))
    linear.load_state_dict(vae.state_dict())
    for half in (linear.encoder, linear.decoder):
        half.conv_out.weight.data.zero_()  # which leaves a bias, exact in bfloat16
        half.conv_out.bias.data.fill_(0.5)
    x = first(clip(5))
    with torch.no_grad():
        wanted = linear(x).sample
        with torch.autocast("cpu", torch.bfloat16):
            found = linear(x).sample
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        half = copy.deepcopy(linear).to(torch.bfloat16)
        whole = copy.deepcopy(half).float()  # with the same rounded weights
        wanted = whole.encode(x.bfloat16().float()).latent_dist.mean
        torch.testing.assert_close(half.encode(x.bfloat16()).latent_dist.mean, wanted, rtol=0, atol=1e-6)
        z = wanted.bfloat16()
        torch.testing.assert_close(half.decode(z)[0], whole.decode(z.float())[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 3, 4, 16, 16), torch.float32),
        ((1, 3, 5, 16, 12), torch.float32),
        ((1, 3, 5, 12, 16), torch.float32),
        ((1, 5, 16, 16, 3), torch.float32),
        ((3, 5, 16, 16), torch.float32),
        ((0, 3, 5, 16, 16), torch.float32),
        ((1, 3, 5, 16, 16), torch.uint8),
    ],
)
def test_the_module_refuses_what_it_cannot_encode(opened, shape, dtype):
    vae = opened({})[2]
    with pytest.raises(ValueError, match=r"accepted: float \(B, 3, T, H, W\), T = 1 \+ a multiple of 4"):
        vae.encode(torch.zeros(shape, dtype=dtype))


def test_the_module_refuses_other_chunks_and_latents(opened):
    vae = opened({})[2]
    cache = {}
    with torch.no_grad():
        vae.encode(torch.zeros(1, 3, 5, 16, 16), cache=cache)
        with pytest.raises(ValueError, match="T = a multiple of 4"):
            vae.encode(torch.zeros(1, 3, 5, 16, 16), cache=cache)
        for z in (torch.zeros(1, 3, 2, 2, 2), torch.zeros(1, 4, 0, 2, 2), torch.zeros(1, 4, 2, 2).int()):
            with pytest.raises(ValueError, match=r"accepted: float \(B, 4, t, h, w\), t at least 1"):
                vae.decode(z)


def test_a_module_that_was_trained_further_is_saved_and_read_again(opened, tmp_path):
    vae = opened(MIXED)[2]
    other = torch_autoencoder.Autoencoder(vars(vae.config))  # with other weights
    other.save_pretrained(tmp_path / "out")
    again = torch_autoencoder.Autoencoder.from_pretrained(tmp_path / "out", torch_dtype=torch.float64)
    assert again.dtype == torch.float64 and not again.training
    assert vars(again.config) == vars(vae.config)
    assert again.state_dict().keys() == other.state_dict().keys()
    for name, value in other.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.double())
        assert value.abs().max() < 5  # initialized
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["autoencoder.py", "config.json", "model.safetensors"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"format": "other"}))
    with pytest.raises(ValueError, match=r"'format' = 'other'; accepted: 'vaejax\.torch'"):
        torch_autoencoder.Autoencoder.from_pretrained(tmp_path / "out")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("export") / "run", STATISTICS)


@pytest.fixture(scope="module")
def exported(run):
    assert export.main([str(run), str(run.parent / "out"), "--format=torch"]) == 0
    return run.parent / "out"


def test_the_code_of_the_model_card_runs_without_vaejax(run, exported, tmp_path):
    """Its blocks of code, with a real clip instead of zeros, encode and decode like `vaejax.load`."""
    card = (exported / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2 and "torch.zeros(1, 3, 17, 256, 256)" in blocks[0]
    frames = pans(1, *SHAPE)
    np.save(tmp_path / "frames.npy", frames)
    code = "\n".join(blocks).replace(
        "torch.zeros(1, 3, 17, 256, 256)", "torch.tensor(frames).movedim(-1, 1) / 127.5 - 1"
    )
    code = f"""
import numpy as np
frames = np.load({str(tmp_path / "frames.npy")!r})
{code}
mean = vae.encode(torch.tensor(frames).movedim(-1, 1) / 127.5 - 1).latent_dist.mode()
z = vae.normalize(mean).detach()
whole = vae.decode(vae.denormalize(z)).sample.detach()
np.savez({str(tmp_path / "found")!r}, z=z.movedim(1, -1), whole=whole.movedim(1, -1), shape=x.shape)
import sys
assert not [name for name in sys.modules if name.split(".")[0] in ("vaejax", "jax")]
"""
    subprocess.run([sys.executable, "-c", code], cwd=exported.parent, check=True)
    found, codec = np.load(tmp_path / "found.npz"), vaejax.load(run)
    assert_equal(found["z"], codec.encode(frames).values)
    assert_equal(np.clip(found["whole"], -1, 1), codec.decode(found["z"], dtype="float32"))
    assert tuple(found["shape"]) == (1, 3, *SHAPE)


def test_the_folder_holds_the_module_the_weights_and_their_description(run, exported):
    names = sorted(path.name for path in exported.iterdir() if path.name != "__pycache__")
    assert names == ["README.md", "autoencoder.py", "config.json", "model.safetensors"]
    assert len({(exported / name).stat().st_mode for name in names}) == 1  # readable by the same people
    module = pathlib.Path(torch_autoencoder.__file__).read_bytes()
    assert (exported / "autoencoder.py").read_bytes() == module
    imported = set(re.findall(r"^(?:import|from) (\w+)", module.decode(), re.MULTILINE))
    assert imported - sys.stdlib_module_names == {"torch", "safetensors"}
    config, source = json.loads((exported / "config.json").read_text()), load_vae(str(run))
    assert (config["format"], config["fingerprint"]) == ("vaejax.torch", source.fingerprint)
    assert (config["latents_mean"], config["latents_std"]) == (STATISTICS["mean"], STATISTICS["std"])
    weights = load_file(exported / "model.safetensors")
    wanted = dict(torch_autoencoder.Autoencoder(config).named_parameters())
    assert {name: leaf.shape for name, leaf in weights.items()} == {k: p.shape for k, p in wanted.items()}
    assert {leaf.dtype for leaf in weights.values()} == {np.dtype(np.float32)}


def test_verification_finds_other_weights_and_other_outputs(run, exported):
    vae = load_vae(str(run))
    pytorch.check_weights(exported, vae.params)
    found = pytorch.compare(exported, vae)
    assert found.keys() == {"mean", "log_variance", "pixels"} and 0 < max(found.values()) < 1e-5
    for half in ("encoder", "decoder"):
        other = vae.params | {half: jax.tree.map(lambda x: x * np.float32(1.01), vae.params[half])}
        with pytest.raises(TrainingFailed, match=f"{half}.* differs from that of the source"):
            pytorch.check_weights(exported, other)
        what = "mean" if half == "encoder" else "pixels"
        with pytest.raises(TrainingFailed, match=f"{what} in PyTorch differs from that in vaejax by"):
            pytorch.compare(exported, vae._replace(params=other))
    with pytest.raises(TrainingFailed, match="names of weights differ"):
        pytorch.check_weights(exported, {"encoder": vae.params["encoder"]})
    with pytest.raises(TrainingFailed, match="by nan of"):
        nothing = jax.tree.map(lambda x: x * np.float32(np.nan), vae.params)
        pytorch.compare(exported, vae._replace(params=nothing))


def test_without_pytorch_the_weights_alone_are_verified(run, tmp_path):
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # as if it were not installed
        "from vaejax.export.__main__ import main\n"
        f"sys.exit(main([{str(run)!r}, {str(tmp_path / 'out')!r}, '--format=torch']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not compared: outputs in PyTorch, which needs pip install torch" in done.stdout
    assert torch_autoencoder.Autoencoder.from_pretrained(tmp_path / "out").dtype == torch.float32


def test_weights_in_bfloat16_are_those_of_the_run_rounded(run, exported, tmp_path, capsys):
    capsys.readouterr()
    assert export.main([str(run), str(tmp_path / "out"), "--format=torch", "--dtype=bfloat16"]) == 0
    shown = capsys.readouterr().out
    assert "after rounding; PSNR of a test clip" in shown and "verified in PyTorch: largest" in shown
    vae = torch_autoencoder.Autoencoder.from_pretrained(tmp_path / "out")
    wanted = torch_autoencoder.Autoencoder.from_pretrained(exported)
    for name, value in wanted.state_dict().items():
        assert torch.equal(vae.state_dict()[name], value.bfloat16().float())


def test_mistakes_get_one_line(run, exported, tmp_path, capsys):
    def refused(arguments, message):
        with pytest.raises(SystemExit) if "unknown" in message else np.errstate():
            assert export.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message.removeprefix("unknown ") in line

    out = str(tmp_path / "out")
    refused(
        [str(run), out, "--format=torch", "--stablehlo=1x16x16"],
        "--stablehlo=1x16x16; accepted: --format=vaejax",
    )
    refused([str(run), out, "--format=flax"], "unknown invalid choice: 'flax'")
    refused(
        [str(exported), out, "--format=torch"], f"{exported}: an export of format 'vaejax.torch'; accepted"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    refused([str(run), str(tmp_path / "full"), "--format=torch"], "contains other files, such as letter.txt")
    other = WanDesign(**SIZES["wan2.1"], pixel_channels=3, remat=(), dtype="float32")
    with pytest.raises(InputError, match="--format=torch; accepted: a model of family vaejax"):
        pytorch.config_of(Architecture(other, other))
    with pytest.raises(InputError, match="--dtype=int8; accepted: float32 or bfloat16"):
        pytorch.export(str(run), out, dtype="int8")
    assert not (tmp_path / "out").exists()


@pytest.mark.variants
def test_an_export_of_one_format_replaces_one_of_the_other(run, tmp_path):
    out = tmp_path / "out"
    for arguments, absent in (
        ([], "autoencoder.py"),
        (["--format=torch"], "checkpoint"),
        ([], "autoencoder.py"),
    ):
        assert export.main([str(run), str(out), *arguments]) == 0
        assert not (out / absent).exists()
        (out / "__pycache__").mkdir()  # as after importing autoencoder.py
    assert export.main([str(out), str(tmp_path / "again"), "--format=torch"]) == 0  # from an export
    one, other = (load_vae(str(each)).fingerprint for each in (run, out))
    assert one == other == json.loads((tmp_path / "again" / "config.json").read_text())["fingerprint"]


@pytest.mark.variants
def test_a_decoder_may_have_a_design_of_its_own(tmp_path):
    """As after distillation; here of an export by vaejax, of four pixel channels."""
    halves = [architecture(**(SMALL | {"pixel_channels": 4} | options)) for options in ({}, MIXED)]
    both = Architecture(halves[0].encoder, halves[1].decoder)
    params = random_parameters(Autoencoder(both), np.zeros(both.example_shape, np.float32), jax.random.key(0))
    params, mean, std = rounded(params, "float32"), *(np.float32(STATISTICS[key]) for key in ("mean", "std"))
    (tmp_path / "pair").mkdir()
    save_vae(tmp_path / "pair", TrainedVAE("pair", both, params, mean, std, 0, "0" * 16))
    assert export.main([str(tmp_path / "pair"), str(tmp_path / "out"), "--format=torch"]) == 0
    vae = torch_autoencoder.Autoencoder.from_pretrained(tmp_path / "out")
    assert vae.decoder.design.film and not vae.encoder.design.film
    assert "| pixels | (B, 4, T, H, W)" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.variants
def test_without_statistics_latents_cannot_be_normalized(tmp_path):
    run = write_run(tmp_path / "run", None)
    assert export.main([str(run), str(tmp_path / "out"), "--format=torch"]) == 0
    vae = torch_autoencoder.Autoencoder.from_pretrained(tmp_path / "out")
    assert vae.config.latents_mean is None
    for normalize in (vae.normalize, vae.denormalize):
        with pytest.raises(ValueError, match="latents_mean and latents_std are unknown"):
            normalize(torch.zeros(1, 4, 1, 2, 2))
    assert "latents are unknown" in " ".join((tmp_path / "out" / "README.md").read_text().split())


@pytest.mark.variants
def test_a_model_that_computes_in_bfloat16_is_compared_in_float32(opened, tmp_path):
    model, params, _ = opened({})
    architecture = model.architecture.replace(dtype="bfloat16")
    vae = TrainedVAE("made up", architecture, params, None, None, 0, "0" * 16)
    pytorch.write(tmp_path, Source(vae, STATISTICS, {}, None), params)
    assert max(pytorch.compare(tmp_path, vae).values()) < 1e-5


def test_clips_of_the_verification_have_several_latent_frames(opened):
    for options in (MIXED, {"spatial_factor": 16, "temporal_factor": 8}):
        architecture = randomized(**options)[0].architecture
        t, h, w, _ = architecture.latent_shape(*verify.clip_shape(architecture))
        assert t == 3 and min(h, w) >= 4
