"""Surgery on trained parameters: a model of RGB becomes one of RGB and alpha, or of any more channels."""

import functools
from typing import Any

import jax
import numpy as np

from vaejax.models.autoencoder import Architecture

Params = dict[str, Any]


def widened(params: Params, shapes: Params, old: Architecture, new: Architecture) -> Params:
    """Adds pixel channels to the parameters of an autoencoder.

    Weights from and to the new channels are 0. So the latents and the old channels of a reconstruction stay
    as they are, whatever the new channels contain, and the new channels of the reconstruction are 0.

    Args:
      params: the parameters, NumPy arrays.
      shapes: the parameters of `new`, or their shapes.
      old: the architecture of `params`.
      new: `old` with more pixel channels.
    """
    result = {}
    for half, tree in params.items():
        order = getattr(new, half).channels_fastest
        widen = functools.partial(
            with_channels, old=old.pixel_channels, new=new.pixel_channels, channels_fastest=order
        )
        result[half] = jax.tree.map(widen, tree, shapes[half])
    return result


def with_channels(array: np.ndarray, like: Any, old: int, new: int, channels_fastest: bool) -> np.ndarray:
    """Inserts zeros for new pixel channels along the axes whose sizes differ.

    Args:
      array: an array with n · old entries along each of these axes, for pixels at n positions.
      like: an array, or its shape, with n · new entries along them.
      old: number of pixel channels in `array`.
      new: number of pixel channels in the result.
      channels_fastest: whether the entries are ordered (position, channel) and not (channel, position).
    """
    for axis, (size, wanted) in enumerate(zip(array.shape, like.shape, strict=True)):
        if size == wanted:
            continue
        if size % old or wanted != size // old * new:
            raise ValueError(f"an array of shape {array.shape} cannot become {like.shape}")
        order, place = ((-1, old), axis + 1) if channels_fastest else ((old, -1), axis)
        split = array.reshape(*array.shape[:axis], *order, *array.shape[axis + 1 :])
        room = [(0, new - old if i == place else 0) for i in range(split.ndim)]
        array = np.pad(split, room).reshape(*array.shape[:axis], wanted, *array.shape[axis + 1 :])
    return array
