"""The checker of jaxtyping's import hook: beartype, for array annotations only."""

import types
import typing
from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping
import numpy as np


def checked(function: Callable) -> Callable:
    """Checks the shapes and dtypes that a signature declares; pyright checks everything else.

    Constructors stay unchecked: JAX rebuilds a registered dataclass around anything, such as the shardings or
    shapes of its leaves.
    """
    if function.__name__ != "__init__":
        hints = {name: _accepting_numpy(hint) for name, hint in function.__annotations__.items()}
        function.__annotations__ = {name: hint for name, hint in hints.items() if hint is not None}
        function = beartype.beartype(function)
    return function


def _accepting_numpy(hint: Any) -> Any:
    """Returns the hint with NumPy arrays accepted too, as JAX accepts them; None if it holds no array."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        if hint.array_type is jaxtyping.Array:
            return hint.dtype[jaxtyping.Array | np.ndarray, hint.dim_str]
        return hint
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    inner = [_accepting_numpy(part) for part in parts]
    if all(part is None for part in inner):
        return None
    parts = tuple(old if new is None else new for old, new in zip(parts, inner, strict=True))
    return typing.Union[parts] if origin in (typing.Union, types.UnionType) else origin[parts]  # noqa: UP007
