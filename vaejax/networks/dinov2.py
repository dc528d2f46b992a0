"""DINOv2 (arXiv 2304.07193), without or with registers (arXiv 2309.16588): features of patches.

The user supplies the weights of ViT-S/14, B/14 or L/14, published by the original repository or Hugging Face.
"""

import math
import os
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file

from vaejax.networks import torch_file, weights
from vaejax.networks.weights import BadWeights

PATCH = 14  # height and width of a patch in pixels
WIDTHS = (384, 768, 1024)  # features of ViT-S, B and L
REGISTERS = 4
_HEAD = 64  # features of an attention head, in every size
_EPSILON = 1e-6  # of the layer normalizations
_SHIFT, _SCALE = (
    (-0.030, -0.088, -0.188),
    (0.458, 0.448, 0.450),
)  # mean and standard deviation of ImageNet's pixels, scaled to [-1, 1]
_ACCEPTED = "accepted: DINOv2 ViT-S/14, B/14 or L/14, under the original repository's or Hugging Face's names"
# Parts of the original repository's names, and what Hugging Face writes for them.
_HUGGING_FACE: Mapping[str, str] = {
    "cls_token": "embeddings.cls_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "blocks.": "encoder.layer.",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "norm.": "layernorm.",
}
_UNUSED = ("mask_token", "embeddings.mask_token")  # only pretraining masks patches; some files leave it out


