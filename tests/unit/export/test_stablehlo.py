"""StableHLO programs agree with the codec, and their shapes suit the architecture."""

import re

import jax
import numpy as np
import pytest

from tests.support.models import architecture, randomized
from vaejax.codec.codec import Codec
from vaejax.codec.load import TrainedVAE
from vaejax.errors import InputError, TrainingFailed
from vaejax.export import stablehlo, verify


@pytest.mark.variants
@pytest.mark.parametrize(
    "options",
    [{"dtype": "bfloat16"}, {"attention": True, "film": True}],
    ids=["bfloat16", "attention and film"],
)
def test_programs_of_every_kind_of_model_agree_with_the_codec(tmp_path, options):
    model, params = randomized(**options)
    mean, std = np.float32([[0.25, -0.5, 0.0, 1.5], [0.5, 2.0, 1.25, 0.75]])
    one = TrainedVAE("one", model.architecture, jax.tree.map(np.asarray, params), mean, std, 1, "1")
    entry = stablehlo.write(tmp_path, one, (5, 16, 16))
    programs = [stablehlo.read(tmp_path / entry[kind]["file"]) for kind in ("encode", "decode")]
    verify.check_programs(Codec(one), *programs, entry)
    with pytest.raises(TrainingFailed, match="latents differ from the codec's by up to"):
        verify.check_programs(Codec(one._replace(mean=mean + 0.5)), *programs, entry)


@pytest.mark.parametrize(
    "text",
    ["4x64x64", "5x60x64", "5x64x60", "5x64", "0x64x64", "1x8x8", "-3x64x64", "5x64x64x3", "", "5 x64x64"],
)
def test_an_invalid_shape_is_refused(text):
    with pytest.raises(
        InputError, match=re.escape(f"--stablehlo={text}; accepted: TxHxW such as 17x256x256")
    ):
        stablehlo.parse_shapes([text], architecture())


def test_shapes_follow_the_architecture():
    assert stablehlo.parse_shapes(
        ["4x16x20", "1x16x16", "4x16x20"], architecture(spatial_factor=4, temporal_factor=1)
    ) == [
        (4, 16, 20),
        (1, 16, 16),
    ]
