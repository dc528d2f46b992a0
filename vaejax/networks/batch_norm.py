"""Folds the batch normalizations of pretrained classifiers into the convolutions before them."""

import os
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.networks import torch_file

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
# A function from a layer's name and kernel shape (..., features) to its parameters: {'kernel': array of that
# shape, 'bias': array (features,)}.
Layers = Callable[[str, tuple[int, ...]], dict]


def fold(
    kernel: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    shift: np.ndarray,
    scale: np.ndarray | float = 1.0,
    epsilon: float = 1e-3,
) -> dict:
    """Folds a batch normalization, in inference mode, into the convolution before it.

    Args:
      kernel: kernel (..., features) of the convolution, which has no bias.
      mean: running mean (features,).
      variance: running variance (features,).
      shift: learned bias (features,) of the normalization.
      scale: learned scale (features,) of the normalization, or 1.
      epsilon: constant that the normalization adds to the variance.

    Returns:
      {'kernel': array of the same shape, 'bias': array (features,)}, computed in float64, stored as float32.
    """
    gain = np.float64(scale) / np.sqrt(np.float64(variance) + epsilon)
    bias = np.float64(shift) - np.float64(mean) * gain
    return {"kernel": np.float32(kernel * gain), "bias": np.float32(bias)}


def kernel_shapes(network: Callable[[Layers, jax.Array], jax.Array], x: tuple[int, ...]) -> dict:
    """Returns {name: kernel shape} of the layers that a network uses on an input of shape `x`."""
    shapes = {}

    def layers(name: str, shape: tuple[int, ...]) -> dict:
        shapes[name] = shape
        return {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[-1])}

    jax.eval_shape(lambda x: network(layers, x), jax.ShapeDtypeStruct(x, jnp.float32))
    return shapes


def from_torch(
    path: str | os.PathLike,
    network: Callable[[Layers, jax.Array], jax.Array],
    x: tuple[int, ...],
    names: Callable[[str], tuple[str, str]],
    others: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[dict, dict]:
    """Loads the folded layers of a 2D network from a PyTorch state dict.

    Args:
      path: weight file.
      network: function that computes the network from `Layers` and an input.
      x: shape of an input.
      names: function from a layer's name to the names of its convolution and batch normalization in the file.
      others: shapes of further arrays to load, by name.

    Returns:
      Parameters {layer: {'kernel': array, 'bias': array}}, and the further arrays by name, laid out as in
      PyTorch.

    Raises:
      weights.BadWeights: if the file is missing or damaged, or does not hold this network.
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
    """Wraps loaded parameters {name: {'kernel', 'bias'}} as the `Layers` of a network."""
    return lambda name, shape: params[name]
