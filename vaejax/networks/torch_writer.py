"""Writes PyTorch weight files without PyTorch."""

import os
import pickle
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from vaejax import files

STORAGES = {"float32": b"FloatStorage", "float16": b"HalfStorage", "bfloat16": b"BFloat16Storage"}
ROOT = "archive"  # the folder in the zip


def write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict in the zip format of `torch.save`, which `torch.load(weights_only=True)` reads.

    Args:
      path: file to write, atomically.
      tensors: arrays of float32, float16 or bfloat16 by name.
    """
    with (
        files.atomic_file(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
    ):
        archive.writestr(f"{ROOT}/data.pkl", _pickled(tensors))
        archive.writestr(f"{ROOT}/byteorder", "little")
        for key, array in enumerate(tensors.values()):
            with archive.open(f"{ROOT}/data/{key}", "w", force_zip64=True) as member:
                member.write(np.ascontiguousarray(array).tobytes())
        archive.writestr(f"{ROOT}/version", "3\n")


def _pickled(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of a dictionary of tensors, in protocol 2.

    The opcodes are written out, because Python's pickler would import PyTorch's classes.
    """
    parts = [pickle.PROTO + b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    for key, (name, array) in enumerate(tensors.items()):
        strides = [stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides]
        parts += [
            _text(name),
            _class(b"torch._utils", b"_rebuild_tensor_v2"),
            pickle.MARK,
            pickle.MARK,
            _text("storage"),
            _class(b"torch", STORAGES[array.dtype.name]),
            _text(str(key)),
            _text("cpu"),
            _number(array.size),
            pickle.TUPLE,
            pickle.BINPERSID,
            _number(0),  # offset in the storage
            _numbers(array.shape),
            _numbers(strides),
            pickle.NEWFALSE,  # requires no gradient
            _class(b"collections", b"OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,  # no hooks
            pickle.TUPLE,
            pickle.REDUCE,
        ]
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])


def _class(module: bytes, name: bytes) -> bytes:
    return pickle.GLOBAL + module + b"\n" + name + b"\n"


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    if value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    data = value.to_bytes(9, "little")
    return pickle.LONG1 + bytes([len(data)]) + data


def _numbers(values) -> bytes:
    return pickle.MARK + b"".join(map(_number, values)) + pickle.TUPLE
