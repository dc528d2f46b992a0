"""Fixed classifiers as folded layers: each convolution has taken in the batch normalisation after it."""

import os
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.networks import torch_file

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
# Layer by name and kernel shape: {'kernel': of that shape, 'bias': (features,)}.
Layers = Callable[[str, tuple[int, ...]], dict]


def fold(
    kernel: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    shift: np.ndarray,
    scale: np.ndarray | float = 1.0,
    epsilon: float = 1e-3,
) -> dict:
    """A convolution and the batch normalisation after it, in inference, as one convolution with a bias.

    Args:
      kernel: (..., features).
      mean: of the training set, (features,).
      variance: likewise.
      shift: learned, (features,).
      scale: likewise, or 1.
      epsilon: added to the variance.

    Returns:
      {'kernel': like `kernel`, 'bias': (features,)}, float32; worked out in float64.
    """
    gain = np.float64(scale) / np.sqrt(np.float64(variance) + epsilon)
    bias = np.float64(shift) - np.float64(mean) * gain
    return {"kernel": np.float32(kernel * gain), "bias": np.float32(bias)}


def kernel_shapes(network: Callable[[Layers, jax.Array], jax.Array], x: tuple[int, ...]) -> dict:
    """The layers that a network asks for when it sees an input of shape `x`: names and kernel shapes."""
    found = {}

    def layers(name: str, shape: tuple[int, ...]) -> dict:
        found[name] = shape
        return {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[-1])}

    jax.eval_shape(lambda x: network(layers, x), jax.ShapeDtypeStruct(x, jnp.float32))
    return found


def from_torch(
    path: str | os.PathLike,
    network: Callable[[Layers, jax.Array], jax.Array],
    x: tuple[int, ...],
    names: Callable[[str], tuple[str, str]],
    others: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[dict, dict]:
    """The folded layers of a 2D network whose convolutions and normalisations lie in PyTorch's state dict.

    Args:
      path: the file.
      network: asks for its layers.
      x: the shape of an input.
      names: of a layer's convolution and batch normalisation in the file.
      others: shapes of more arrays to read.

    Returns:
      {layer: {'kernel', 'bias'}}; the other arrays by name, as PyTorch lays them out.

    Raises:
      weights.BadWeights: in one line, if the file is missing, damaged or holds something else.
    """
    kernels, shapes = kernel_shapes(network, x), dict(others or {})
    for name, (*size, before, after) in kernels.items():
        conv, norm = names(name)
        shapes[f"{conv}.weight"] = (after, before, *size)
        shapes |= {f"{norm}.{part}": (after,) for part in _BATCH_NORM}
    state, params = torch_file.load(path, shapes), {}
    for name in kernels:
        conv, norm = names(name)
        scale, shift, mean, variance = (state[f"{norm}.{part}"] for part in _BATCH_NORM)
        params[name] = fold(state[f"{conv}.weight"].transpose(2, 3, 1, 0), mean, variance, shift, scale)
    return params, {name: state[name] for name in others or {}}


def from_params(params: dict) -> Layers:
    """Loaded parameters, {name: {'kernel', 'bias'}}, as what a network asks for layers."""
    return lambda name, shape: params[name]
