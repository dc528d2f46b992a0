"""Names of Wan's tensors, against diffusers and against a skeleton of Wan's own modules."""

import itertools

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not in the test extra")
pytest.importorskip("diffusers", reason="diffusers is not in the test extra")
import torch
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from torch import nn

from tests.support.wan import design, in_diffusers, pair, parameter_shapes
from vaejax.models import wan_names
from vaejax.models.wan import SIZES, WanDesign

DESIGNS = {
    size: WanDesign(**SIZES[size], pixel_channels=3, remat=(), dtype="float32")
    for size in ("wan2.1", "wan2.2")
}


@pytest.fixture(params=DESIGNS, scope="module")
def published(request):
    """A published design and the shapes of its parameters."""
    return DESIGNS[request.param], parameter_shapes(DESIGNS[request.param])


def layout(path, shape):
    """The shape of a parameter in the layout of PyTorch."""
    return wan_names.to_torch(path, np.broadcast_to(np.float32(0), shape)).shape


def test_the_tensors_are_those_of_diffusers(published):
    d, shapes = published
    with torch.device("meta"):
        theirs = {name: tuple(tensor.shape) for name, tensor in in_diffusers(d).state_dict().items()}
    assert {wan_names.to_diffusers(path): layout(path, shape) for path, shape in shapes.items()} == theirs
    assert {wan_names.from_diffusers(name) for name in theirs} == shapes.keys()


def test_the_tensors_are_those_of_wan(published):
    d, shapes = published
    with torch.device("meta"):
        theirs = {name: tuple(tensor.shape) for name, tensor in Skeleton(d).state_dict().items()}
    assert {wan_names.to_original(path, d): layout(path, shape) for path, shape in shapes.items()} == theirs


def test_diffusers_reads_the_names_of_wan_2_1_alike():
    d = DESIGNS["wan2.1"]
    ours = {wan_names.to_original(path, d): wan_names.to_diffusers(path) for path in parameter_shapes(d)}
    assert {name: name for name in ours.values()} == {
        name: ours[original] for name, original in convert_wan_vae_to_diffusers({n: n for n in ours}).items()
    }


@pytest.mark.parametrize("version", ["2.1", "2.2"])
def test_a_tensor_survives_both_layouts(version):
    state = pair(design(version))[0].state_dict()
    for name, tensor in state.items():
        path = wan_names.from_diffusers(name)
        ours = wan_names.from_torch(path, tensor.numpy())
        np.testing.assert_array_equal(wan_names.to_torch(path, ours), tensor.numpy())


class Gamma(nn.Module):
    """The learned scale of a normalization."""

    def __init__(self, width, ones=3):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, *[1] * ones))


class Block(nn.Module):
    """The tensors of a residual block."""

    def __init__(self, before, after):
        super().__init__()
        self.residual = nn.Sequential(
            Gamma(before),
            nn.SiLU(),
            nn.Conv3d(before, after, 3),
            Gamma(after),
            nn.SiLU(),
            nn.Dropout(),
            nn.Conv3d(after, after, 3),
        )
        if before != after:
            self.shortcut = nn.Conv3d(before, after, 1)


class Attention(nn.Module):
    """The tensors of attention within a frame."""

    def __init__(self, width):
        super().__init__()
        self.norm = Gamma(width, ones=2)
        self.to_qkv, self.proj = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)


class Resample(nn.Module):
    """The tensors of a change of resolution."""

    def __init__(self, before, after, over_time):
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(before, after, 3))
        if over_time:
            self.time_conv = nn.Conv3d(before, over_time * before, (3, 1, 1))


class Level(nn.Module):
    """A level of Wan 2.2, which nests its modules once more."""

    def __init__(self, name, modules):
        super().__init__()
        setattr(self, name, nn.Sequential(*modules))


class Half(nn.Module):
    """The tensors of an encoder or decoder."""

    def __init__(self, name, inputs, outputs, first, last, levels, nested):
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, first, 3)
        middle = levels[-1][0][-1] if name == "downsamples" else first
        self.middle = nn.Sequential(Block(middle, middle), Attention(middle), Block(middle, middle))
        modules = []
        for blocks, change in levels:
            level = [Block(*pair) for pair in itertools.pairwise(blocks)] + (
                [Resample(*change)] if change else []
            )
            modules += [Level(name, level)] if nested else level
        setattr(self, name, nn.Sequential(*modules))
        self.head = nn.Sequential(Gamma(last), nn.SiLU(), nn.Conv3d(last, outputs, 3))


class Skeleton(nn.Module):
    """The tensors of Wan's own autoencoder, in modules nested like Wan's; it computes nothing."""

    def __init__(self, d):
        super().__init__()
        down, up = d.encoder_widths, d.decoder_widths[::-1]
        changes = [*d.temporal_downsample, None]
        encoder, before = [], down[0]
        for width, time in zip(down, changes, strict=True):
            change = None if time is None else (width, width, int(time))
            encoder.append(([before] + [width] * d.encoder_blocks, change))
            before = width
        decoder, before = [], up[0]
        for width, time in zip(up, [*d.temporal_downsample[::-1], None], strict=True):
            after = width if d.averaging or time is None else width // 2
            decoder.append(
                ([before] + [width] * d.decoder_blocks, None if time is None else (width, after, 2 * time))
            )
            before = after
        pixels, c = d.pixel_channels * d.patch**2, d.latent_channels
        self.encoder = Half("downsamples", pixels, 2 * c, down[0], down[-1], encoder, d.averaging)
        self.conv1, self.conv2 = nn.Conv3d(2 * c, 2 * c, 1), nn.Conv3d(c, c, 1)
        self.decoder = Half("upsamples", c, pixels, up[0], up[-1], decoder, d.averaging)
