"""Fixed classifiers as folded layers: each convolution has taken in the batch normalisation after it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

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


def from_params(params: dict) -> Layers:
    """Loaded parameters, {name: {'kernel', 'bias'}}, as what a network asks for layers."""
    return lambda name, shape: params[name]
