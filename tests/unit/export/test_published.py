"""A VAE of the family wan goes to diffusers and to Wan's own names, and comes back with the same bits."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vaejax.codec.load import load_vae
from vaejax.export.__main__ import main as export

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

from tests.support.models import randomized  # noqa: E402
from tests.support.wan import design, pair  # noqa: E402
from vaejax.codec.load import TrainedVAE, fingerprint  # noqa: E402
from vaejax.codec.save import save_vae  # noqa: E402


@pytest.fixture(scope="module", params=["2.1", "2.2"])
def published(request, tmp_path_factory):
    """A folder that diffusers wrote."""
    folder = tmp_path_factory.mktemp("published") / "start"
    pair(design(request.param))[0].save_pretrained(folder)
    return folder


def equal(one, other) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def test_a_folder_of_diffusers_comes_back_with_the_same_bits(published, tmp_path, capsys):
    assert export([str(published), str(tmp_path / "out"), "--format=diffusers"]) == 0
    assert "verified in PyTorch: largest differences" in capsys.readouterr().out
    theirs, ours = (
        diffusers.AutoencoderKLWan.from_pretrained(path) for path in (published, tmp_path / "out")
    )
    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    same = ("base_dim", "decoder_base_dim", "z_dim", "dim_mult", "num_res_blocks", "temperal_downsample")
    same += ("is_residual", "in_channels", "out_channels", "patch_size", "latents_mean", "latents_std")
    for name in (*same, "scale_factor_temporal", "scale_factor_spatial"):
        assert ours.config[name] == theirs.config[name] or (
            name == "decoder_base_dim" and theirs.config[name] is None
        ), name
    assert "AutoencoderKLWan.from_pretrained" in (tmp_path / "out" / "README.md").read_text()


def test_the_original_names_come_back_with_the_same_bits(published, tmp_path):
    assert export([str(published), str(tmp_path / "out"), "--format=original"]) == 0
    names = torch.load(tmp_path / "out" / "vae.pth", weights_only=True).keys()
    assert {"conv1.weight", "conv2.weight", "encoder.conv1.weight", "decoder.head.2.bias"} <= names
    back = load_vae(str(tmp_path / "out" / "vae.pth"))
    assert equal(back.params, load_vae(str(published)).params)
    # An export may be replaced by another; a folder that vaejax did not write may not.
    assert export([str(published), str(tmp_path / "out"), "--format=diffusers"]) == 0
    assert export([str(published), str(tmp_path / "out"), "--format=vaejax"]) == 0
    assert equal(load_vae(str(tmp_path / "out")).params, back.params)
    assert export([str(tmp_path / "out"), str(published), "--format=diffusers"]) == 2


def test_bfloat16_weights_are_those_of_pytorch_rounded(published, tmp_path):
    assert export([str(published), str(tmp_path / "out"), "--format=diffusers", "--dtype=bfloat16"]) == 0
    read = load_vae(str(tmp_path / "out"))
    for path, leaf in flatten_dict(load_vae(str(published)).params).items():
        rounded = torch.from_numpy(leaf.copy()).bfloat16().float().numpy()
        np.testing.assert_array_equal(flatten_dict(read.params)[path], rounded)


def test_another_family_is_refused(tmp_path, capsys):
    model, params = randomized()
    (tmp_path / "vae").mkdir()
    params = jax.tree.map(np.asarray, params)
    save_vae(tmp_path / "vae", TrainedVAE("", model.architecture, params, None, None, 3, fingerprint(params)))
    assert export([str(tmp_path / "vae"), str(tmp_path / "out"), "--format=diffusers"]) == 2
    assert "--format=diffusers; accepted: a model of family wan" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert config["architecture"]["family"] == "vaejax"