def load(path: str | os.PathLike) -> dict:
    """Loads the weights; their shapes imply the size of the network, its depth and whether it has registers.

    Args:
      path: state dict of the original repository, such as dinov2_vits14_pretrain.pth, or model.safetensors of
        Hugging Face's Dinov2Model or Dinov2WithRegistersModel. Files that end in .safetensors are read as
        such, all others as written by torch.save. The grid of positions may be any square.

    Returns:
      Float32 parameters, nested by the parts of the original repository's names and laid out as in PyTorch:
      {'cls_token': array, 'blocks': {'0': {'attn': {'qkv': {'weight': array, ...}}}}, ...}.

    Raises:
      weights.BadWeights: if the file is missing or damaged, or does not hold exactly this network.
    """
    tensors = {name: tensor for name, tensor in _read(path).items() if name not in _UNUSED}
    shapes, original = _shapes(path, tensors), "cls_token" in tensors
    parts = {name: _parts(name, original) for name in shapes}
    wanted = {
        part: (shape[0] // len(parts[name]), *shape[1:])
        for name, shape in shapes.items()
        for part in parts[name]
    }
    if missing := wanted.keys() - tensors.keys():
        raise BadWeights(f"{path}: lacks {min(missing)!r}; {_ACCEPTED}")
    if surplus := tensors.keys() - wanted.keys():
        raise BadWeights(f"{path}: holds {min(surplus)!r}, which the network does not have; {_ACCEPTED}")
    checked = weights.check(tensors, wanted, f"{path}: ")
    state = {name: np.concatenate([checked[part] for part in parts[name]]) for name in shapes}
    return traverse_util.unflatten_dict(state, sep=".")


def _read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    if not os.fspath(path).endswith(".safetensors"):
        return torch_file.read(path)
    with weights.reading(path):
        return load_file(path)


def _parts(name: str, original: bool) -> tuple[str, ...]:
    """Returns the names in the file of the tensors that, stacked, are the original repository's `name`."""
    if original:
        return (name,)
    for ours, theirs in _HUGGING_FACE.items():
        name = name.replace(ours, theirs)
    separate = ("query", "key", "value") if "attn.qkv" in name else ("",)
    return tuple(name.replace("attn.qkv", f"attention.attention.{part}") for part in separate)


def _shapes(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the network's tensors, by the original repository's names.

    Raises:
      weights.BadWeights: if the tensors do not tell the network's size.
    """
    names = ("cls_token", "pos_embed", "register_tokens", "blocks.")
    cls, positions, registers, block = (_parts(name, "cls_token" in tensors)[0] for name in names)
    if cls not in tensors:
        raise BadWeights(f"{path}: holds neither 'cls_token' nor {cls!r}; {_ACCEPTED}")
    width = tensors[cls].size
    if width not in WIDTHS:
        raise BadWeights(f"{path}: {cls} has {width} numbers, not one of {WIDTHS}; {_ACCEPTED}")
    places = tensors[positions].size // width - 1 if positions in tensors else 0
    numbers = {name.removeprefix(block).split(".")[0] for name in tensors if name.startswith(block)}
    linear: dict[str, tuple[int, ...]] = {"patch_embed.proj": (width, 3, PATCH, PATCH)}
    norms, scales = ["norm"], []
    for n in range(max(len(numbers), 1)):  # a file without blocks lacks the first
        linear |= {
            f"blocks.{n}.attn.qkv": (3 * width, width),
            f"blocks.{n}.attn.proj": (width, width),
            f"blocks.{n}.mlp.fc1": (4 * width, width),
            f"blocks.{n}.mlp.fc2": (width, 4 * width),
        }
        norms += [f"blocks.{n}.norm1", f"blocks.{n}.norm2"]
        scales += [f"blocks.{n}.ls1.gamma", f"blocks.{n}.ls2.gamma"]
    return {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + math.isqrt(max(places, 1)) ** 2, width),
        **({"register_tokens": (1, REGISTERS, width)} if registers in tensors else {}),
        **{f"{name}.weight": shape for name, shape in linear.items()},
        **{f"{name}.bias": shape[:1] for name, shape in linear.items()},
        **{f"{name}.{part}": (width,) for name in norms for part in ("weight", "bias")},
        **dict.fromkeys(scales, (width,)),
    }


def features(params: dict, x: jax.Array) -> jax.Array:
    """Computes the last features of the patches, after the final layer normalization.

    The published weights have positions for 518x518 pixels. For other sizes they are resampled as in Hugging
    Face's transformers: bicubic, and antialiased if the network has registers. The original repository does
    the same with registers. Without them, it places the samples as if height and width were a tenth of a
    patch larger, so its features differ slightly.

    Args:
      params: parameters from `load`.
      x: images (B, H, W, 3) in [-1, 1], H and W multiples of 14.

    Returns:
      Float32 features (B, H/14, W/14, C); C is 384, 768 or 1024.

    Raises:
      ValueError: if x does not have the shape given above.
    """
    if x.ndim != 4 or x.shape[3] != 3 or any(side % PATCH or not side for side in x.shape[1:3]):
        raise ValueError(f"images of shape {x.shape}; accepted: (B, H, W, 3), H and W multiples of {PATCH}")
    with jax.default_matmul_precision("highest"):  # accelerators use fewer bits by default
        return _network(params, x.astype(jnp.float32))


def _network(params: dict, x: jax.Array) -> jax.Array:
    batch, height, width = x.shape[0], x.shape[1] // PATCH, x.shape[2] // PATCH
    x = (x - jnp.array(_SHIFT)) / jnp.array(_SCALE)
    x = x.reshape(batch, height, PATCH, width, PATCH, 3)
    layer, cls, positions = params["patch_embed"]["proj"], params["cls_token"], params["pos_embed"]
    x = jnp.einsum("bhiwjc,ocij->bhwo", x, layer["weight"]) + layer["bias"]
    registers = params.get("register_tokens", cls[:, :0])
    x += _resample(positions[0, 1:], height, width, antialias=registers.size > 0)
    first = jnp.concatenate([cls + positions[:, :1], registers], 1)  # registers have no position
    first = jnp.broadcast_to(first, (batch, *first.shape[1:]))
    x = jnp.concatenate([first, x.reshape(batch, height * width, -1)], 1)
    for n in range(len(params["blocks"])):
        x = _block(params["blocks"][str(n)], x)
    x = _normalize(params["norm"], x[:, first.shape[1] :])
    return x.reshape(batch, height, width, -1)


def _block(layers: dict, x: jax.Array) -> jax.Array:
    """Applies attention and a perceptron to tokens (B, N, C); each adds to its input, scaled per channel."""
    x += layers["ls1"]["gamma"] * _attend(layers["attn"], _normalize(layers["norm1"], x))
    y = _linear(layers["mlp"]["fc1"], _normalize(layers["norm2"], x))
    y = _linear(layers["mlp"]["fc2"], jax.nn.gelu(y, approximate=False))
    return x + layers["ls2"]["gamma"] * y


def _attend(layers: dict, x: jax.Array) -> jax.Array:
    batch, tokens, width = x.shape
    qkv = _linear(layers["qkv"], x).reshape(batch, tokens, 3, width // _HEAD, _HEAD)
    query, key, value = jnp.moveaxis(qkv, 2, 0)
    return _linear(layers["proj"], jax.nn.dot_product_attention(query, key, value).reshape(x.shape))


def _linear(layer: dict, x: jax.Array) -> jax.Array:
    return x @ layer["weight"].T + layer["bias"]


def _normalize(layer: dict, x: jax.Array) -> jax.Array:
    # The function's own variance, mean(x²) - mean(x)², loses digits where the mean is large.
    x = jax.nn.standardize(x, variance=x.var(-1, keepdims=True), epsilon=_EPSILON)
    return x * layer["weight"] + layer["bias"]


def _resample(positions: jax.Array, height: int, width: int, antialias: bool) -> jax.Array:
    """Resamples a square grid (n², C) to (height, width, C)."""
    side = math.isqrt(positions.shape[0])
    rows, columns = (_bicubic(side, size, antialias) for size in (height, width))
    return jnp.einsum("hi,wj,ijc->hwc", rows, columns, positions.reshape(side, side, -1))


def _bicubic(before: int, after: int, antialias: bool) -> np.ndarray:
    """Returns the matrix (after, before) of PyTorch's bicubic resampling, align_corners=False.

    The kernel is that of Keys, "Cubic convolution interpolation for digital image processing" (1981), eq. 15,
    with free parameter -0.75 (`jax.image.resize` has -0.5), and samples beyond the border repeat it. With
    antialiasing the parameter is -0.5, a reduction widens the kernel, and samples beyond the border do not
    count.
    """
    scale = before / after
    a, stretch = (-0.5, max(scale, 1)) if antialias else (-0.75, 1)
    taps = np.arange(-2, before + 2)
    x = np.abs(taps - ((np.arange(after)[:, None] + 0.5) * scale - 0.5)) / stretch
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    kernel = np.where(x < 1, near, np.where(x < 2, far, 0))
    inside = taps.clip(0, before - 1)
    if antialias:
        kernel *= inside == taps
    matrix = kernel @ (inside[:, None] == np.arange(before))
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)
