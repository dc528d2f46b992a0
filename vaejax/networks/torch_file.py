"""Safe loading of PyTorch weight files without PyTorch: no code in the files can run."""

import collections
import io
import math
import os
import pickle
import pickletools
import sys
import zipfile
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

import numpy as np

from vaejax.networks import weights
from vaejax.networks.weights import BadWeights

_MAGIC, _PROTOCOL = (
    0x1950A86A20F9469CFC6C,
    1001,
)  # first two numbers of a file in the legacy format, from before PyTorch 1.6
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_BFLOAT16 = "bfloat16"  # NumPy lacks this type; its bits are the upper half of a float32
_STORAGES: Mapping[str, str] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": _BFLOAT16,
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


def load(path: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Loads arrays from a state dict that `torch.save(module.state_dict(), path)` wrote.

    Args:
      path: file in the zip format, or in the legacy format of PyTorch before 1.6.
      shapes: shapes of the required arrays, by name; other arrays in the file are ignored.

    Returns:
      Float32 arrays by name.

    Raises:
      BadWeights: if the file is missing, damaged or not a state dict, or if a required array is missing, has
        the wrong shape, or does not consist of finite floating-point numbers.
    """
    state = read(path)
    missing = [name for name in shapes if name not in state]
    if missing:
        names = repr(missing[0]) + (f" and {len(missing) - 1} more" if missing[1:] else "")
        raise BadWeights(
            f"{path}: lacks {names} of the {len(shapes)} required arrays; accepted: a file with all of them"
        )
    return weights.check({name: state[name] for name in shapes}, shapes, f"{path}: ")


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads every tensor of a state dict in its own data type, except that bfloat16 becomes float32.

    Raises:
      BadWeights: if the file is missing or damaged, or is not a state dict of dense little-endian tensors.
    """
    with weights.reading(path) as file:
        state, storages = (_read_zip if zipfile.is_zipfile(file) else _read_legacy)(file)
        return {name: _array(view, storages) for name, view in state.items()}


class _Storage(NamedTuple):
    """A pickle's reference to a block of numbers that is stored elsewhere in the file."""

    key: str
    dtype: str
    numbers: int

    @property
    def bytes(self) -> int:
        return self.numbers * (2 if self.dtype == _BFLOAT16 else np.dtype(self.dtype).itemsize)


class _View(NamedTuple):
    """A tensor as a strided view of a storage; offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
    return _View(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(view, requires_grad=True, hooks=None):
    return view


_GLOBALS: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): name for name in _STORAGES},  # the class is never called, so a name will do
}


class _Tensors(pickle.Unpickler):
    """Unpickles tensors as `_View`s; classes and functions not in _GLOBALS are refused, not imported."""

    def __init__(self, file: IO[bytes]):
        super().__init__(_next_pickle(file), encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise BadWeights(f"refers to {module}.{name}; accepted: a state dict of dense tensors only")
        return _GLOBALS[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, count, *view = pid
        if kind != "storage" or view not in ([], [None]):
            raise BadWeights(f"refers to a {kind}; accepted: a state dict of dense tensors only")
        storage = _Storage(str(key), _STORAGES[storage_type], int(count))
        if self.storages.setdefault(storage.key, storage) != storage or storage.numbers < 0:
            raise BadWeights(f"damaged: its storage {key} has two sizes or types")
        return storage

    def state(self) -> dict[str, _View]:
        tree = self.load()
        if not isinstance(tree, dict) or not all(isinstance(view, _View) for view in tree.values()):
            raise BadWeights("is not a state dict; accepted: a dictionary of tensors by name")
        return tree


def _next_pickle(file: IO[bytes]) -> io.BytesIO:
    """Reads the pickle that begins at the file's position, and leaves the position at the end of the pickle.

    Raises:
      BadWeights: if a memo index exceeds the size of the pickle, because Python would allocate memory for
        that many entries.
    """
    start = file.tell()
    indices = [index or 0 for opcode, index, _ in pickletools.genops(file) if opcode.name in _PUTS]
    end = file.tell()
    if max(indices, default=0) > end - start:
        raise BadWeights("damaged: a memo index of its pickle exceeds the pickle's size")
    file.seek(start)
    return io.BytesIO(file.read(end - start))


def _read_zip(file: io.BufferedReader) -> tuple[dict[str, _View], dict[str, np.ndarray]]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        root = next((name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")), None)
        if root is None:
            raise BadWeights("is a zip without data.pkl; accepted: a file written by torch.save")
        order = archive.read(f"{root}byteorder").decode() if f"{root}byteorder" in names else "little"
        _check_order(order == "little")

        def member(name: str) -> bytes:
            entry = archive.getinfo(root + name)
            # PyTorch does not compress. A few compressed bytes could expand to more than fits in memory.
            if entry.compress_type != zipfile.ZIP_STORED:
                raise BadWeights(f"its {name} is compressed; accepted: a file written by torch.save")
            return archive.read(entry)

        unpickler = _Tensors(io.BytesIO(member("data.pkl")))
        state = unpickler.state()
        storages = unpickler.storages.values()
        return state, {each.key: _numbers(member(f"data/{each.key}"), each) for each in storages}


def _read_legacy(file: io.BufferedReader) -> tuple[dict[str, _View], dict[str, np.ndarray]]:
    """Reads five pickles (magic number, version, byte order, tensors, storage keys), then the numbers."""
    file.seek(0)
    try:
        magic = _Tensors(file).load()
    except Exception:
        magic = None
    if magic != _MAGIC:
        raise BadWeights(
            "truncated or not written by torch.save; accepted: the zip or legacy format of torch.save"
        )
    version, machine = _Tensors(file).load(), _Tensors(file).load()
    if version != _PROTOCOL:
        raise BadWeights(f"has version {version} of the legacy format; accepted: version {_PROTOCOL}")
    _check_order(machine["little_endian"])
    unpickler = _Tensors(file)
    state, storages = unpickler.state(), {}
    for key in _Tensors(file).load():
        storage = unpickler.storages[key]
        if int.from_bytes(file.read(8), "little") != storage.numbers:
            raise BadWeights(f"truncated, or its storage {key} does not hold {storage.numbers} numbers")
        storages[key] = _numbers(file.read(storage.bytes), storage)
    return state, storages


def _check_order(little: bool) -> None:
    if not little or sys.byteorder != "little":
        raise BadWeights("the file or this machine is not little-endian; accepted: little-endian for both")


def _numbers(data: bytes, storage: _Storage) -> np.ndarray:
    if len(data) != storage.bytes:
        raise BadWeights(f"truncated: its storage {storage.key} has {len(data)} of {storage.bytes} bytes")
    if storage.dtype == _BFLOAT16:
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, storage.dtype)


def _array(view: _View, storages: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the tensor as a read-only view of its storage."""
    numbers = storages[view.storage.key]
    shape, strides = view.shape, view.strides
    last = view.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    # A view beyond the storage would read memory that does not belong to it.
    if min((view.offset, *shape, *strides)) < 0 or (math.prod(shape) and last >= len(numbers)):
        raise BadWeights(f"damaged: a tensor of shape {shape} exceeds its storage of {len(numbers)} numbers")
    if not math.prod(shape):
        return np.empty(shape, numbers.dtype)
    steps = [step * numbers.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(numbers[view.offset :], shape, steps, writeable=False)
