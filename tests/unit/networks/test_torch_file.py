"""Weight files of PyTorch are read as PyTorch reads them, without it, and nothing in them runs."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from vaejax.networks import torch_file, weights

torch = pytest.importorskip("torch", reason="not in the test extra: a plain torch can pull gigabytes")
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def state_dict():
    """Tensors of every kind that a state dict has."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 4, generator=generator)
    whole = torch.arange(-3, 9)
    state = {
        "plain": x,
        "transposed": x.permute(2, 0, 1),
        "strided": x[1::2, ::3, 1:],
        "again": x[3],
        "expanded": x[0, 0].expand(7, 4),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "double": x.double(),
        "half": x.half(),
        "bfloat16": x.bfloat16(),
        "parameter": torch.nn.Parameter(x + 1),
        "bool": whole > 0,
    }
    return state | {str(t): whole.abs().to(t) for t in (torch.uint8, torch.int8, torch.int16, torch.int32)}


def saved(path, value, zipped=True):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def refused(path, reason, shapes=None):
    with pytest.raises(weights.BadWeights, match=reason) as error:
        torch_file.load(path, shapes or {"a": (2, 3)})
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@FORMATS
def test_every_tensor_is_pytorch_s(tmp_path, zipped):
    state = state_dict()
    read = torch_file.read(saved(tmp_path / "file.pth", state, zipped))
    assert list(read) == list(state)
    for name, tensor in state.items():
        tensor = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()
        assert read[name].dtype == tensor.dtype, name
        np.testing.assert_array_equal(read[name], tensor, name)


@FORMATS
def test_a_module_s_state_is_read_as_float32_and_the_rest_passed_over(tmp_path, zipped):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5), torch.nn.BatchNorm2d(4)).half()
    path = saved(tmp_path / "file.pth", module.state_dict(), zipped)
    got = torch_file.load(path, {"0.weight": (4, 3, 5, 5), "1.running_var": (4,)})
    assert set(got) == {"0.weight", "1.running_var"} and got["0.weight"].dtype == np.float32
    np.testing.assert_array_equal(got["0.weight"], module[0].weight.detach().float().numpy())


@FORMATS
def test_other_names_and_shapes_are_refused(tmp_path, zipped):
    path = saved(tmp_path / "file.pth", {"a": torch.ones(3, 2), "n": torch.tensor([1])}, zipped)
    refused(path, r"a is float32 \(3, 2\); accepted: float \(2, 3\)")
    refused(path, r"n is int64 \(1,\); accepted: float \(1,\)", {"n": (1,)})
    refused(path, r"lacks 'b' of the 2 required arrays", {"a": (3, 2), "b": (1,)})
    refused(path, r"lacks 'b' and 1 more of the 2 required arrays", {"b": (3, 2), "c": (1,)})
    infinite = saved(tmp_path / "infinite.pth", {"a": torch.full((2, 3), torch.inf)}, zipped)
    refused(infinite, "a holds values that are not finite")


class Command:
    def __reduce__(self):
        return os.system, ("exit 1",)


@FORMATS
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": Command()}, r"refers to (posix|nt)\.system; accepted: a state dict of dense tensors only"),
        (torch.nn.Linear(1, 1), r"refers to torch\.nn"),
        ({"a": torch.ones(2, 3).to_sparse()}, "refers to torch"),
        (torch.ones(2, 3), "is not a state dict"),
        ({"a": [torch.ones(2, 3)]}, "is not a state dict"),
    ],
)
def test_a_file_that_holds_more_is_refused_before_it_runs(tmp_path, zipped, value, reason):
    refused(saved(tmp_path / "file.pth", value, zipped), reason)


@FORMATS
def test_truncated_files_are_refused(tmp_path, zipped):
    whole = saved(tmp_path / "whole.pth", {"a": torch.ones(2, 3)}, zipped).read_bytes()
    path = tmp_path / "part.pth"
    for size in (0, 10, 60, len(whole) // 2, len(whole) - 4):
        path.write_bytes(whole[:size])
        refused(path, "truncated|damaged|not written by torch.save")


def test_other_files_are_refused(tmp_path):
    refused(tmp_path / "nowhere", "No such file")
    path = tmp_path / "other"
    path.write_bytes(pickle.dumps({"a": np.ones((2, 3))}))
    refused(path, "not written by torch.save")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "")
    refused(path, r"a zip without data\.pkl")


def rewritten(path, change):
    """The zip with its members passed through `change(name, bytes) -> bytes, compression`."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data, compression = change(name, old.read(name))
            new.writestr(name, data, compression)
    path.write_bytes(out.getvalue())
    return path


def test_a_tensor_cannot_reach_outside_of_its_storage(tmp_path):
    path = saved(tmp_path / "file.pth", {"a": torch.ones(2, 3)})

    def taller(name, data):  # the shape (2, 3) is two small integers in the pickle
        wanted = data.replace(b"K\x02K\x03", b"K\x09K\x03") if name.endswith("data.pkl") else data
        return wanted, zipfile.ZIP_STORED

    refused(rewritten(path, taller), r"a tensor of shape \(9, 3\) exceeds its storage of 6 numbers")


def test_a_pickle_cannot_ask_for_memory_that_it_does_not_fill(tmp_path):
    path = saved(tmp_path / "file.pth", {"a": torch.ones(2, 3)})

    def far(name, data):  # what is remembered first is put at place 2,000,000,000
        place = b"r" + (2_000_000_000).to_bytes(4, "little")
        wanted = data.replace(b"q\x00", place, 1) if name.endswith("data.pkl") else data
        return wanted, zipfile.ZIP_STORED

    refused(rewritten(path, far), "a memo index of its pickle exceeds")


def test_storages_are_of_the_size_that_the_pickle_says_and_not_compressed(tmp_path):
    path = saved(tmp_path / "file.pth", {"a": torch.ones(2, 3)})
    short = rewritten(path, lambda name, data: (data[:8] if "/data/" in name else data, zipfile.ZIP_STORED))
    refused(short, "its storage 0 has 8 of 24 bytes")
    path = saved(tmp_path / "file.pth", {"a": torch.ones(2, 3)})
    packed = rewritten(path, lambda name, data: (data, zipfile.ZIP_DEFLATED))
    refused(packed, r"its data\.pkl is compressed")


def test_big_endian_files_are_refused(tmp_path):
    path = saved(tmp_path / "file.pth", {"a": torch.ones(2, 3)})
    big = rewritten(path, lambda name, data: (b"big" if "byteorder" in name else data, zipfile.ZIP_STORED))
    refused(big, "not little-endian")
