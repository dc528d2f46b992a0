"""Published autoencoders are read as others read them, and a file that is not one is refused in one line."""

import json
import os
import pickle
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vaejax.codec.load import load_vae
from vaejax.codec.published import ACCEPTED
from vaejax.errors import InputError
from vaejax.models import wan_names
from vaejax.models.wan import SIZES
from vaejax.models.wan_files import from_config, from_shapes
from vaejax.models.wan_statistics import published_statistics
from vaejax.networks import torch_writer

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

from tests.support.wan import design, pair  # noqa: E402

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", params=["2.1", "2.2"])
def published(request, tmp_path_factory):
    """A folder that diffusers wrote, its design, and its parameters as our tree."""
    folder, of = tmp_path_factory.mktemp("published"), design(request.param)
    theirs, params = pair(of)
    theirs.save_pretrained(folder / "vae")
    return folder, of, params


def equal(one, other) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def original(tensors, of):
    """The tensors under Wan's own names."""
    return {wan_names.to_original(wan_names.from_diffusers(name), of): x for name, x in tensors.items()}


def test_a_folder_of_diffusers_is_read_whole_or_split_and_inside_a_pipeline(published, tmp_path):
    folder, of, params = published
    theirs, _ = pair(of)
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for path in (folder, folder / "vae", tmp_path):
        vae = load_vae(str(path))
        assert vae.architecture.encoder == vae.architecture.decoder == of and equal(vae.params, params)
        assert vae.mean is None  # diffusers wrote its default, of 16 channels
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"latents_mean": [1.0, 2.0, 3.0], "latents_std": [4.0, 5.0, 6.0]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    vae = load_vae(str(tmp_path))
    np.testing.assert_array_equal([vae.mean, vae.std], [[1, 2, 3], [4, 5, 6]])


def test_a_single_file_implies_its_architecture(published, tmp_path):
    folder, of, params = published
    tensors = load_file(folder / "vae" / WEIGHTS)
    theirs = {name: torch.from_numpy(x.copy()) for name, x in original(tensors, of).items()}
    save_file(tensors, tmp_path / "diffusers.safetensors")
    save_file(original(tensors, of), tmp_path / "original.safetensors")
    torch.save(theirs, tmp_path / "zip.pth")
    torch.save(theirs, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch_writer.write(tmp_path / "ours.pth", original(tensors, of))
    for path in sorted(tmp_path.iterdir()):
        vae = load_vae(str(path))
        assert vae.architecture.encoder == of and equal(vae.params, params), path
        assert vae.mean is None  # the constants of the published models are not those of others


@pytest.mark.variants  # 127M and 705M parameters
@pytest.mark.parametrize("size", ["wan2.1", "wan2.2"])
def test_the_published_sizes_are_recognized_by_their_tensors(size, tmp_path):
    config = {"is_residual": True, "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48} | {
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "latents_mean": [0.0] * 48,
        "latents_std": [1.0] * 48,
    }
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKLWan(**(config if size == "wan2.2" else {}))
    implied = from_shapes({name: tuple(x.shape) for name, x in theirs.state_dict().items()})
    assert implied == from_config(theirs.config)
    assert {name: getattr(implied, name) for name in SIZES[size]} == SIZES[size]
    mean, _ = published_statistics(implied)
    assert mean.shape == (implied.latent_channels,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("decoder.conv_in.bias"), r"decoder\.conv_in\.bias is missing; accepted: a folder"),
        (
            lambda t: t.update(extra=np.zeros(3, np.float32)),
            r"extra is not a tensor of this model; accepted: a folder",
        ),
        (
            lambda t: t.update({"quant_conv.bias": np.zeros(3, np.float32)}),
            r"quant_conv\.bias has shape \(3,\); accepted: \(6,\)",
        ),
    ],
)
def test_a_tensor_that_is_missing_surplus_or_misshapen_is_named(published, tmp_path, change, message):
    folder, _, _ = published
    tensors = load_file(folder / "vae" / WEIGHTS)
    change(tensors)
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_text((folder / "vae" / "config.json").read_text())
    with pytest.raises(InputError, match=message) as error:
        load_vae(str(tmp_path))
    assert "\n" not in str(error.value)


class Runs:
    """An object whose pickle runs a command."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_files_that_are_not_a_vae_are_refused_in_one_line(published, tmp_path):
    folder, _, _ = published
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"conv1.weight": Runs(tmp_path / "ran")}))
    torch.save({"conv1.weight": Runs(tmp_path / "ran")}, tmp_path / "evil_zip.pth")
    torch.save({"x": torch.zeros(3)}, tmp_path / "other.pth")
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    torn = (folder / "vae" / WEIGHTS).read_bytes()[:-40]
    (tmp_path / "torn.safetensors").write_bytes(torn)
    for name, config in {
        "class": {"_class_name": "AutoencoderKL"},
        "wan": {"_class_name": "WanModel"},
        "attention": {"_class_name": "AutoencoderKLWan", "attn_scales": [0.5]},
        "empty": {"_class_name": "AutoencoderKLWan"},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "wan" / "Wan2.1_VAE.pth").touch()
    messages = {
        "evil.pth": "truncated or not written by torch.save",
        "evil_zip.pth": "refers to posix.system; accepted: a state dict of dense tensors only",
        "other.pth": "lacks 'encoder.conv_out.weight'",
        "other.safetensors": "lacks 'encoder.conv_out.weight'",
        "torn.safetensors": "torn.safetensors: ",
        "class": "_class_name = AutoencoderKL; accepted",
        "wan": f"_class_name = WanModel; accepted: {ACCEPTED}, such as {tmp_path / 'wan' / 'Wan2.1_VAE.pth'}",
        "attention": "attn_scales",
        "empty": f"no {WEIGHTS}",
    }
    for name, message in messages.items():
        with pytest.raises(InputError, match=re.escape(message)) as error:
            load_vae(str(tmp_path / name))
        assert "\n" not in str(error.value) and name in str(error.value) and "accepted: " in str(error.value)
    assert not (tmp_path / "ran").exists()
