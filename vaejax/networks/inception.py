"""Inception v3 for FID (arXiv 1512.00567, 1706.08500): TensorFlow's model of 2015-12-05.

The user supplies the weights in pytorch-fid's conversion to PyTorch, pt_inception-2015-12-05-6726825d.pth.
"""

import os

import jax
import jax.numpy as jnp

from vaejax.models.conv import convolve
from vaejax.networks import batch_norm as folded
from vaejax.networks.batch_norm import Layers
from vaejax.networks.weights import BadWeights

SIZE = 299  # height and width of the network's input in pixels
FEATURES = 2048
_FILE = "pytorch-fid's pt_inception-2015-12-05-6726825d.pth"


def load(path: str | os.PathLike) -> dict:
    """Loads the weights, with batch normalizations folded.

    Args:
      path: state dict with pytorch-fid's names. Torchvision's weights are refused, because they come from a
        different training run, and distances between their features are not FID.

    Returns:
      Float32 parameters {layer: {'kernel': array, 'bias': array}}.

    Raises:
      weights.BadWeights: if `path` is '', or the file is missing or damaged or does not hold this network.
    """
    if not path:
        raise BadWeights("FID's Inception: no weight file was given; accepted: the path of " + _FILE)
    names = lambda name: (f"{name}.conv", f"{name}.bn")  # noqa: E731
    # The classifier is not used; only its shape is checked, because torchvision's file has 1000 classes.
    last = {"fc.weight": (1008, FEATURES)}
    return folded.from_torch(path, _network, (1, SIZE, SIZE, 3), names, last)[0]


def features(params: dict, x: jax.Array) -> jax.Array:
    """Computes the last activations, averaged over the image.

    Args:
      params: parameters from `load`.
      x: images (N, 299, 299, 3) in [-1, 1].

    Returns:
      Nonnegative float32 features (N, 2048).

    Raises:
      ValueError: if x does not have the shape given above.
    """
    if x.ndim != 4 or x.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"images of shape {x.shape}; accepted: (N, {SIZE}, {SIZE}, 3)")
    with jax.default_matmul_precision("highest"):  # accelerators use fewer bits by default
        return _network(folded.from_params(params), x.astype(jnp.float32))


def _network(layers: Layers, x: jax.Array) -> jax.Array:
    block = _Block(layers, "")
    x = block.conv("Conv2d_1a_3x3", x, 32, 3, stride=2)
    x = block.conv("Conv2d_2a_3x3", x, 32, 3, same=False)
    x = block.conv("Conv2d_2b_3x3", x, 64, 3)
    x = _max_pool(x, 2)
    x = block.conv("Conv2d_3b_1x1", x, 80)
    x = block.conv("Conv2d_4a_3x3", x, 192, 3, same=False)
    x = _max_pool(x, 2)
    for name, pool in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = _Block(layers, name).a(x, pool)
    x = _Block(layers, "Mixed_6a").b(x)
    for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = _Block(layers, name).c(x, width)
    x = _Block(layers, "Mixed_7a").d(x)
    x = _Block(layers, "Mixed_7b").e(x, _average_pool(x))
    # The trained network has max pooling here; the figure in arXiv 1512.00567 shows average pooling.
    x = _Block(layers, "Mixed_7c").e(x, _max_pool(x, 1))
    return x.mean((1, 2))


class _Block:
    """The Inception blocks, one method for each kind, `a` to `e`; layers are named as in torchvision."""

    def __init__(self, layers: Layers, name: str):
        self.layers, self.name = layers, name

    def conv(self, name, x, features, size: int | tuple[int, int] = 1, stride=1, same=True):
        """Applies a convolution, bias and ReLU, padded if `same` is true and the stride is 1."""
        high, wide = size if isinstance(size, tuple) else (size, size)
        layer = self.layers(f"{self.name}.{name}".strip("."), (high, wide, x.shape[-1], features))
        y = convolve(x[:, None], layer["kernel"][None], (1, stride, stride), same=same and stride == 1)
        return jax.nn.relu(y[:, 0] + layer["bias"])

    def chain(self, name, x, *steps):
        """Applies convolutions in sequence; each step is (features, size) or (features, size, stride)."""
        for number, step in enumerate(steps, 1):
            x = self.conv(f"{name}_{number}", x, *step)
        return x

    def a(self, x, pool):
        return _side_by_side(
            self.conv("branch1x1", x, 64),
            self.chain("branch5x5", x, (48, 1), (64, 5)),
            self.chain("branch3x3dbl", x, (64, 1), (96, 3), (96, 3)),
            self.conv("branch_pool", _average_pool(x), pool),
        )

    def b(self, x):
        return _side_by_side(
            self.conv("branch3x3", x, 384, 3, stride=2),
            self.chain("branch3x3dbl", x, (64, 1), (96, 3), (96, 3, 2)),
            _max_pool(x, 2),
        )

    def c(self, x, width):
        row, column = (1, 7), (7, 1)
        there_and_back = ((width, column), (width, row), (width, column), (192, row))
        return _side_by_side(
            self.conv("branch1x1", x, 192),
            self.chain("branch7x7", x, (width, 1), (width, row), (192, column)),
            self.chain("branch7x7dbl", x, (width, 1), *there_and_back),
            self.conv("branch_pool", _average_pool(x), 192),
        )

    def d(self, x):
        return _side_by_side(
            self.chain("branch3x3", x, (192, 1), (320, 3, 2)),
            self.chain("branch7x7x3", x, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
            _max_pool(x, 2),
        )

    def e(self, x, pooled):
        once, twice = self.conv("branch3x3_1", x, 384), self.chain("branch3x3dbl", x, (448, 1), (384, 3))
        return _side_by_side(
            self.conv("branch1x1", x, 320),
            self.conv("branch3x3_2a", once, 384, (1, 3)),
            self.conv("branch3x3_2b", once, 384, (3, 1)),
            self.conv("branch3x3dbl_3a", twice, 384, (1, 3)),
            self.conv("branch3x3dbl_3b", twice, 384, (3, 1)),
            self.conv("branch_pool", pooled, 192),
        )


def _side_by_side(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


def _max_pool(x: jax.Array, stride: int) -> jax.Array:
    """Takes the maximum over 3x3 pixels; pads only if the stride is 1."""
    padding = "SAME" if stride == 1 else "VALID"
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


def _average_pool(x: jax.Array) -> jax.Array:
    """Averages over the 3x3 pixels around each pixel; padding does not count."""

    def total(x: jax.Array) -> jax.Array:
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

    return total(x) / total(jnp.ones_like(x[:1, :, :, :1]))
