"""Converts PyTorch tensors, Pillow images, and lists of either to arrays.

Neither library is imported to recognize its objects: they exist only if the caller has imported the library.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vaejax.errors import one_line


def array_of(x: Any, channels: int = 3) -> np.ndarray | jax.Array:
    """Converts to a NumPy array; a JAX array is returned as it is.

    A tensor may be on any device and require gradients; its axes keep their order. An image becomes uint8
    (H, W, C) as the photo reader has it: upright, sRGB, with transparent pixels over white if C is 3, and
    with alpha if C is 4. A list of tensors or images gets a new first axis.

    Args:
      x: the array, tensor, image or list.
      channels: number C of channels of an image.

    Raises:
      ValueError: if an image cannot be read or has fewer channels, or the items of a list have different
        shapes.
    """
    if isinstance(x, jax.Array):
        return x
    if _is_a(x, "torch", "Tensor"):
        # NumPy has no bfloat16, and encoding and decoding convert to float32 in any case.
        return (x.float() if x.is_floating_point() else x).numpy(force=True)
    if _is_a(x, "PIL.Image", "Image"):
        return _pixels_of(x, channels)
    first = x
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if first is x or not (_is_a(first, "torch", "Tensor") or _is_a(first, "PIL.Image", "Image")):
        return np.asarray(x)
    parts = [array_of(part, channels) for part in x]
    shapes = {part.shape for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"the items of a list have shapes {sorted(shapes)}; accepted: items of one shape")
    return np.stack(parts)


def check_channels_last(shape: Sequence[int], channels: int = 3) -> None:
    """Raises ValueError if frames of this shape seem to have their channels first, as in PyTorch."""
    axes = len(shape)
    places = [axis for axis in (axes - 3, axes - 4) if axis >= 0 and shape[axis] == channels]
    if shape[-1] <= max(4, channels) or not places:  # e.g. RGBA instead of RGB is a different mistake
        return
    order = ", ".join(str(axis) for axis in (*(a for a in range(axes) if a != places[0]), places[0]))
    raise ValueError(
        f"frames have shape {tuple(shape)}, which looks like channels first; accepted: channels last:"
        f" x.permute({order}) in PyTorch, x.transpose({order}) in NumPy and JAX"
    )


def _is_a(x: Any, module: str, name: str) -> bool:
    """Whether `x` is an instance of a class, without importing the class."""
    return isinstance(x, getattr(sys.modules.get(module), name, ()))


def _pixels_of(image: Any, channels: int) -> np.ndarray:
    from vaejax.data import photo  # here, because it imports Pillow
    from vaejax.data.crop import MEDIA_CHANNELS

    if channels not in MEDIA_CHANNELS:
        raise ValueError(f"a Pillow image has no {channels} channels; accepted: an array that has them")
    try:
        return photo.read_image(image, channels)
    except Exception as error:  # for damaged files, Pillow raises exceptions of any type
        raise ValueError(
            f"an image cannot be read: {one_line(error)}; accepted: an undamaged image"
        ) from error
