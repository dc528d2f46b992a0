"""Pretrained image networks that give one feature per patch of an image, for `losses/alignment.py`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vaejax.errors import InputError
from vaejax.networks import dinov2, efficientnet
from vaejax.networks.weights import BadWeights


class GridNetwork(NamedTuple):
    """A network.

    Attributes:
      stride: pixels per feature, along height and width.
      load: loads the parameters from a weight file.
      features: maps parameters and images (N, H, W, 3) in [-1, 1] to features (N, H/stride, W/stride, d).
    """

    stride: int
    load: Callable[[str], dict]
    features: Callable[[dict, jax.Array], jax.Array]


NETWORKS = {
    "efficientnet": GridNetwork(efficientnet.GRID_STRIDE, efficientnet.load, efficientnet.grid_features),
    "dinov2": GridNetwork(dinov2.PATCH, dinov2.load, dinov2.features),
}


def width(network: str, params: dict) -> int:
    """The number d of features of a network with these parameters."""
    stride = NETWORKS[network].stride
    image = jax.ShapeDtypeStruct((1, stride, stride, 3), jnp.float32)
    return jax.eval_shape(NETWORKS[network].features, params, image).shape[-1]


def load_for(loss: Any) -> dict:
    """Loads the weights that a run's alignment needs.

    Args:
      loss: section `loss` of the configuration.

    Returns:
      Parameters; {} if loss.weights.alignment is 0.

    Raises:
      InputError: if the weight file cannot be used.
    """
    if not loss.weights.alignment:
        return {}
    try:
        return NETWORKS[loss.alignment.network].load(loss.alignment.weights)
    except BadWeights as error:
        raise InputError(f"loss.alignment.weights: {error}") from error
