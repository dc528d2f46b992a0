"""A weight file that is written without PyTorch is one of PyTorch's."""

import ml_dtypes
import numpy as np
import pytest

from vaejax.networks import torch_file, torch_writer


def tensors():
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (3, 2, 1, 5, 4), "b": (7,), "scalar": (), "empty": (0, 3)}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["half"] = rng.standard_normal((2, 3)).astype(np.float16)
    arrays["brain"] = rng.standard_normal((2, 3)).astype(ml_dtypes.bfloat16)
    return arrays


def test_pytorch_reads_the_same_values(tmp_path):
    torch = pytest.importorskip("torch")
    torch_writer.write(tmp_path / "x.pth", tensors())
    read = torch.load(tmp_path / "x.pth", weights_only=True)
    assert list(read) == list(tensors())
    for name, array in tensors().items():
        assert str(read[name].dtype) == f"torch.{array.dtype.name}" and read[name].shape == array.shape
        np.testing.assert_array_equal(read[name].float().numpy(), array.astype(np.float32))


def test_vaejax_reads_the_same_values(tmp_path):
    torch_writer.write(tmp_path / "x.pth", tensors())
    read = torch_file.read(tmp_path / "x.pth")
    for name, array in tensors().items():
        np.testing.assert_array_equal(read[name].astype(np.float32), array.astype(np.float32))
