"""Converts PyTorch tensors, Pillow images, and lists of either to arrays.

Neither library is imported to recognize its objects: they exist only if the caller has imported the library.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vaejax.errors import one_line


def array_of(x: Any) -> np.ndarray | jax.Array:
    """Converts to a NumPy array; a JAX array is returned as it is.

    A tensor may be on any device and require gradients; its axes keep their order. An image becomes uint8
    (H, W, 3) as the photo reader has it: upright, sRGB, transparent pixels over white. A list of tensors or
    images gets a new first axis.

    Raises:
      ValueError: if an image cannot be read, or the items of a list have different shapes.
    """
    if isinstance(x, jax.Array):
        return x
    if _is_a(x, "torch", "Tensor"):
        # NumPy has no bfloat16, and encoding and decoding convert to float32 in any case.
        return (x.float() if x.is_floating_point() else x).numpy(force=True)
    if _is_a(x, "PIL.Image", "Image"):
        return _pixels_of(x)
    first = x
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if first is x or not (_is_a(first, "torch", "Tensor") or _is_a(first, "PIL.Image", "Image")):
        return np.asarray(x)
    parts = [array_of(part) for part in x]
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"the items of a list have shapes {sorted(shapes)}; accepted: items of one shape")
    return np.stack(parts)


def check_channels_last(shape: Sequence[int]) -> None:
    """Raises ValueError if frames of this shape seem to have their 3 channels first, as in PyTorch."""
    axes = len(shape)
    places = [axis for axis in (axes - 3, axes - 4) if axis >= 0 and shape[axis] == 3]
    if shape[-1] <= 4 or not places:  # 4 channels last are a different mistake
        return
    order = ", ".join(str(axis) for axis in (*(a for a in range(axes) if a != places[0]), places[0]))
    raise ValueError(
        f"frames have shape {tuple(shape)}, which looks like channels first; accepted: channels last:"
        f" x.permute({order}) in PyTorch, x.transpose({order}) in NumPy and JAX"
    )


def _is_a(x: Any, module: str, name: str) -> bool:
    """Whether `x` is an instance of a class, without importing the class."""
    return isinstance(x, getattr(sys.modules.get(module), name, ()))


def _pixels_of(image: Any) -> np.ndarray:
    from vaejax.data import photo  # here, because it imports Pillow

    try:
        return photo.read_image(image)
    except Exception as error:  # for damaged files, Pillow raises exceptions of any type
        raise ValueError(
            f"an image cannot be read: {one_line(error)}; accepted: an undamaged image"
        ) from error
